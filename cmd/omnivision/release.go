package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/conveyor/release"
	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/connect"
	"github.com/omnivision/omnivision/internal/tooltime"
)

// forgeTokenVariable holds the token for pull requests in the GitOps repository.
const forgeTokenVariable = "OMNIVISION_FORGE_TOKEN"

// baseImagesVariable is --base-image for a machine whose every release needs it.
const baseImagesVariable = "OMNIVISION_BASE_IMAGES"

// buildCacheVariable is --build-cache for a machine whose daemon has nothing yet.
const buildCacheVariable = "OMNIVISION_BUILD_CACHE"

type releaseFlags struct {
	app, dir, tree, evidence, output string
	wave                             int
	again, ifChanged                 bool
	versionCommits                   map[string]string

	buildkit, cache string
	baseImages      map[string]string
	platforms       []string

	scanning  scannerFlags
	trust     trustFlags
	charts    chartFlags
	plainHTTP bool
	forgeCA   string
	timeout   time.Duration
}

// stages are the subcommands of one stage each; release runs all of them.
var stages = []struct{ name, short string }{
	{release.Build, "Build an app's image from HEAD and push it to every region's registry"},
	{release.Scan, "Build an app's image, and stop at HIGH and CRITICAL vulnerabilities"},
	{release.Sign, "Build and scan an app's image, and sign it with its provenance, SBOM and scan"},
	{release.Propose, "Bring an app's release to a pull request, as release does"},
}

func newReleaseCommand() *cobra.Command {
	cmd := newBeltCommand("release", "Take an app from HEAD to a pull request in the GitOps repository", "")
	cmd.Long = `Take an app from HEAD to a pull request in the GitOps repository: build it with
BuildKit, scan what was pushed with Trivy, sign it with its provenance, SBOM and
scan, and propose a change of the app's tag and digest, and of nothing else. The
pull request says what it changes in each cluster, as 'omnivision plan' does.

Each stage leaves its evidence in a folder, and a stage whose result still holds
is not done again: run the same command after any failure or kill. build, scan,
sign and propose are the same belt up to that stage.

The image is signed with the job's identity by the public Sigstore, or by the one
that --trusted-root and --signing-config name (` + trustedRootVariable + `,
` + signingConfigVariable + `), or with --key. The token for the pull request is
read from ` + forgeTokenVariable + `.

A job with an OIDC token logs in to ECR by ` + awsRoleVariable + `, and to
Artifact Registry by ` + gcpProviderVariable + ` and
` + gcpAccountVariable + `, and to GitHub's registry with
` + packagesTokenVariable + `. Other registries have Docker's credentials.

A program that every cluster runs as a component (omnivision-gate, omnivision-steward,
omnivision-podlogs) goes to all of them by one pull request, without a wave.

At the end it says how long it waited for which program or server of others, and how
much of the time was its own.

Exits with 3 if a vulnerability stops the belt.`
	cmd.Example = `  omnivision release --app omnivision-worker
  omnivision release --app omnivision-ui --key conveyor.pem --output json
  omnivision scan --app omnivision-worker            # build and scan, no further
  omnivision release --app omnivision-worker --wave 2
  omnivision release --app omnivision-gate           # a component: one pull request for every cluster`
	return cmd
}

func newStageCommands() []*cobra.Command {
	var commands []*cobra.Command
	for _, stage := range stages {
		cmd := newBeltCommand(stage.name, stage.short, stage.name)
		cmd.Long = stage.short + `.

It is the belt of 'omnivision release' up to this stage: what an earlier run did
and what still holds is not done again.`
		cmd.Example = "  omnivision " + stage.name + " --app omnivision-worker"
		commands = append(commands, cmd)
	}
	return commands
}

func newBeltCommand(use, short, until string) *cobra.Command {
	var flags releaseFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), flags.timeout, fmt.Errorf("the release took longer than %s: allow more with --timeout", flags.timeout))
			defer cancel()
			return flags.run(ctx, cmd, until)
		},
	}
	flags.add(cmd)
	return cmd
}

func (f *releaseFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.app, "app", "", "app of fleet.yaml to release")
	flags.StringVar(&f.dir, "source", ".", "checkout of the source repository")
	flags.StringVar(&f.tree, "tree", "", "directory of the GitOps tree (default: omnivision-gitops in the source)")
	flags.StringVar(&f.evidence, "evidence", "", "folder that keeps what each stage found (default: omnivision/releases in the user's cache)")
	flags.IntVar(&f.wave, "wave", 0, "wave of clusters that the pull request is for (default: the first; a component goes to every cluster)")
	flags.BoolVar(&f.again, "again", false, "propose what was taken out of Git, or whose pull request was closed")
	flags.BoolVar(&f.ifChanged, "if-changed", false, "do nothing unless a file of the app differs from what a cluster of the wave runs")
	flags.StringVar(&f.buildkit, "buildkit", cmp.Or(os.Getenv("BUILDKIT_HOST"), "unix:///run/buildkit/buildkitd.sock"), "address of the BuildKit daemon")
	flags.StringVar(&f.cache, "build-cache", os.Getenv(buildCacheVariable), "image that keeps layers between builds on fresh machines; who may write it decides what is built ("+buildCacheVariable+")")
	flags.StringToStringVar(&f.versionCommits, "version-commit", nil, "VERSION=COMMIT, for --if-changed: the commit of a version that counts no commits")
	flags.StringToStringVar(&f.baseImages, "base-image", nil, "IMAGE=DIR or IMAGE=docker-image://OTHER: an OCI layout or an image in place of a base image, its digest apart, that cannot be pulled ("+baseImagesVariable+", separated by blanks)")
	flags.StringSliceVar(&f.platforms, "platform", nil, "platforms of the image (default: those of conveyor/apps.yaml)")
	f.scanning.add(cmd)
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "speak HTTP to the registries")
	flags.StringVar(&f.forgeCA, "forge-ca", "", "file of further certificate authorities of the forge")
	flags.DurationVar(&f.timeout, "timeout", time.Hour, "give up after this time")
	f.trust.add(cmd)
	f.charts.add(cmd)
	outputFlag(cmd, &f.output)
	cobra.CheckErr(cmd.MarkFlagRequired("app"))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("app", f.completeApps))
}

func (f *releaseFlags) completeApps(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	described, _, err := f.described()
	if err != nil && len(described.Apps) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, app := range described.Apps {
		names = append(names, app.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (f *releaseFlags) treeDir() string {
	return sourceTree(f.tree, f.dir)
}

// sourceTree is the given GitOps tree, or the one that the source repository has.
func sourceTree(given, source string) string {
	return cmp.Or(given, filepath.Join(source, "omnivision-gitops"))
}

func (f *releaseFlags) run(ctx context.Context, cmd *cobra.Command, until string) error {
	begin := processStart()
	ctx, _ = tooltime.With(ctx)
	found, err := f.read(ctx)
	if err != nil {
		return err
	}
	r, err := f.release(ctx, found, until)
	if err != nil {
		return err
	}
	if f.ifChanged {
		why, err := f.unchanged(ctx, found)
		if err != nil || why != "" {
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", f.app, why)
			}
			return err
		}
	}
	return beltRun{evidence: f.evidence, output: f.output, until: until, begin: begin}.do(ctx, cmd, r.Belt)
}

// beltRun is a run of a belt by a command.
type beltRun struct {
	evidence, output, until string
	begin                   time.Time // of the command
}

func (b beltRun) do(ctx context.Context, cmd *cobra.Command, belt func(conveyor.Store, conveyor.Watcher) (conveyor.Belt, error)) error {
	evidence, err := cacheDir(b.evidence, "releases", "--evidence")
	if err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	made, err := belt(conveyor.Store{Dir: evidence}, progress)
	if err != nil {
		progress.close()
		return codedError{exitUsage, err}
	}
	outcomes, err := made.Run(ctx, b.until)
	progress.close()
	if err == nil {
		return b.show(ctx, cmd.OutOrStdout(), made.Subject, outcomes)
	}
	if ctx.Err() != nil && cmd.Context().Err() == nil {
		err = context.Cause(ctx)
	}
	if errors.As(err, new(*scan.VulnerableError)) {
		return codedError{exitUnhealthy, err}
	}
	return fmt.Errorf("%w\nrun the same command again to go on where it stopped", err)
}

// found is what the two repositories say of the app.
type found struct {
	revision source.Revision
	apps     release.Apps
	app      release.App
	tree     *fleet.Fleet
	target   fleet.Target
}

func (f *releaseFlags) read(ctx context.Context) (r found, err error) {
	if r.revision, err = source.Read(ctx, f.dir); err != nil {
		return found{}, err
	}
	if r.apps, r.app, err = f.described(); err != nil {
		return found{}, err
	}
	files := os.DirFS(f.treeDir())
	if r.tree, err = fleet.Load(files); err != nil {
		return found{}, err
	}
	if r.target, err = r.tree.Target(files, f.app, f.wave); err != nil {
		return found{}, codedError{exitUsage, fmt.Errorf("the GitOps tree %s: %w", f.treeDir(), err)}
	}
	return r, nil
}

func (f *releaseFlags) release(ctx context.Context, found found, until string) (release.Release, error) {
	repositories, err := f.repositories(found.target)
	if err != nil {
		return release.Release{}, err
	}
	keychain, err := registryKeychain()
	if err != nil {
		return release.Release{}, err
	}
	scanner, err := f.scanning.scanner(f.treeDir(), f.plainHTTP, keychain.Password)
	if err != nil {
		return release.Release{}, err
	}
	bases, err := f.bases()
	if err != nil {
		return release.Release{}, err
	}
	options := registryOptions(keychain)
	r := release.Release{
		App: f.app, Wave: found.target.Wave, Again: f.again, Dir: f.dir, Source: found.apps.Source, Revision: found.revision,
		Dockerfile: found.app.Dockerfile, Args: found.app.Args, BaseImages: bases, Platforms: found.apps.Platforms, Cache: f.cache, Invocation: invocation(),
		Repositories: repositories, Registry: options,
		Builder: build.Builder{Address: f.buildkit, Registry: options, Credentials: keychain},
		Scanner: scanner, Signer: f.trust.signer, Policy: f.trust.policy,
	}
	if len(f.platforms) > 0 {
		r.Platforms = f.platforms
	}
	if until == "" || until == release.Propose {
		if r.Charts, err = f.charts.source(false, f.plainHTTP); err != nil {
			return release.Release{}, err
		}
		r.Proposer, err = f.proposer(ctx, found.tree)
	}
	return r, err
}

func (f *releaseFlags) described() (release.Apps, release.App, error) {
	src, err := os.ReadFile(filepath.Join(f.dir, release.AppsFile))
	if err != nil {
		return release.Apps{}, release.App{}, codedError{exitUsage, fmt.Errorf("%w: go to a checkout of the source repository, or name it with --source", err)}
	}
	apps, err := release.ParseApps(src)
	if err != nil {
		return release.Apps{}, release.App{}, err
	}
	app, err := apps.App(f.app)
	if err != nil {
		return apps, release.App{}, codedError{exitUsage, err}
	}
	return apps, app, nil
}

// bases are the replacements of the flag, and those of the environment that it does not name.
func (f *releaseFlags) bases() (map[string]string, error) {
	all := map[string]string{}
	for _, pair := range strings.Fields(os.Getenv(baseImagesVariable)) {
		image, replacement, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, codedError{exitUsage, fmt.Errorf("%s has %q: write IMAGE=DIR or IMAGE=docker-image://OTHER", baseImagesVariable, pair)}
		}
		all[image] = replacement
	}
	maps.Copy(all, f.baseImages)
	return all, nil
}

// unchanged says why there is nothing to release: what the clusters are told to run is what
// the files of the app make, or no cluster runs it. It is empty if there is.
func (f *releaseFlags) unchanged(ctx context.Context, found found) (string, error) {
	files := os.DirFS(f.treeDir())
	runs, err := found.tree.Runs(files, found.target)
	if err != nil {
		return "", err
	}
	if !runs {
		return "no cluster's components have it", nil
	}
	for _, place := range found.target.Places {
		runs, err := place.Read(files)
		if err != nil || runs.Empty() {
			return "", err
		}
		changed, known, err := found.app.Changed(ctx, f.dir, runs.Tag, found.revision.Commit, f.versionCommits)
		if err != nil || !known || len(changed) > 0 {
			return "", err
		}
	}
	return strings.Join(found.target.Clusters, ", ") + " runs what its files make", nil
}

// repositories are those that clusters pull the image from, each once.
func (f *releaseFlags) repositories(target fleet.Target) ([]name.Repository, error) {
	var options []name.Option
	if f.plainHTTP {
		options = append(options, name.Insecure)
	}
	var all []name.Repository
	for _, named := range target.Repositories {
		repository, err := name.NewRepository(named, options...)
		if err != nil {
			return nil, fmt.Errorf("the image's repository %s: %w", named, err)
		}
		all = append(all, repository)
	}
	return all, nil
}

func (f *releaseFlags) proposer(ctx context.Context, tree *fleet.Fleet) (release.Proposer, error) {
	token := os.Getenv(forgeTokenVariable)
	if token == "" {
		return nil, codedError{exitUsage, fmt.Errorf("%s is not set: it is the token that opens the pull request in %s", forgeTokenVariable, tree.Repository)}
	}
	transport, err := transportWithCA(f.forgeCA)
	if err != nil {
		return nil, err
	}
	repository, err := connect.Repository(ctx, tree.Repository, connect.Options{Token: forge.StaticToken(token), Transport: tooltime.Transport("forge", transport)})
	if err != nil {
		return nil, err
	}
	return &propose.Proposer{
		Forge: repository, Base: tree.Branch,
		Remote: propose.Remote{URL: tree.Repository, Token: forge.StaticToken(token), CAFile: f.forgeCA},
	}, nil
}

// invocation is the page of the job that runs this, if one does.
func invocation() string {
	server, repository, run := os.Getenv("GITHUB_SERVER_URL"), os.Getenv("GITHUB_REPOSITORY"), os.Getenv("GITHUB_RUN_ID")
	if server == "" || repository == "" || run == "" {
		return ""
	}
	return fmt.Sprintf("%s/%s/actions/runs/%s/attempts/%s", server, repository, run, cmp.Or(os.Getenv("GITHUB_RUN_ATTEMPT"), "1"))
}

// cacheDir is the given directory, or one of the user's cache.
func cacheDir(given, name, flag string) (string, error) {
	if given != "" {
		return given, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", codedError{exitUsage, fmt.Errorf("this user has no cache directory: name one with %s (%w)", flag, err)}
	}
	return filepath.Join(dir, "omnivision", name), nil
}

// shownStage is a stage as --output json has it.
type shownStage struct {
	Stage string `json:"stage"`
	Kept  bool   `json:"kept"`
	shownTime
	Steps  *build.Steps    `json:"steps,omitempty"` // of a build that was run here
	Result json.RawMessage `json:"result"`
}

// shownTime is how long something took. Own is the time in which no program or server of
// others was waited for; the shares of those may overlap.
type shownTime struct {
	Seconds float64            `json:"seconds"`
	Tools   float64            `json:"toolSeconds"`
	Own     float64            `json:"ownSeconds"`
	ByTool  map[string]float64 `json:"byTool,omitempty"`
}

func showTime(s conveyor.Spent) shownTime {
	shown := shownTime{Seconds: s.Total.Seconds(), Tools: s.Tools.Seconds(), Own: s.Own().Seconds(), ByTool: map[string]float64{}}
	for tool, took := range s.ByTool {
		shown.ByTool[tool] = took.Seconds()
	}
	return shown
}

// line is the time for people: the shares in order of their names, and ours.
func (s shownTime) line() string {
	var shares []string
	for _, tool := range slices.Sorted(maps.Keys(s.ByTool)) {
		shares = append(shares, fmt.Sprintf("%s %.2f s", tool, s.ByTool[tool]))
	}
	line := fmt.Sprintf("%.1f s: %s; our own %.2f s", s.Seconds, strings.Join(shares, ", "), s.Own)
	if s.Tools > 0 {
		line += fmt.Sprintf(", %.1f %% of the tools' %.1f s", 100*s.Own/s.Tools, s.Tools)
	}
	return line
}

func (b beltRun) show(ctx context.Context, out io.Writer, subject conveyor.Subject, outcomes []conveyor.Outcome) error {
	all := showTime(conveyor.SpentSince(ctx, b.begin))
	if b.output == "json" {
		shown := struct {
			conveyor.Subject
			shownTime
			Stages []shownStage `json:"stages"`
		}{Subject: subject, shownTime: all}
		for _, o := range outcomes {
			shown.Stages = append(shown.Stages, shownStage{o.Stage, o.Kept, showTime(o.Here), steps(o), o.Result})
		}
		return printJSON(out, shown)
	}
	fmt.Fprintf(out, "%s %s of %s\n", subject.App, subject.Version, subject.Commit)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, o := range outcomes {
		line, err := inOneLine(o)
		if err != nil {
			return err
		}
		took := fmt.Sprintf("%.1f s", o.Here.Total.Seconds())
		if o.Kept {
			took = "kept"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", o.Stage, took, line)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "  %s\n", all.line())
	return err
}

// steps are those of a build in this run, nil where nothing was built.
func steps(o conveyor.Outcome) *build.Steps {
	made, ok := o.Made.(release.Built)
	if !ok || made.Steps.Cached+len(made.Steps.Run) == 0 {
		return nil
	}
	return &made.Steps
}

// inOneLine says what a stage found.
func inOneLine(o conveyor.Outcome) (string, error) {
	switch o.Stage {
	case release.Build:
		var result build.Result
		err := json.Unmarshal(o.Result, &result)
		line := fmt.Sprintf("%s in %s", result.Digest, strings.Join(result.Repositories, ", "))
		if steps := steps(o); steps != nil {
			line += "; " + steps.String()
		}
		return line, err
	case release.Scan:
		var result scan.Result
		err := json.Unmarshal(o.Result, &result)
		return result.Tally() + "; " + result.Scanner + ", database of " + result.Database.UpdatedAt.Format(time.DateOnly), err
	case release.Sign:
		var result sign.Result
		err := json.Unmarshal(o.Result, &result)
		return fmt.Sprintf("%d statements by %s", result.Statements, result.Signer), err
	case release.Publish:
		var result release.Published
		err := json.Unmarshal(o.Result, &result)
		return fmt.Sprintf("%s in %s", result.Digest, result.Repository), err
	}
	var result propose.Result
	err := json.Unmarshal(o.Result, &result)
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", result.State, cmp.Or(result.URL, result.By), strings.Join(result.Clusters, ", "))), err
}
