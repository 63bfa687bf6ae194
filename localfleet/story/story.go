// Package story runs a list of named steps, each as soon as the steps that it
// comes after are done. The progress display, the timing report and the error
// all come from the same list.
package story

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"
)

// Step is one step of a story.
type Step struct {
	Name  string
	After []string // names of the steps that must be done first
	Run   func(ctx context.Context, report func(detail string)) error
}

// Watcher is told of the story as it goes. Its methods are called one at a time.
type Watcher interface {
	Started(step string)
	Progress(step, detail string)
	Ended(step string, took time.Duration, err error)
}

// Timing is how long a step took.
type Timing struct {
	Step string        `json:"step"`
	Took time.Duration `json:"took"`
}

// event is what a running step says.
type event struct {
	step   string
	detail string
	ended  bool
	took   time.Duration
	err    error
}

// Run runs the steps. When one fails, those that run are cancelled and waited
// for, none is started, and the error names the step. Steps that fail only
// because they were cancelled are not reported as causes.
func Run(ctx context.Context, steps []Step, watcher Watcher) ([]Timing, error) {
	if err := check(steps); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	over := make(chan struct{})
	defer close(over)
	var (
		events  = make(chan event)
		done    = map[string]bool{}
		started = map[string]bool{}
		running int
		timings []Timing
		failed  []error
	)
	startReady := func() {
		for _, step := range steps {
			if started[step.Name] || !allDone(done, step.After) {
				continue
			}
			started[step.Name] = true
			running++
			watcher.Started(step.Name)
			go runStep(ctx, step, events, over)
		}
	}
	startReady()
	for running > 0 {
		e := <-events
		if !e.ended {
			watcher.Progress(e.step, e.detail)
			continue
		}
		running--
		watcher.Ended(e.step, e.took, e.err)
		timings = append(timings, Timing{e.step, e.took})
		if e.err != nil {
			failed = append(failed, fmt.Errorf("step %q: %w", e.step, e.err))
			cancel()
			continue
		}
		done[e.step] = true
		if len(failed) == 0 && ctx.Err() == nil {
			startReady()
		}
	}
	return timings, cause(ctx, failed)
}

// runStep runs one step. What it reports after the story is over, from a
// goroutine that it left behind, goes nowhere.
func runStep(ctx context.Context, step Step, events chan<- event, over <-chan struct{}) {
	begin := time.Now()
	err := step.Run(ctx, func(detail string) {
		select {
		case events <- event{step: step.Name, detail: detail}:
		case <-over:
		}
	})
	events <- event{step: step.Name, ended: true, took: time.Since(begin), err: err}
}

func allDone(done map[string]bool, names []string) bool {
	for _, name := range names {
		if !done[name] {
			return false
		}
	}
	return true
}

// cause drops the failures that are only the echo of the first.
func cause(ctx context.Context, failed []error) error {
	var causes []error
	for _, err := range failed {
		if !errors.Is(err, context.Canceled) {
			causes = append(causes, err)
		}
	}
	if len(causes) > 0 {
		return errors.Join(causes...)
	}
	if len(failed) > 0 {
		return failed[0]
	}
	return ctx.Err()
}

// check refuses a list that could never be run to its end.
func check(steps []Step) error {
	known := map[string]bool{}
	for _, step := range steps {
		if known[step.Name] {
			return fmt.Errorf("two steps are called %q", step.Name)
		}
		var unknown []string
		for _, name := range step.After {
			if !known[name] {
				unknown = append(unknown, name)
			}
		}
		if len(unknown) > 0 {
			sort.Strings(unknown)
			return fmt.Errorf("step %q comes after %s, which the list does not name before it", step.Name, strings.Join(unknown, ", "))
		}
		known[step.Name] = true
	}
	return nil
}
