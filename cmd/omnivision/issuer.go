package main

import (
	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/localfleet/issuer"
	"github.com/spf13/cobra"
)

// newIssuerCommand is what 'up' starts; nobody else needs to.
func newIssuerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    localfleet.IssuerCommand + " CONFIG",
		Short:  "Issue identity tokens to the running jobs of a local fleet's forge",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return issuer.Run(cmd.Context(), args[0]) },
	}
}
