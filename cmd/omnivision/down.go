package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newDownCommand() *cobra.Command {
	var flags fleetFlags
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End the fleet and leave nothing behind",
		Long: `End every process of the fleet and remove its state: clusters, forge, network
namespaces. Built engines, images and the registry's contents are kept in the
cache, so that the next 'omnivision up' is quick.`,
		Example: `  omnivision down`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			unlock, err := fleet.Lock()
			if err != nil {
				return err
			}
			defer unlock()
			begin := time.Now()
			if err := fleet.Down(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "down in %s\n", time.Since(begin).Round(100*time.Millisecond))
			return err
		},
	}
	flags.add(cmd)
	return cmd
}
