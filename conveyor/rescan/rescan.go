// Package rescan looks anew for vulnerabilities in what Git says is deployed: an image
// that was clean when it was released need not be clean today.
//
// Each cluster's registry is asked for the image by the digest that Git names there, and
// each platform's image of it is scanned. The same image in two registries is the same
// bytes, and is scanned once. An image that cannot be looked at does not keep the others
// from being scanned, and is never called clean. No cluster is asked: what still runs of
// an older release, while a canary goes on, is not looked at.
package rescan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/fleet"
)

// Rescan is how to look.
type Rescan struct {
	Scanner  Scanner
	Registry []remote.Option
	// PlainHTTP speaks HTTP to the registries.
	PlainHTTP bool
	// Attest, if set, states beside each clean image that it is.
	Attest *Attestation
	// Programs are the names of images that are released from the source. Those that are
	// no app of the fleet are looked for among the components that clusters run.
	Programs []string
}

// Scanner scans the images of an app.
type Scanner interface {
	Scan(ctx context.Context, app string, targets []scan.Target, report func(string)) (scan.Result, error)
}

// Status is what there is to say of an app in a cluster.
type Status string

// The statuses.
const (
	Clean      Status = "clean"
	Vulnerable Status = "vulnerable" // HIGH or CRITICAL, and no exception
	Unknown    Status = "unknown"    // it could not be looked at
	Unreleased Status = "unreleased" // Git names no image yet
)

// Report is all that was looked at.
type Report struct {
	Scanner  string        `json:"scanner,omitempty"`
	Database scan.Database `json:"database,omitzero"`
	Deployed []Deployed    `json:"deployed"`
}

// Deployed is one app in one cluster, or a component in every cluster.
type Deployed struct {
	Cluster string `json:"cluster"`
	App     string `json:"app"`
	fleet.Release
	Status Status                `json:"status"`
	Counts map[scan.Severity]int `json:"counts,omitempty"`
	// Findings are those that an image would not be released with.
	Findings []scan.Finding  `json:"findings,omitempty"`
	Excepted []scan.Excepted `json:"excepted,omitempty"`
	Problem  string          `json:"problem,omitempty"` // why it is not known, or not stated
	Attested Attested        `json:"attested,omitempty"`
	Todo     string          `json:"todo,omitempty"` // what to do, if anything

	table      string // of the findings, for people
	repository string // that the cluster's nodes pull from
}

// Has reports whether something has this status.
func (r Report) Has(status Status) bool {
	return slices.ContainsFunc(r.Deployed, func(d Deployed) bool { return d.Status == status })
}

// Unstated reports whether something is clean and nobody will know.
func (r Report) Unstated() bool {
	return slices.ContainsFunc(r.Deployed, func(d Deployed) bool { return d.Attested == Unstated })
}

// Run looks at everything that the tree deploys. What it cannot look at is in the
// report; an error is one that concerns all of it, such as a stale database.
func (r Rescan) Run(ctx context.Context, tree fs.FS, progress func(string)) (Report, error) {
	described, err := fleet.Load(tree)
	if err != nil {
		return Report{}, err
	}
	var (
		report  = Report{Deployed: []Deployed{}}
		scanned = map[string]outcome{} // by app and digest
	)
	all, err := r.deployed(tree, described)
	if err != nil {
		return Report{}, err
	}
	for _, found := range all {
		result := r.look(ctx, found, scanned, progress)
		if err := concernsAll(ctx, result.err); err != nil {
			return Report{}, err
		}
		if result.result.Scanner != "" {
			report.Scanner, report.Database = result.result.Scanner, result.result.Database
		}
		found = found.judge(result)
		if r.Attest != nil && found.Status == Clean {
			found = found.attested(r.attest(ctx, found, result.result, progress))
		}
		report.Deployed = append(report.Deployed, found)
	}
	return report, nil
}

// deployed lists what the tree deploys: each cluster's apps, then the components.
func (r Rescan) deployed(tree fs.FS, described *fleet.Fleet) ([]Deployed, error) {
	var all []Deployed
	for _, cluster := range described.Clusters {
		for _, app := range described.Apps {
			release, err := fleet.ReadRelease(tree, app, cluster.Name)
			if err != nil {
				return nil, err
			}
			all = append(all, Deployed{Cluster: cluster.Name, App: app.Name, Release: release, repository: cluster.ImageRegistry + "/" + app.Repository})
		}
	}
	for _, program := range r.Programs {
		if _, err := described.App(program); err == nil {
			continue
		}
		target, err := described.Target(tree, program, 0)
		if errors.Is(err, fleet.ErrUnknownApp) {
			continue // of a newer source than the tree
		}
		if err != nil {
			return nil, err
		}
		runs, err := described.Runs(tree, target)
		if err != nil {
			return nil, err
		}
		if !runs {
			continue
		}
		release, err := target.Places[0].Read(tree)
		if err != nil {
			return nil, err
		}
		all = append(all, Deployed{Cluster: target.Places[0].Name, App: program, Release: release, repository: target.Repositories[0]})
	}
	return all, nil
}

// outcome is what looking at an image came to.
type outcome struct {
	result scan.Result
	err    error
}

// concernsAll keeps a report from listing one error as often as there are images.
func concernsAll(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, scan.ErrStale) {
		return err
	}
	return nil
}

// look asks this cluster's registry, and scans what no other cluster has had scanned.
func (r Rescan) look(ctx context.Context, d Deployed, scanned map[string]outcome, progress func(string)) outcome {
	if d.Empty() {
		return outcome{}
	}
	targets, err := r.targets(ctx, d)
	if err != nil {
		return outcome{err: err}
	}
	key := d.App + "@" + d.Digest
	if before, ok := scanned[key]; ok {
		return before
	}
	result, err := r.Scanner.Scan(ctx, d.App, targets, func(platform string) {
		progress(strings.TrimSpace(fmt.Sprintf("scanning %s %s %s", d.App, d.Tag, platform)))
	})
	found := outcome{result, err}
	// A scan that failed may come off from another registry.
	if err == nil || errors.As(err, new(*scan.VulnerableError)) {
		scanned[key] = found
	}
	return found
}

// targets are the images of the platforms, as this registry has them.
func (r Rescan) targets(ctx context.Context, d Deployed) ([]scan.Target, error) {
	repository, err := r.named(d)
	if err != nil {
		return nil, err
	}
	image := repository.Digest(d.Digest)
	desc, err := remote.Get(image, append(slices.Clone(r.Registry), remote.WithContext(ctx))...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", image, err)
	}
	if !desc.MediaType.IsIndex() {
		return []scan.Target{{Reference: image.String()}}, nil
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", image, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", image, err)
	}
	return platforms(image, manifest)
}

// named is the repository that an image is pulled from.
func (r Rescan) named(d Deployed) (name.Repository, error) {
	var parse []name.Option
	if r.PlainHTTP {
		parse = append(parse, name.Insecure)
	}
	repository, err := name.NewRepository(d.repository, parse...)
	if err != nil {
		return name.Repository{}, fmt.Errorf("the repository of %s in %s: %w", d.App, d.Cluster, err)
	}
	return repository, nil
}

// platforms leaves out what no node runs: builders mark attestations so.
func platforms(image name.Digest, index *v1.IndexManifest) ([]scan.Target, error) {
	var targets []scan.Target
	for _, m := range index.Manifests {
		target := scan.Target{Reference: image.Context().Digest(m.Digest.String()).String()}
		if m.Platform != nil {
			target.Platform = m.Platform.String()
		}
		if target.Platform != "unknown/unknown" {
			targets = append(targets, target)
		}
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("%s has no image of any platform", image)
	}
	return targets, nil
}

// judge says what an outcome means for a cluster.
func (d Deployed) judge(o outcome) Deployed {
	d.Counts, d.Excepted = o.result.Counts, o.result.Excepted
	var vulnerable *scan.VulnerableError
	switch {
	case d.Empty():
		d.Status = Unreleased
	case o.err == nil:
		d.Status = Clean
		if until := soonest(d.Excepted); until != "" {
			d.Todo = "fix what is excepted, by " + until
		}
	case errors.As(o.err, &vulnerable):
		d.Status, d.Findings, d.table = Vulnerable, vulnerable.Findings, vulnerable.Error()
		d.Todo = fix(vulnerable.Findings)
	default:
		d.Status, d.Problem = Unknown, o.err.Error()
		d.Todo = "make it readable, and run this again"
	}
	return d
}

// attested says what became of the statement.
func (d Deployed) attested(what Attested, err error) Deployed {
	d.Attested = what
	if err != nil {
		d.Problem, d.Todo = err.Error(), "make it possible to state: what nobody states grows too old to start"
	}
	return d
}

// soonest is the day on which the first of the exceptions ends.
func soonest(excepted []scan.Excepted) string {
	first := ""
	for _, e := range excepted {
		if first == "" || e.Expires < first {
			first = e.Expires
		}
	}
	return first
}

// fix names the packages that a new release must have newer, and those that have no
// newer version yet.
func fix(findings []scan.Finding) string {
	var update, wait []string
	for _, f := range findings {
		list := &update
		if f.Fixed == "" {
			list = &wait
		}
		if !slices.Contains(*list, f.Package) {
			*list = append(*list, f.Package)
		}
	}
	var todo []string
	if len(update) > 0 {
		todo = append(todo, "release it anew with newer "+strings.Join(update, ", "))
	}
	if len(wait) > 0 {
		todo = append(todo, "replace or except "+strings.Join(wait, ", ")+": no fixed version yet")
	}
	return strings.Join(todo, "; ")
}
