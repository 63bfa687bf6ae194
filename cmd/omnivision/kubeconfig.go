package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func newKubeconfigCommand() *cobra.Command {
	var (
		flags fleetFlags
		file  string
	)
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Write a kubeconfig with one context per cluster",
		Example: `  omnivision kubeconfig                # to standard output
  omnivision kubeconfig --file fleet.kubeconfig
  export KUBECONFIG=$PWD/fleet.kubeconfig; kubectl --context cluster-gcp get pods -A`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			data, err := fleet.Kubeconfig()
			if err != nil {
				return err
			}
			if file == "" {
				_, err = cmd.OutOrStdout().Write(data)
				return err
			}
			return os.WriteFile(file, data, 0o600)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to write (default: standard output)")
	return cmd
}

func newKubectlCommand() *cobra.Command {
	var (
		flags   fleetFlags
		cluster string
	)
	cmd := &cobra.Command{
		Use:   "kubectl --cluster NAME -- ARGUMENTS",
		Short: "Run kubectl against a cluster of the fleet",
		Long: `Run kubectl, of the clusters' own version, against a cluster of the fleet. It
need not be installed.`,
		Example: `  omnivision kubectl --cluster cluster-aws -- get pods -A
  omnivision kubectl -c cluster-gcp -- -n omnivision get rollouts
  omnivision kubectl -c cluster-gcp -- -n omnivision logs -l app.kubernetes.io/component=ui`,
		RunE: func(cmd *cobra.Command, args []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			if cluster == "" {
				return codedError{exitUsage, fmt.Errorf("name the cluster with --cluster: %s", list(clusterNames(fleet)))}
			}
			if _, err := fleet.Plan.Cluster(cluster); err != nil {
				return codedError{exitUsage, err}
			}
			program, err := fleet.Store.Path("kubectl")
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "omnivision-kubectl-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
			data, err := fleet.Kubeconfig()
			if err != nil {
				return err
			}
			config := filepath.Join(dir, "config")
			if err := os.WriteFile(config, data, 0o600); err != nil {
				return err
			}
			return runInPlace(cmd, program, append([]string{"--kubeconfig", config, "--context", cluster}, args...))
		},
	}
	flags.add(cmd)
	flags.clusterFlag(cmd, &cluster)
	return cmd
}
