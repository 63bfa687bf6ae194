package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/report"
	"github.com/omnivision/omnivision/plan/revision"
)

// exitChanges is the exit code of `plan --exit-code` when a cluster changes.
const exitChanges = 4

type planFlags struct {
	base, head, tree, output                string
	charts                                  chartFlags
	mergeBase, offline, plainHTTP, exitCode bool
	timeout                                 time.Duration
	publish                                 publishFlags
}

func newPlanCommand() *cobra.Command {
	var flags planFlags
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what a change of the GitOps tree changes in each cluster",
		Long: `Show what a change of the GitOps tree changes in each cluster: both revisions
are rendered as each cluster's own Argo CD renders them (its chart version,
values, Kubernetes and API versions) and compared object by object. Values of
Secrets are masked. Clusters that are untouched are said to be untouched. No
cluster is asked, and the checkout is not touched.

The base is where the head parted from the branch that the clusters follow; the
head is the working tree. The chart comes from the registry, which each cluster
asks too, or from --chart-dir where that holds just the pinned version.

With --pull-request the plan also becomes one comment of that pull request, which
the next run changes in place, and the commit status omnivision/plan of the head.
Where the pull request is says the base's fleet.yaml; the token is read from
OMNIVISION_FORGE_TOKEN, and from OMNIVISION_FORGE_LOGIN the user that it belongs
to, if the forge does not tell.

Exits with 0 whether or not anything changes, and with 1 if there is no plan.
Exits with 3 if the plan is shown but an Application cannot be rendered at the
head, and with --exit-code with 4 if a cluster changes.`,
		Example: `  omnivision plan                                   # the working tree against the branch that clusters follow
  omnivision plan --chart-dir charts/omnivision-platform
  omnivision plan --base HEAD~1 --head HEAD
  omnivision plan --base origin/main --merge-base --head "$COMMIT" -o markdown > comment.md
  omnivision plan --base origin/main --merge-base --head "$COMMIT" --pull-request "$NUMBER"
  omnivision plan --exit-code -o json | jq '.clusters[] | select(.status != "untouched") | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), flags.timeout, fmt.Errorf("planning took longer than %s: allow more with --timeout", flags.timeout))
			defer cancel()
			if os.Getenv("GOGC") == "" {
				defer debug.SetGCPercent(debug.SetGCPercent(plan.GCPercent))
			}
			p, err := flags.compare(ctx)
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			published := flags.publish.publish(ctx, p, err)
			if err != nil {
				return errors.Join(err, published)
			}
			if err := flags.show(cmd, p); err != nil {
				return err
			}
			return errors.Join(flags.verdict(p), published)
		},
	}
	flags.add(cmd)
	return cmd
}

func (f *planFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.base, "base", "", "revision to compare with (default: where the head parted from the branch that clusters follow)")
	flags.StringVar(&f.head, "head", "", "revision to plan (default: the working tree)")
	flags.BoolVar(&f.mergeBase, "merge-base", false, "compare with where the head parted from --base, not with --base itself")
	flags.StringVar(&f.tree, "tree", "", "directory of the GitOps tree (default: this one, or omnivision-gitops in it)")
	f.charts.add(cmd)
	flags.BoolVar(&f.offline, "offline", false, "take charts from --chart-dir and the cache alone")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "speak HTTP to the registry of charts")
	flags.BoolVar(&f.exitCode, "exit-code", false, "exit with 4 if a cluster changes")
	flags.DurationVar(&f.timeout, "timeout", 2*time.Minute, "give up after this time")
	flags.StringVarP(&f.output, "output", "o", "text", "text, markdown or json")
	f.publish.add(cmd)
	outputs := []string{"text", "markdown", "json"}
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp)))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		switch {
		case !strings.Contains(" text markdown json ", " "+f.output+" ") || f.output == "":
			return codedError{exitUsage, fmt.Errorf("--output is %q: use %s", f.output, list(outputs))}
		case f.mergeBase && f.base == "":
			return codedError{exitUsage, errors.New("--merge-base needs --base")}
		case f.timeout <= 0:
			return codedError{exitUsage, errors.New("--timeout must be longer than nothing")}
		}
		return f.publish.check(f.base, f.head)
	}
}

// compare reads both trees and compares them.
func (f *planFlags) compare(ctx context.Context) (*plan.Plan, error) {
	repository, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	head, headCommit, err := f.headTree(ctx, repository)
	if err != nil {
		return nil, err
	}
	base, err := f.baseTree(ctx, repository, head, headCommit)
	if err != nil {
		return nil, err
	}
	if err := f.publish.found(base, headCommit); err != nil {
		return nil, err
	}
	charts, err := f.charts.source(f.offline, f.plainHTTP)
	if err != nil {
		return nil, err
	}
	return plan.Compare(ctx, base, head, plan.Options{Charts: charts})
}

func (f *planFlags) open(ctx context.Context) (*revision.Repository, error) {
	dir := treeHere(f.tree)
	if dir == "" {
		return nil, codedError{exitUsage, fmt.Errorf("there is no %s here: go to a checkout of the GitOps repository, or name its directory with --tree", fleet.File)}
	}
	return revision.Open(ctx, dir)
}

// treeHere is the given GitOps tree, or else the one that is here; empty if none is.
func treeHere(given string) string {
	if given != "" {
		return given
	}
	for _, candidate := range []string{".", "omnivision-gitops"} {
		if _, err := os.Stat(filepath.Join(candidate, fleet.File)); err == nil {
			return candidate
		}
	}
	return ""
}

// headTree also says which commit's history the base is looked for in.
func (f *planFlags) headTree(ctx context.Context, repository *revision.Repository) (*revision.Tree, string, error) {
	name := f.head
	if name == "" {
		name = "HEAD"
	}
	commit, err := repository.Resolve(ctx, name)
	if err != nil {
		return nil, "", err
	}
	if f.head == "" {
		tree, err := repository.WorkingTree(ctx)
		return tree, commit, err
	}
	tree, err := repository.Tree(ctx, commit, f.head)
	return tree, commit, err
}

func (f *planFlags) baseTree(ctx context.Context, repository *revision.Repository, head *revision.Tree, headCommit string) (*revision.Tree, error) {
	if f.base == "" {
		described, err := fleet.Load(head)
		if err != nil {
			return nil, err
		}
		commit, name, err := repository.Followed(ctx, described.Branch, headCommit)
		if err != nil {
			return nil, err
		}
		return repository.Tree(ctx, commit, name)
	}
	commit, err := repository.Resolve(ctx, f.base)
	if err == nil && f.mergeBase {
		commit, err = repository.MergeBase(ctx, commit, headCommit)
	}
	if err != nil {
		return nil, err
	}
	return repository.Tree(ctx, commit, f.base)
}

func (f *planFlags) show(cmd *cobra.Command, p *plan.Plan) error {
	out := cmd.OutOrStdout()
	switch f.output {
	case "json":
		return report.JSON(out, p)
	case "markdown":
		_, err := fmt.Fprint(out, report.Markdown(p, report.CommentLimit))
		return err
	}
	_, plain := os.LookupEnv("NO_COLOR")
	return report.Text(out, p, isTerminal(out) && !plain)
}

// verdict turns the plan into the exit code.
func (f *planFlags) verdict(p *plan.Plan) error {
	if failures := p.Failures(); len(failures) > 0 {
		return codedError{exitUnhealthy, fmt.Errorf("these cannot be rendered, see above: %s", list(failures))}
	}
	if f.exitCode && p.Changed() {
		return exitedError{exitChanges}
	}
	return nil
}
