package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/release"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/internal/tooltime"
)

func newChartCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "chart", Short: "Publish the platform's chart", Args: cobra.NoArgs}
	cmd.AddCommand(newChartPublishCommand())
	return cmd
}

type chartPublishFlags struct {
	dir, tree, evidence, output string
	trust                       trustFlags
	plainHTTP                   bool
	timeout                     time.Duration
}

func newChartPublishCommand() *cobra.Command {
	var flags chartPublishFlags
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Package the platform's chart, push it and sign it with its provenance",
		Long: `Package the platform's chart as HEAD has it, push it to the registry of fleet.yaml
and sign it with its provenance, as images are signed. The version is that of
Chart.yaml. The same files are the same digest on every machine.

A version that is there with another content is never replaced: raise the
version. What is published and signed already is not done again. Which version
a cluster runs is decided in its infrastructure/CLUSTER/platform.yaml.`,
		Example: `  omnivision chart publish
  omnivision chart publish --key conveyor.pem --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), flags.timeout, fmt.Errorf("publishing took longer than %s: allow more with --timeout", flags.timeout))
			defer cancel()
			return flags.run(ctx, cmd)
		},
	}
	set := cmd.Flags()
	set.StringVar(&flags.dir, "source", ".", "checkout of the source repository")
	set.StringVar(&flags.tree, "tree", "", "directory of the GitOps tree (default: omnivision-gitops in the source)")
	set.StringVar(&flags.evidence, "evidence", "", "folder that keeps what each stage found (default: omnivision/releases in the user's cache)")
	set.BoolVar(&flags.plainHTTP, "plain-http", false, "speak HTTP to the registry")
	set.DurationVar(&flags.timeout, "timeout", 10*time.Minute, "give up after this time")
	flags.trust.add(cmd)
	outputFlag(cmd, &flags.output)
	return cmd
}

func (f *chartPublishFlags) run(ctx context.Context, cmd *cobra.Command) error {
	begin := processStart()
	ctx, _ = tooltime.With(ctx)
	chart, err := f.chart(ctx)
	if err != nil {
		return err
	}
	run := beltRun{evidence: f.evidence, output: f.output, begin: begin}
	return run.do(ctx, cmd, func(store conveyor.Store, watcher conveyor.Watcher) (conveyor.Belt, error) {
		return chart.Belt(ctx, store, watcher)
	})
}

// chart reads what the two repositories say of the chart.
func (f *chartPublishFlags) chart(ctx context.Context) (release.Chart, error) {
	revision, err := source.Read(ctx, f.dir)
	if err != nil {
		return release.Chart{}, err
	}
	src, err := os.ReadFile(filepath.Join(f.dir, release.AppsFile))
	if err != nil {
		return release.Chart{}, codedError{exitUsage, fmt.Errorf("%w: go to the top of the source's checkout, or name it with --source", err)}
	}
	apps, err := release.ParseApps(src)
	if err != nil {
		return release.Chart{}, err
	}
	tree, err := fleet.Load(os.DirFS(sourceTree(f.tree, f.dir)))
	if err != nil {
		return release.Chart{}, err
	}
	var options []name.Option
	if f.plainHTTP {
		options = append(options, name.Insecure)
	}
	repository, err := name.NewRepository(tree.Chart.Registry+"/"+tree.Chart.Name, options...)
	if err != nil {
		return release.Chart{}, fmt.Errorf("the registry of the chart in %s: %w", fleet.File, err)
	}
	keychain, err := registryKeychain()
	if err != nil {
		return release.Chart{}, err
	}
	return release.Chart{
		Name: tree.Chart.Name, Path: path.Join("charts", tree.Chart.Name), Dir: f.dir, Source: apps.Source, Revision: revision,
		Invocation: invocation(), Repository: repository, Registry: registryOptions(keychain),
		Signer: f.trust.signer, Policy: f.trust.policy,
	}, nil
}
