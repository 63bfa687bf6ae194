package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/revision"
)

// comparison is one run of Compare.
type comparison struct {
	base, head side
	files      []string // that differ
	charts     *chart.Once

	mu      sync.Mutex
	sources map[sourceKey]func() rendered // what several clusters take from the tree is rendered once
	loaded  map[chart.Reference]*chart.Loaded
	notes   []string
}

// used lists the charts that were rendered, and what is to be said of them.
func (c *comparison) used() ([]Chart, []string) {
	charts, warnings := []Chart{}, slices.Clone(c.notes)
	for ref, l := range c.loaded {
		charts = append(charts, Chart{Reference: ref.String(), Origin: l.Origin, Digest: l.Digest})
		if l.Warning != "" {
			warnings = append(warnings, l.Warning)
		}
	}
	slices.SortFunc(charts, func(a, b Chart) int { return strings.Compare(a.Reference, b.Reference) })
	slices.Sort(warnings)
	return charts, append([]string{}, slices.Compact(warnings)...)
}

func (c *comparison) warn(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, text)
}

// cluster compares what one cluster's root Application renders, and then each of the
// Applications in it.
func (c *comparison) cluster(ctx context.Context, p pair) (Cluster, error) {
	latest := p.latest()
	result := Cluster{Name: p.name, DisplayName: latest.DisplayName, Wave: latest.Wave, Applications: []Application{}}
	if p.head == nil {
		result.Status = Removed
		result.Note = "it is no longer in " + fleet.File + ": what runs there keeps running, and follows its branch for as long as its directory is there"
		return result, nil
	}
	before, after, err := c.roots(p)
	if err != nil {
		return Cluster{}, fmt.Errorf("rendering the root of %s: %w", p.name, err)
	}
	apps, err := c.applications(ctx, p, before, after)
	if err != nil {
		return Cluster{}, fmt.Errorf("comparing %s: %w", p.name, err)
	}
	result.Applications = append(result.Applications, apps...)
	result.Status = clusterStatus(p, result.Applications)
	return result, nil
}

func clusterStatus(p pair, apps []Application) Status {
	switch {
	case slices.ContainsFunc(apps, func(a Application) bool { return a.Status == Failed }):
		return Failed
	case p.base == nil:
		return Added
	case len(apps) > 0:
		return Changed
	}
	return Untouched
}

// root is what a cluster's root Application renders.
type root struct {
	objects []object
	apps    map[string]*unstructured.Unstructured
}

// roots renders the head's root, and the base's unless it is made of the same files.
func (c *comparison) roots(p pair) (before, after root, err error) {
	trace := c.head.tree.Trace()
	if after, err = renderRoot(trace, *p.head, c.head.tree.Name); err != nil || p.base == nil {
		return root{}, after, err
	}
	if trace.Same(c.base.tree) {
		return after, after, nil
	}
	before, err = renderRoot(c.base.tree.Trace(), *p.base, c.base.tree.Name)
	return before, after, err
}

func renderRoot(tree *revision.Trace, cluster fleet.Cluster, name string) (root, error) {
	rendered, err := fleet.Render(tree, cluster)
	var problem fleet.Problem
	if errors.As(err, &problem) {
		err = Problems{name, []fleet.Problem{problem}}
	}
	if err != nil {
		return root{}, err
	}
	r := root{apps: map[string]*unstructured.Unstructured{}}
	for _, o := range rendered {
		r.objects = append(r.objects, object{Unstructured: o})
		if fleet.IsApplication(o) {
			r.apps[o.GetName()] = o
		}
	}
	return r, nil
}

// applications compares the root itself and every Application that either side has.
func (c *comparison) applications(ctx context.Context, p pair, before, after root) ([]Application, error) {
	var changed []Application
	own := Application{Name: fleet.RootApplication, Objects: compareObjects(before.objects, after.objects)}
	if len(own.Objects) > 0 {
		own.Status = cmp.Or(addedIf(p.base == nil), Changed)
		changed = append(changed, own)
	}
	for _, name := range names(before.apps, after.apps) {
		if name == fleet.RootApplication {
			continue
		}
		app, err := c.application(ctx, name, target(c.base, p.base, before.apps[name]), target(c.head, p.head, after.apps[name]))
		if err != nil {
			return nil, fmt.Errorf("Application %s: %w", name, err)
		}
		if app != nil {
			changed = append(changed, *app)
		}
	}
	slices.SortFunc(changed, func(a, b Application) int { return strings.Compare(a.Name, b.Name) })
	return changed, nil
}

func addedIf(yes bool) Status {
	if yes {
		return Added
	}
	return ""
}

func names(a, b map[string]*unstructured.Unstructured) []string {
	var all []string
	for _, m := range []map[string]*unstructured.Unstructured{a, b} {
		for name := range m {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
