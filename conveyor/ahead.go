package conveyor

import (
	"context"
	"maps"
	"sync"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// Ahead is work for a stage that is done before its turn, while the stages before it wait
// for others. Only time may depend on it: it may be cut short anywhere, its failures are its
// own, and a stage that finds nothing done does all of it.
type Ahead struct {
	After string // the stage with whose result it begins
	Do    func(ctx context.Context, before Results)
}

// beside is the work ahead that is under way in a run.
type beside struct {
	ctx    context.Context //nolint:containedctx // it lives as long as one run
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// newBeside keeps the waits of the work ahead off the run's clock: while it waits for a
// tool, the stage that has its turn may be doing work of ours.
func newBeside(ctx context.Context) *beside {
	b := &beside{}
	b.ctx, b.cancel = context.WithCancel(tooltime.Without(ctx))
	return b
}

// begin starts what the passed stage was waited for.
func (b *beside) begin(stages []Stage, passed string, results Results) {
	for _, stage := range stages {
		if stage.Ahead != nil && stage.Ahead.After == passed {
			before := maps.Clone(results)
			b.work.Go(func() { stage.Ahead.Do(b.ctx, before) })
		}
	}
}

// end stops the work and waits until it has.
func (b *beside) end() {
	b.cancel()
	b.work.Wait()
}
