package propose

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/internal/tooltime"
)

// The first pause after a failure, and the longest.
const (
	firstPause = 250 * time.Millisecond
	maxPause   = 15 * time.Second
)

// ask repeats what failed for a reason that passes: a forge that cannot be reached, that
// fails, or that asks for patience.
func (p *Proposer) ask(ctx context.Context, what string, do func() error) error {
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		if p.before != nil {
			if err := p.before(what); err != nil {
				return err
			}
		}
		err := do()
		if !errors.Is(err, forge.Unavailable) && !errors.Is(err, forge.RateLimited) && !errors.Is(err, forge.NotReady) {
			return err
		}
		pausing := wait
		if asked, ok := forge.RetryAfter(err); ok {
			pausing = asked
		}
		p.report(fmt.Sprintf("%s: again in %s: %v", what, pausing, err))
		waited := tooltime.Begin(ctx, "forge")
		end := pause(ctx, pausing)
		waited()
		if end != nil {
			return fmt.Errorf("%w; the last attempt ended with: %w", end, err)
		}
	}
}

// pause waits, or says why waiting ended early.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
