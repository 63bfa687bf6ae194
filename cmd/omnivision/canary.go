package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/steward/preflight"
)

func newCanaryCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "canary", Short: "Look at what judges canaries", Args: cobra.NoArgs}
	cmd.AddCommand(newCanaryCheckCommand())
	return cmd
}

func newCanaryCheckCommand() *cobra.Command {
	var (
		flags           fleetFlags
		cluster, output string
		namespace       string
	)
	cmd := &cobra.Command{
		Use:   "check --cluster NAME",
		Short: "Ask a canary's questions without a canary",
		Long: `Ask a cluster's Prometheus every question of the analysis gpu-health-check, about
the revision that runs now, and show the answers beside the conditions; and
count whether there are GPUs for a canary. Nothing is changed.

Exits with 3 if a question fails, if one that asks for presence finds nothing,
or if GPUs are missing: a canary would then pause, or abort for no fault of the
image.`,
		Example: `  omnivision canary check --cluster cluster-aws
  omnivision canary check -c cluster-gcp -o json | jq '.answers[] | select(.values == [])'
  omnivision canary check -c cluster-aws --context cluster-aws=my-eks-context`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster == "" {
				return codedError{exitUsage, errors.New("name the cluster with --cluster")}
			}
			_, configs, err := flags.reach(cluster)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			report, err := preflight.Check(ctx, configs[cluster], cluster, namespace)
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = report.Write(cmd.OutOrStdout())
			}
			if err == nil && report.Bad() {
				err = codedError{exitUnhealthy, errors.New("a canary would pause, or abort for no fault of the image: see the questions without an answer, and the GPUs")}
			}
			return err
		},
	}
	flags.add(cmd)
	flags.contextFlag(cmd)
	flags.clusterFlag(cmd, &cluster)
	outputFlag(cmd, &output)
	cmd.Flags().StringVar(&namespace, "namespace", "omnivision", "namespace of the platform")
	return cmd
}
