package steward

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/omnivision/omnivision/forge"
)

// Pace is how often a steward looks.
type Pace struct {
	Every time.Duration // without a reason; zero is 30 s
	Least time.Duration // between two steps, whatever happens; zero is 2 s
	Most  time.Duration // between two attempts while the forge does not answer; zero is 2 min
}

// Observer is told of each step, for metrics.
type Observer func(r Result, err error, took time.Duration)

// Run steps until the context ends: when wake fires, and every so often without. It backs
// off from a forge that does not answer, and waits as long as one asks for.
func (s *Steward) Run(ctx context.Context, wake <-chan struct{}, pace Pace, observe Observer) error {
	pace = pace.filled()
	failures := 0
	for {
		begun := time.Now()
		result, err := s.Step(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to end
		}
		if observe != nil {
			observe(result, err, time.Since(begun))
		}
		failures++
		if err == nil {
			failures = 0
		} else {
			s.log().ErrorContext(ctx, "the step failed; what is left is done in the next", "err", err, "failures", failures)
		}
		patient, wait := pace.next(result, err, failures)
		if !pause(ctx, wake, patient, wait) {
			return nil
		}
	}
}

// next is how long to wait, and how much of that whatever happens.
func (p Pace) next(r Result, err error, failures int) (patient, wait time.Duration) {
	if asked, ok := forge.RetryAfter(err); ok {
		return asked, asked
	}
	switch {
	case failures > 0:
		backoff := min(p.Least<<min(failures, 10), p.Most)
		jittered := backoff/2 + rand.N(backoff/2+1) //nolint:gosec // a hundred stewards are not to come back at once
		return jittered, jittered
	case r.Again || r.Done > 0:
		return p.Least, p.Least // what was done may let something else be done
	}
	return p.Least, p.Every
}

func (p Pace) filled() Pace {
	fill := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	fill(&p.Every, 30*time.Second)
	fill(&p.Least, 2*time.Second)
	fill(&p.Most, 2*time.Minute)
	return p
}

// pause waits, the patient part of it even if something wakes it; false if the context ends.
func pause(ctx context.Context, wake <-chan struct{}, patient, wait time.Duration) bool {
	if !sleep(ctx, nil, patient) {
		return false
	}
	return sleep(ctx, wake, wait-patient)
}

func sleep(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
		return true
	case <-timer.C:
		return true
	}
}
