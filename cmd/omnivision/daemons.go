package main

import (
	"context"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/localfleet/edge"
	"github.com/omnivision/omnivision/localfleet/issuer"
	"github.com/spf13/cobra"
)

func newEdgeCommand() *cobra.Command {
	return newDaemonCommand(localfleet.EdgeCommand, "Serve the names, ports and load balancers of a local fleet", edge.Run)
}

func newIssuerCommand() *cobra.Command {
	return newDaemonCommand(localfleet.IssuerCommand, "Issue identity tokens to the running jobs of a local fleet's forge", issuer.Run)
}

// newDaemonCommand is what the fleet starts as a process of its own, with a configuration
// file; nobody else needs to.
func newDaemonCommand(name, short string, run func(ctx context.Context, config string) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " CONFIG", Short: short, Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args[0]) },
	}
}
