// Package release is the belt as it is run: which stages a release has, what each of
// them hands to the next, and what of their results is asked of the world again before a
// stage is skipped.
package release

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan"
)

// The stages.
const (
	Build   = "build"
	Scan    = "scan"
	Sign    = "sign"
	Propose = "propose"
)

// Release is a release of one app, with who does its stages.
type Release struct {
	App      string
	Wave     int  // 0 for a component, which every cluster gets at once
	Again    bool // propose what was taken back or rejected
	Dir      string
	Source   string // URL of the source repository
	Revision source.Revision

	Dockerfile string
	Args       map[string]string // of the build
	BaseImages map[string]string // in place of those that cannot be pulled
	Platforms  []string
	Cache      string // of layers, in a registry
	Invocation string // URL of the job, if this is one

	Repositories []name.Repository
	Registry     []remote.Option

	Builder  Builder
	Scanner  Scanner
	Proposer Proposer
	// Signer is asked for when something is to be signed: a token lives for minutes.
	Signer func(ctx context.Context) (*sign.Signer, error)
	// Policy believes what an identity signed in an earlier run.
	Policy func(verify.Identity) verify.Policy
	// Charts are where the clusters' charts come from, to plan with; nil plans nothing.
	Charts plan.ChartSource

	forecast *forecast // of this run
}

// Builder builds images and knows whether one is still there.
type Builder interface {
	Build(ctx context.Context, r build.Request, report func(string)) (build.Result, error)
	Check(ctx context.Context, repositories []name.Repository, have build.Result) error
}

// Scanner scans images and knows whether a scan still counts.
type Scanner interface {
	Scan(ctx context.Context, app string, targets []scan.Target, report func(string)) (scan.Result, error)
	Recheck(app string, have scan.Result) error
}

// Proposer brings a release into Git.
type Proposer interface {
	Propose(ctx context.Context, r propose.Request) (propose.Result, error)
	// Preview is what Propose would change now. It changes nothing.
	Preview(ctx context.Context, r propose.Request) (propose.Change, error)
}

// Belt is the release as stages. A working tree with changes is refused: what is
// released is what Git has.
func (r Release) Belt(store conveyor.Store, watcher conveyor.Watcher) (conveyor.Belt, error) {
	if r.Revision.Dirty {
		return conveyor.Belt{}, fmt.Errorf("the checkout in %s has changes that no commit has: commit or stash them", r.Dir)
	}
	var ahead *conveyor.Ahead
	if r.Charts != nil {
		r.forecast = &forecast{}
		ahead = &conveyor.Ahead{After: Build, Do: r.ahead}
	}
	return conveyor.Belt{
		Subject: conveyor.Subject{App: r.App, Commit: r.Revision.Commit, Version: r.Revision.Version},
		Store:   store, Watcher: watcher,
		Stages: []conveyor.Stage{
			{Name: Build, Check: r.checkBuild, Run: r.build},
			{Name: Scan, Check: r.checkScan, Run: r.scan},
			{Name: Sign, Check: r.checkSign, Run: r.sign},
			{Name: Propose, Run: r.propose, Ahead: ahead},
		},
	}, nil
}

// Built is what became of the first stage.
type Built struct {
	build.Result
	Invocation string `json:"invocation,omitempty"`
}

func (r Release) build(ctx context.Context, _ conveyor.Results, report func(string)) (any, error) {
	dir, err := os.MkdirTemp("", "omnivision-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the system's temporary directory
	app := App{Dockerfile: r.Dockerfile}
	ignored, err := app.ignored(r.Dir)
	if err != nil {
		return nil, err
	}
	files := filepath.Join(dir, "context")
	wanted := func(file string) (bool, error) { return app.madeOf(file, ignored) }
	if err := source.Export(ctx, r.Dir, r.Revision.Commit, files, wanted); err != nil {
		return nil, err
	}
	result, err := r.Builder.Build(ctx, build.Request{
		Context: files, Dockerfile: r.Dockerfile, Title: r.App, Source: r.Source,
		Commit: r.Revision.Commit, Version: r.Revision.Version, Time: r.Revision.Time,
		Platforms: r.Platforms, Args: r.Args, BaseImages: r.BaseImages, Repositories: r.Repositories, Cache: r.Cache,
	}, report)
	return Built{Result: result, Invocation: r.Invocation}, err
}

func (r Release) checkBuild(ctx context.Context, _ conveyor.Results, raw json.RawMessage) error {
	var have Built
	if err := json.Unmarshal(raw, &have); err != nil {
		return err
	}
	return r.Builder.Check(ctx, r.Repositories, have.Result)
}

func (r Release) scan(ctx context.Context, before conveyor.Results, report func(string)) (any, error) {
	var image Built
	if err := before.Read(Build, &image); err != nil {
		return nil, err
	}
	var targets []scan.Target
	for _, p := range image.Platforms {
		targets = append(targets, scan.Target{Platform: p.Platform, Reference: r.Repositories[0].Digest(p.Digest).String()})
	}
	return r.Scanner.Scan(ctx, r.App, targets, report)
}

func (r Release) checkScan(_ context.Context, _ conveyor.Results, raw json.RawMessage) error {
	var have scan.Result
	if err := json.Unmarshal(raw, &have); err != nil {
		return err
	}
	return r.Scanner.Recheck(r.App, have)
}

func (r Release) sign(ctx context.Context, before conveyor.Results, report func(string)) (any, error) {
	request, err := r.signing(before)
	if err != nil {
		return nil, err
	}
	signer, err := r.Signer(ctx)
	if err != nil {
		return nil, err
	}
	return sign.Publish(ctx, signer, request, report, r.Registry...)
}

func (r Release) checkSign(ctx context.Context, before conveyor.Results, raw json.RawMessage) error {
	var have sign.Result
	if err := json.Unmarshal(raw, &have); err != nil {
		return err
	}
	request, err := r.signing(before)
	if err != nil {
		return err
	}
	return sign.Check(ctx, r.Policy(have.Signer), request, r.Registry...)
}

// signing is what there is to sign, from what was built and scanned.
func (r Release) signing(before conveyor.Results) (sign.Request, error) {
	var image Built
	if err := before.Read(Build, &image); err != nil {
		return sign.Request{}, err
	}
	var scanned scan.Result
	if err := before.Read(Scan, &scanned); err != nil {
		return sign.Request{}, err
	}
	request := sign.Request{
		Digest: image.Digest, Version: r.Revision.Version, Repositories: r.Repositories,
		Origin: sign.Origin{Source: r.Source, Commit: r.Revision.Commit, Dockerfile: r.Dockerfile, Args: r.Args, Invocation: image.Invocation},
	}
	for _, p := range image.Platforms {
		at := slices.IndexFunc(scanned.Images, func(i scan.Image) bool { return i.Digest == p.Digest })
		if at < 0 {
			return sign.Request{}, fmt.Errorf("the image for %s, %s, was not scanned", p.Platform, p.Digest)
		}
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: p.Platform, Digest: p.Digest, SBOM: scanned.Images[at].SBOM, Scan: sign.ScanOf(scanned, scanned.Images[at]),
		})
	}
	return request, nil
}

func (r Release) propose(ctx context.Context, before conveyor.Results, report func(string)) (any, error) {
	request, err := r.proposal(before)
	if err != nil {
		return nil, err
	}
	facts, err := facts(before)
	if err != nil {
		return nil, err
	}
	facts = append([]propose.Fact{{Name: propose.SourceFact, Value: r.Revision.Commit}}, facts...)
	request.Describe = func(ctx context.Context, change propose.Change) (propose.Text, error) {
		return r.describe(ctx, facts, change, report)
	}
	return r.Proposer.Propose(ctx, request)
}

// proposal is what is proposed of the image that was built, without the text.
func (r Release) proposal(before conveyor.Results) (propose.Request, error) {
	var image Built
	if err := before.Read(Build, &image); err != nil {
		return propose.Request{}, err
	}
	release := fleet.Release{Tag: r.Revision.Version, Digest: image.Digest}
	return propose.Request{App: r.App, Wave: r.Wave, Release: release, Time: r.Revision.Time, Again: r.Again}, nil
}

// facts are the evidence in one line each.
func facts(before conveyor.Results) ([]propose.Fact, error) {
	var scanned scan.Result
	if err := before.Read(Scan, &scanned); err != nil {
		return nil, err
	}
	var signed sign.Result
	if err := before.Read(Sign, &signed); err != nil {
		return nil, err
	}
	all := []propose.Fact{
		{Name: "Scan", Value: scanned.Tally()},
		{Name: "Scanned by", Value: scanned.Scanner + ", database of " + scanned.Database.UpdatedAt.Format(time.RFC3339)},
		{Name: "Signed by", Value: signed.Signer.String()},
	}
	for _, e := range scanned.Excepted {
		all = append(all, propose.Fact{Name: "Let pass", Value: fmt.Sprintf("%s %s in %s until %s: %s", e.Severity, e.ID, e.Package, e.Expires, e.Reason)})
	}
	return all, nil
}

// describe adds the commits since the oldest release that the wave runs, for which registry
// and git are asked, and the plan, which is rendered meanwhile.
func (r Release) describe(ctx context.Context, facts []propose.Fact, change propose.Change, report func(string)) (propose.Text, error) {
	text := propose.Text{Facts: facts}
	var listing sync.WaitGroup
	listing.Go(func() { text.Commits, text.Total = r.sinceOldest(ctx, change.Released) })
	var planned string
	var err error
	if r.Charts != nil {
		planned, err = r.plan(ctx, change, report)
	}
	listing.Wait()
	if err != nil {
		return propose.Text{}, fmt.Errorf("planning: %w", err)
	}
	text.Plan = planned
	return text, nil
}

// sinceOldest is the longest list of commits. An image that is gone, or of a commit that this
// checkout does not have, has none: that is no reason not to release.
func (r Release) sinceOldest(ctx context.Context, released map[string]fleet.Release) (commits []source.Commit, total int) {
	for _, have := range released {
		some, count, err := r.since(ctx, have)
		if err == nil && count > total {
			commits, total = some, count
		}
	}
	return commits, total
}

// shownCommits is how many commits a proposal lists.
const shownCommits = 50

// since lists the commits after a release, whose commit its image's index names.
func (r Release) since(ctx context.Context, have fleet.Release) ([]source.Commit, int, error) {
	if have.Empty() {
		return nil, 0, nil
	}
	index, err := remote.Index(r.Repositories[0].Digest(have.Digest), append(slices.Clone(r.Registry), remote.WithContext(ctx))...)
	if err != nil {
		return nil, 0, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, 0, err
	}
	return source.Log(ctx, r.Dir, manifest.Annotations["org.opencontainers.image.revision"], r.Revision.Commit, shownCommits)
}
