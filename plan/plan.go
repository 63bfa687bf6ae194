// Package plan says what going from one revision of the GitOps tree to another changes in
// each cluster: which objects of which Application are added, removed or changed.
//
// Both sides are rendered as the cluster's own Argo CD renders them: kustomizations and
// plain manifests of the tree, and the platform's chart at the cluster's pinned version
// with its value files, Kubernetes version and API versions (P4). What is the same on
// both sides is not rendered. What comes from other repositories is not fetched: a change
// of such a source is reported as that. The live state of a cluster is never asked for.
package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/diff"
	"github.com/omnivision/omnivision/plan/revision"
)

// ChartSource gets the chart that a cluster pins.
type ChartSource interface {
	Chart(ctx context.Context, ref chart.Reference) (*chart.Loaded, error)
}

// Options of a comparison.
type Options struct {
	// Charts is asked once for each version.
	Charts ChartSource
	// Parallel is how many clusters are rendered at once; 0 means one for each processor.
	Parallel int
}

// GCPercent suits a program that plans and then ends (debug.SetGCPercent): a plan leaves much
// garbage and keeps little, and collecting it seldom spares a fifth of the processor's time.
const GCPercent = 400

// Status of a cluster or of an Application.
type Status string

// What happens to a cluster or to an Application.
const (
	Untouched Status = "untouched"
	Changed   Status = "changed"
	Added     Status = "added"
	Removed   Status = "removed"
	Failed    Status = "failed" // the head cannot be rendered
)

// Plan is the difference of two revisions.
type Plan struct {
	Base     Side      `json:"base"`
	Head     Side      `json:"head"`
	Files    []string  `json:"files"` // that differ
	Charts   []Chart   `json:"charts"`
	Warnings []string  `json:"warnings"`
	Clusters []Cluster `json:"clusters"` // by wave, then by name
}

// Side is one of the two revisions.
type Side struct {
	Name   string `json:"name"`
	Commit string `json:"commit,omitempty"` // empty for the working tree
}

// Chart is a chart that was rendered.
type Chart struct {
	Reference string `json:"reference"`
	Origin    string `json:"origin"`
	Digest    string `json:"digest,omitempty"`
}

// Cluster is what changes in one cluster.
type Cluster struct {
	Name        string `json:"name"`
	DisplayName string `json:"displayName"`
	Wave        int    `json:"wave"`
	Status      Status `json:"status"`
	// Note says what a reader would not expect.
	Note string `json:"note,omitempty"`
	// Applications are those that change, by name.
	Applications []Application `json:"applications"`
}

// Application is what changes in one Application of a cluster.
type Application struct {
	Name    string   `json:"name"`
	Status  Status   `json:"status"`
	Error   string   `json:"error,omitempty"` // why the head cannot be rendered
	Notes   []string `json:"notes,omitempty"`
	Sources []Source `json:"sources,omitempty"`
	Objects []Object `json:"objects,omitempty"`
}

// Source is a change of where manifests come from that are not rendered here.
type Source struct {
	Repository string    `json:"repository"`
	What       string    `json:"what"` // path or chart
	Change     diff.Kind `json:"change"`
	Before     string    `json:"before,omitempty"` // revision
	After      string    `json:"after,omitempty"`
	Reason     string    `json:"reason"` // why it is not rendered
}

// Object is a difference of one object. Values of Secrets are masked.
type Object struct {
	ID         string       `json:"id"`
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Namespace  string       `json:"namespace,omitempty"`
	Name       string       `json:"name"`
	Change     diff.Kind    `json:"change"`
	Hook       string       `json:"hook,omitempty"`
	Note       string       `json:"note,omitempty"`
	Fields     []diff.Field `json:"fields,omitempty"` // of a changed object
	Diff       string       `json:"diff"`             // unified, of its YAML
}

// Changed says whether any cluster gets anything else.
func (p *Plan) Changed() bool {
	return slices.ContainsFunc(p.Clusters, func(c Cluster) bool { return c.Status != Untouched })
}

// Failures are the Applications whose head cannot be rendered, with their clusters.
func (p *Plan) Failures() []string {
	var failures []string
	for _, c := range p.Clusters {
		for _, a := range c.Applications {
			if a.Status == Failed {
				failures = append(failures, c.Name+"/"+a.Name)
			}
		}
	}
	return failures
}

// Problems are all that is wrong with a revision's files.
type Problems struct {
	Revision string
	Problems []fleet.Problem
}

func (p Problems) Error() string {
	lines := make([]string, 0, len(p.Problems)+1)
	lines = append(lines, fmt.Sprintf("%s does not hold a tree that can be rendered:", p.Revision))
	for _, problem := range p.Problems {
		lines = append(lines, "  "+problem.Error())
	}
	return strings.Join(lines, "\n")
}

// Compare says what going from base to head changes in each cluster.
func Compare(ctx context.Context, base, head *revision.Tree, o Options) (*Plan, error) {
	c, err := prepare(base, head, o)
	if err != nil {
		return nil, err
	}
	clusters := c.clusters()
	plan := &Plan{
		Base: Side{base.Name, base.Commit}, Head: Side{head.Name, head.Commit},
		Files: append([]string{}, c.files...), Clusters: make([]Cluster, len(clusters)), Charts: []Chart{}, Warnings: []string{},
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cmp.Or(o.Parallel, runtime.GOMAXPROCS(0)))
	for i, pair := range clusters {
		group.Go(func() (err error) {
			plan.Clusters[i], err = c.cluster(ctx, pair)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	plan.Charts, plan.Warnings = c.used()
	return plan, nil
}

// prepare reads both trees' fleets, after their files are found to be in order.
func prepare(base, head *revision.Tree, o Options) (*comparison, error) {
	files := revision.Changed(base, head)
	// What is the same in the base is checked as part of the head.
	changed := base.Only(func(name string) bool { _, found := slices.BinarySearch(files, name); return found })
	c := &comparison{files: files, charts: chart.NewOnce(o.Charts), sources: map[sourceKey]func() rendered{}, loaded: map[chart.Reference]*chart.Loaded{}}
	var err error
	if c.head, err = readSide(head, head); err != nil {
		return nil, err
	}
	if c.base, err = readSide(base, changed); err != nil {
		return nil, fmt.Errorf("%w\nname an earlier base that renders, with --base", err)
	}
	return c, nil
}

// side is one revision's tree with the fleet that it describes.
type side struct {
	tree  *revision.Tree
	fleet *fleet.Fleet
}

func readSide(tree, check *revision.Tree) (side, error) {
	if problems := fleet.CheckFiles(check); len(problems) > 0 {
		return side{}, Problems{tree.Name, problems}
	}
	f, err := fleet.Load(tree)
	var problem fleet.Problem
	if errors.As(err, &problem) {
		return side{}, Problems{tree.Name, []fleet.Problem{problem}}
	}
	return side{tree, f}, err
}

// pair is a cluster as both revisions have it; one of the two may not.
type pair struct {
	name       string
	base, head *fleet.Cluster
}

// clusters are those of either revision, by wave and name.
func (c *comparison) clusters() []pair {
	byName := map[string]*pair{}
	var names []string
	at := func(name string) *pair {
		if byName[name] == nil {
			byName[name] = &pair{name: name}
			names = append(names, name)
		}
		return byName[name]
	}
	for i := range c.head.fleet.Clusters {
		at(c.head.fleet.Clusters[i].Name).head = &c.head.fleet.Clusters[i]
	}
	for i := range c.base.fleet.Clusters {
		at(c.base.fleet.Clusters[i].Name).base = &c.base.fleet.Clusters[i]
	}
	pairs := make([]pair, 0, len(names))
	for _, name := range names {
		pairs = append(pairs, *byName[name])
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.latest().Wave, b.latest().Wave), strings.Compare(a.name, b.name))
	})
	return pairs
}

func (p pair) latest() *fleet.Cluster {
	if p.head != nil {
		return p.head
	}
	return p.base
}
