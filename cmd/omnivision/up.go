package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newUpCommand() *cobra.Command {
	var flags fleetFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring the whole fleet up on this machine",
		Long: `Bring the whole fleet up on this machine: each cluster of fleet.yaml as a real
Kubernetes cluster, a forge, a registry, and OmniVision running in every
cluster, synced from Git by the cluster's own Argo CD.

What is missing is installed (Debian packages) and built (upstream programs,
from their Go modules) first; that is kept for the next time. The command may
be run again at any time, also after it was killed: what runs as it should is
kept, and changes of the working tree are pushed to the forge.

With --context it brings OmniVision to clusters that exist instead (kind, EKS,
GKE): it installs Argo CD as the tree says and applies the cluster's
argo-app.yaml; everything else comes from the Git repository and the registries
that the tree names, which must be in place. Nothing is started on this machine,
and root is not needed.`,
		Example: `  omnivision up
  omnivision up --only cluster-aws     # one cluster alone
  omnivision up --offline              # never ask upstream for images
  omnivision up --context cluster-aws=arn:aws:eks:us-west-2:111122223333:cluster/prod \
                --context cluster-gcp=gke_acme_europe-west1_prod`,
		Args: cobra.NoArgs,
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
			progress := newProgress(cmd.ErrOrStderr())
			timings, err := fleet.Up(cmd.Context(), progress)
			progress.close()
			if err != nil {
				return fmt.Errorf("%w\nrun the same command again to go on; 'omnivision doctor' asks the machine", err)
			}
			printTimings(cmd.ErrOrStderr(), timings)
			status, err := fleet.Status(cmd.Context())
			if err != nil {
				return err
			}
			return printStatus(cmd.OutOrStdout(), status)
		},
	}
	flags.add(cmd)
	flags.contextFlag(cmd)
	cmd.Flags().StringSliceVar(&flags.options.Clusters, "only", nil, "names of the clusters to bring up (default: all of fleet.yaml)")
	cmd.Flags().BoolVar(&flags.options.Offline, "offline", false, "build what would be pulled from upstream, without asking")
	cmd.Flags().BoolVar(&flags.options.KeepBuildCaches, "keep-build-caches", false, "keep the engines' Go caches, tens of gigabytes")
	return cmd
}
