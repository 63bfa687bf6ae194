package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/gate/report"
)

func newGateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "gate", Short: "Look at what the clusters' admission decides", Args: cobra.NoArgs}
	cmd.AddCommand(newGateReportCommand())
	return cmd
}

// gateReportTime bounds the report about one cluster.
const gateReportTime = 5 * time.Minute

func newGateReportCommand() *cobra.Command {
	var (
		flags             fleetFlags
		clusters          []string
		namespace, output string
	)
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show what runs and would be refused if it started again",
		Long: `Ask each cluster's gate about the Pods that run: which of them would be refused if
they started again, and why. Each distinct kind of Pod (namespace, images, service
account, labels, pull secrets) is created in a dry run of the API server, so the
answer is the gate's own, and nothing is changed. Warnings of policies in warn
mode are shown. Ephemeral containers are not asked about.

What something else refuses before the gate is heard (Pod Security, a quota, a
missing right) is "unknown" and never "admitted".

It takes the rights to get the ValidatingWebhookConfiguration omnivision-gate, to
list namespaces and Pods, and to create Pods; with --namespace, to get that
namespace, and to list and create Pods in it.

Exits with 3 if something would be refused, and with 1 if something could not be
asked about.`,
		Example: `  omnivision gate report
  omnivision gate report --cluster cluster-aws --namespace omnivision
  omnivision gate report -c cluster-gcp -o json | jq '.clusters[].findings[] | select(.verdict == "refused")'
  omnivision gate report --context cluster-aws=my-eks-context`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, configs, err := flags.reach(clusters...)
			if err != nil {
				return err
			}
			var reports []report.Report
			for _, name := range names {
				r, err := gateReport(cmd.Context(), configs[name], name, namespace)
				if err != nil {
					return err
				}
				reports = append(reports, r)
			}
			write := report.WriteTable
			if output == "json" {
				write = report.WriteJSON
			}
			if err := write(cmd.OutOrStdout(), reports); err != nil {
				return err
			}
			err = report.Problem(reports)
			if errors.Is(err, report.ErrRefused) {
				return codedError{exitUnhealthy, err}
			}
			return err
		},
	}
	flags.add(cmd)
	flags.contextFlag(cmd)
	flags.clustersFlag(cmd, &clusters)
	outputFlag(cmd, &output)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "ask about this namespace alone (default: every one that the gate covers)")
	return cmd
}

// gateReport says in the report what is wrong with a cluster: the others' reports are wanted all the same.
func gateReport(ctx context.Context, config *rest.Config, cluster, namespace string) (report.Report, error) {
	limited, cancel := context.WithTimeout(ctx, gateReportTime)
	defer cancel()
	r, err := report.Of(limited, config, report.Options{Cluster: cluster, Namespace: namespace})
	if ctx.Err() != nil {
		return report.Report{}, ctx.Err()
	}
	if err != nil {
		return report.Report{Cluster: cluster, Error: err.Error(), Findings: []report.Finding{}}, nil
	}
	return r, nil
}
