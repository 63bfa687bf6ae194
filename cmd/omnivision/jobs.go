package main

import (
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/localfleet"
)

// newJobsCommand is what 'up' starts to wait for the first job of a workflow.
func newJobsCommand() *cobra.Command {
	var flags fleetFlags
	cmd := &cobra.Command{
		Use:    localfleet.JobsCommand,
		Short:  "Start the conveyor of a local fleet when its forge has a job",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			defer progress.close()
			return fleet.AwaitJobs(cmd.Context(), progress)
		},
	}
	flags.add(cmd)
	return cmd
}
