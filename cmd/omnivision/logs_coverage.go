package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/omnivision/omnivision/logs/coverage"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
)

// coverageTime bounds the measure of one cluster.
const coverageTime = time.Minute

func newLogsCoverageCommand() *cobra.Command {
	var (
		flags          fleetFlags
		clusters       []string
		within, settle time.Duration
		output         string
	)
	cmd := &cobra.Command{
		Use:   "coverage",
		Short: "Show whose logs are not shipped, and why",
		Long: `Measure whether the logs of every running container reach Loki: in each namespace
labelled logging=enabled, which containers are in a Pod whose log sidecar runs,
and of which lines arrived lately. Each that is missing is named,
with the reason. A Pod that opted out, by its annotation
logging.omnivision.ai/inject=disabled, is named and counted, and is not missing. A
container that writes nothing delivers nothing; that is no gap.

It takes the rights to list namespaces and Pods, and to get services/proxy in
namespace logging.

Exits with 1 if a Pod is missing that did not opt out, or if that could not be
found out.`,
		Example: `  omnivision logs coverage
  omnivision logs coverage -c cluster-aws
  omnivision logs coverage -o json | jq '.clusters[].reports[].gaps[]'
  omnivision logs coverage --context cluster-aws=my-eks-context`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if within <= 0 || settle <= 0 {
				return codedError{exitUsage, errors.New("--within and --settle have to be more than nothing, such as --within 5m --settle 30s")}
			}
			names, configs, err := flags.reach(clusters...)
			if err != nil {
				return err
			}
			found := surveyAll(cmd.Context(), names, configs, within, settle)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			write := coverage.WriteTable
			if output == "json" {
				write = coverage.WriteJSON
			}
			if err := write(cmd.OutOrStdout(), found); err != nil {
				return err
			}
			return coverageProblem(found)
		},
	}
	flags.add(cmd)
	flags.contextFlag(cmd)
	flags.clustersFlag(cmd, &clusters)
	outputFlag(cmd, &output)
	cmd.Flags().DurationVar(&within, "within", coverage.DefaultWithin, "what counts as lately")
	cmd.Flags().DurationVar(&settle, "settle", coverage.DefaultSettle, "how old a Pod has to be to count: its first lines take a moment")
	return cmd
}

func surveyAll(ctx context.Context, names []string, configs map[string]*rest.Config, within, settle time.Duration) []coverage.Cluster {
	found := make([]coverage.Cluster, len(names))
	var running sync.WaitGroup
	for i, name := range names {
		running.Go(func() {
			limited, cancel := context.WithTimeout(ctx, coverageTime)
			defer cancel()
			survey, err := newSurvey(configs[name])
			survey.Within, survey.Settle = within, settle
			var reports []coverage.Report
			if err == nil {
				reports, err = survey.All(limited, time.Now())
			}
			found[i] = coverage.Of(name, reports, err)
		})
	}
	running.Wait()
	return found
}

func coverageProblem(found []coverage.Cluster) error {
	missing, unknown := 0, []string{}
	for _, c := range found {
		missing += c.Missing
		if c.Error != "" || c.Unknown != "" {
			unknown = append(unknown, c.Cluster)
		}
	}
	var problems []error
	if missing > 0 {
		problems = append(problems, fmt.Errorf("the logs of %d containers are not shipped: see above; a new Pod in place of each gets a sidecar", missing))
	}
	if len(unknown) > 0 {
		problems = append(problems, fmt.Errorf("not all could be found out about %s: see above; 'omnivision status' shows whether the Application loki is Healthy", strings.Join(unknown, ", ")))
	}
	return errors.Join(problems...)
}
