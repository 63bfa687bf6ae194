package plan

import (
	"bytes"
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan/diff"
)

// placed is an Application in a cluster, at one revision.
type placed struct {
	side    side
	cluster fleet.Cluster
	object  *unstructured.Unstructured
}

// target is nil where the cluster or the Application is not there.
func target(s side, cluster *fleet.Cluster, app *unstructured.Unstructured) *placed {
	if cluster == nil || app == nil {
		return nil
	}
	return &placed{s, *cluster, app}
}

// application compares one Application; nil means that nothing changes.
func (c *comparison) application(ctx context.Context, name string, before, after *placed) (*Application, error) {
	if after == nil {
		return removed(name, before), nil
	}
	was, err := c.parts(before)
	if err != nil {
		return nil, err
	}
	is, err := c.parts(after)
	if err != nil {
		return nil, err
	}
	if before != nil && c.unchanged(was, is) {
		return nil, nil
	}
	result := &Application{Name: name, Status: Changed, Sources: compareSources(was, is)}
	if before == nil {
		result.Status = Added
	}
	if incomparable(was, is) && before != nil {
		result.Notes = append(result.Notes, "its objects cannot be compared: one side comes from where nothing is rendered here")
		return result, nil
	}
	old, err := c.render(ctx, was)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		old = nil
		result.Notes = append(result.Notes, "the base cannot be rendered, so everything is shown as added: "+err.Error())
	}
	current, err := c.render(ctx, is)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		result.Status, result.Error = Failed, err.Error()
		return result, nil
	}
	result.Objects = compareObjects(old, current)
	if len(result.Objects) == 0 && len(result.Sources) == 0 && before != nil {
		return nil, nil // other inputs that come to the same
	}
	return result, nil
}

const finalizer = "resources-finalizer.argocd.argoproj.io"

// removed says what deleting an Application does, which is seldom what people expect (P8).
func removed(name string, before *placed) *Application {
	note := "what it brought keeps running, unmanaged: the Application has no finalizer"
	if slices.ContainsFunc(before.object.GetFinalizers(), func(f string) bool {
		return f == finalizer || len(f) > len(finalizer) && f[:len(finalizer)+1] == finalizer+"/"
	}) {
		note = "everything that it brought is deleted with it: the Application has a finalizer"
	}
	return &Application{Name: name, Status: Removed, Notes: []string{note}}
}

// unchanged compares the inputs of a rendering, without rendering the base.
func (c *comparison) unchanged(was, is []part) bool {
	return slices.EqualFunc(was, is, func(a, b part) bool {
		if a.kind != b.kind || a.key != b.key || !slices.EqualFunc(a.values, b.values, bytes.Equal) {
			return false
		}
		if b.kind != fromTree {
			return true
		}
		r := c.fromTree(b)
		return r.err == nil && r.trace.Same(a.owner.side.tree)
	})
}

// render renders what can be rendered of an Application's sources. When two of them bring
// the same object, the last one counts, as in Argo CD.
func (c *comparison) render(ctx context.Context, parts []part) ([]object, error) {
	var all []object
	for _, p := range parts {
		var objects []object
		var err error
		switch p.kind {
		case fromChart:
			objects, err = c.fromChart(ctx, p)
		case fromTree:
			r := c.fromTree(p)
			objects, err = r.objects, r.err
		}
		if err != nil {
			return nil, err
		}
		all = append(all, objects...)
	}
	return all, nil
}

// incomparable says that what was rendered from one place now comes from where it is not,
// or the other way round: comparing would show everything as removed, or as added.
func incomparable(was, is []part) bool {
	count := func(parts []part) (here, there int) {
		for _, p := range parts {
			if p.kind == elsewhere {
				there++
			} else {
				here++
			}
		}
		return here, there
	}
	hereBefore, thereBefore := count(was)
	hereAfter, thereAfter := count(is)
	return hereBefore != hereAfter && thereBefore != thereAfter
}

// compareSources finds what is different about sources that are not rendered.
func compareSources(was, is []part) []Source {
	find := func(parts []part, like part) (part, bool) {
		i := slices.IndexFunc(parts, func(p part) bool { return p.kind == elsewhere && p.identity() == like.identity() })
		if i < 0 {
			return part{}, false
		}
		return parts[i], true
	}
	var changes []Source
	for _, p := range is {
		if p.kind != elsewhere {
			continue
		}
		old, known := find(was, p)
		if known && old.key == p.key {
			continue
		}
		change := Source{Repository: p.source.RepoURL, What: p.what(), Change: diff.Added, After: p.source.TargetRevision, Reason: p.reason}
		if known {
			change.Change, change.Before = diff.Changed, old.source.TargetRevision
		}
		changes = append(changes, change)
	}
	for _, p := range was {
		if p.kind != elsewhere {
			continue
		}
		if _, kept := find(is, p); !kept {
			changes = append(changes, Source{Repository: p.source.RepoURL, What: p.what(), Change: diff.Removed, Before: p.source.TargetRevision, Reason: p.reason})
		}
	}
	return changes
}
