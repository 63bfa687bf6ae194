package main

import (
	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/localfleet/edge"
	"github.com/spf13/cobra"
)

// newEdgeCommand is what 'up' starts; nobody else needs to.
func newEdgeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    localfleet.EdgeCommand + " CONFIG",
		Short:  "Serve the names, ports and load balancers of a local fleet",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return edge.Run(cmd.Context(), args[0]) },
	}
}
