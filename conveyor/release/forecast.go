package release

import (
	"context"
	"sync"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/revision"
)

// forecast is the plan of what a release will propose if nothing moves until then. Once the
// image is built all of it is known, and it is rendered while the scanner and Sigstore are
// waited for. It counts for exactly the files that it was made of.
type forecast struct {
	mu         sync.Mutex
	over       bool // the plan was asked for: nothing is begun any more
	base, head *revision.Tree
	plan       func() (*plan.Plan, error) // nil until the trees are known
	end        context.CancelFunc         // of the plan
	told       []string                   // while it was rendered
}

// ahead makes the forecast. Whatever stops it is found again, and said, by the stage itself.
func (r Release) ahead(ctx context.Context, before conveyor.Results) {
	request, err := r.proposal(before)
	if err != nil {
		return
	}
	change, err := r.Proposer.Preview(ctx, request)
	if err != nil {
		return
	}
	if planned := r.forecast.begin(ctx, change, r.Charts); planned != nil {
		_, _ = planned()
	}
}

// begin is nil when it is too late.
func (f *forecast) begin(ctx context.Context, change propose.Change, charts plan.ChartSource) func() (*plan.Plan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return nil
	}
	charts = toldApart{charts, f.note}
	f.base, f.head = change.Base, change.Head
	ctx, f.end = context.WithCancel(ctx)
	f.plan = sync.OnceValues(func() (*plan.Plan, error) {
		return plan.Compare(ctx, change.Base, change.Head, plan.Options{Charts: charts})
	})
	return f.plan
}

// note keeps what whoever runs the release is to be told once the plan is used.
func (f *forecast) note(warning string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, warning)
}

// of is the plan of a change, after waiting for what is being rendered, or nil if this is not
// what was foreseen. A plan that failed is made again: the reason may have passed.
func (f *forecast) of(change propose.Change, tell func(string)) *plan.Plan {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
	if f.plan == nil {
		return nil
	}
	defer f.end()
	if differ(f.base, change.Base) || differ(f.head, change.Head) {
		return nil
	}
	planned, err := f.plan()
	if err != nil || rendered(planned) != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, warning := range f.told {
		tell(warning)
	}
	same := *planned
	same.Base = plan.Side{Name: change.Base.Name, Commit: change.Base.Commit}
	same.Head = plan.Side{Name: change.Head.Name, Commit: change.Head.Commit}
	return &same
}

func differ(a, b *revision.Tree) bool { return len(revision.Changed(a, b)) > 0 }
