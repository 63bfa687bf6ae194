// Package conveyor takes a release along its stages: build, scan, sign, propose.
//
// Each stage leaves an [Entry] in a [Store]. A run goes through the stages in order and
// skips one whose entry is there, follows from the entry before it, and still holds
// when the world is asked (Stage.Check): an image that is gone from the registry is
// built again, however often a file says that it was built. So a run that was killed at
// any point is simply run again.
//
// What a stage does is in a package of its own below this one. This package knows their
// order and what each needs of the ones before it.
package conveyor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// Stage is one station of the belt.
type Stage struct {
	Name string
	// Check asks the world whether the result of an earlier run still holds. The
	// error says why not, and the stage runs again. Nil means that the stage runs
	// each time: it finds out by itself that there is nothing left to do.
	Check func(ctx context.Context, before Results, result json.RawMessage) error
	// Run does the work and returns its result, which must be the same for the same
	// work done twice.
	Run func(ctx context.Context, before Results, report func(detail string)) (result any, err error)
	// Ahead is what of it can be done before its turn; nil is nothing.
	Ahead *Ahead
}

// Results are what the stages before one found.
type Results map[string]json.RawMessage

// Read puts the result of a stage into the value that it was made from.
func (r Results) Read(stage string, into any) error {
	raw, ok := r[stage]
	if !ok {
		return fmt.Errorf("stage %s has no result: it comes first", stage)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("reading the result of stage %s: %w", stage, err)
	}
	return nil
}

// Watcher is told of a run as it goes, by one call at a time.
type Watcher interface {
	Started(stage string)
	Progress(stage, detail string)
	Ended(stage string, took time.Duration, err error)
}

// Outcome is how a stage was passed.
type Outcome struct {
	Entry
	Kept bool  // from an earlier run, and it still holds
	Here Spent // on this stage in this run
	Made any   // what Stage.Run returned, with what of it is no evidence; nil if it did not run
}

// Spent is how long something took, and for how much of it a tool was waited for: a program
// or a server that is not ours. The rest is our own.
type Spent struct {
	Total  time.Duration            `json:"total"` // nanoseconds, as all here
	Tools  time.Duration            `json:"tools"`
	ByTool map[string]time.Duration `json:"byTool,omitempty"` // more than Tools together if several worked at once
}

// Own is the time in which no tool was waited for.
func (s Spent) Own() time.Duration { return s.Total - s.Tools }

// Belt is the stages for one subject.
type Belt struct {
	Subject Subject
	Stages  []Stage
	Store   Store
	Watcher Watcher
}

// StageError says which stage stopped the belt.
type StageError struct {
	Stage string
	Err   error
}

func (e *StageError) Error() string { return fmt.Sprintf("stage %q: %v", e.Stage, e.Err) }

// Unwrap returns why.
func (e *StageError) Unwrap() error { return e.Err }

// Run takes the subject to the stage called until, and through all of them if until is
// empty. It returns what the stages found, up to the one that failed.
func (b Belt) Run(ctx context.Context, until string) ([]Outcome, error) {
	stages, err := b.upTo(until)
	if err != nil {
		return nil, err
	}
	if err := b.Subject.check(); err != nil {
		return nil, err
	}
	unlock, err := b.Store.Lock(ctx, b.Subject.App)
	if err != nil {
		return nil, err
	}
	defer unlock()
	beside := newBeside(ctx)
	defer beside.end()
	var (
		outcomes []Outcome
		results  = Results{}
		follows  string
	)
	for _, stage := range stages {
		outcome, err := b.pass(ctx, stage, results, follows)
		if err != nil {
			return outcomes, &StageError{Stage: stage.Name, Err: err}
		}
		outcomes = append(outcomes, outcome)
		results[stage.Name] = outcome.Result
		follows = digest(outcome.Result)
		beside.begin(stages, stage.Name, results)
	}
	return outcomes, nil
}

func (b Belt) upTo(until string) ([]Stage, error) {
	if until == "" {
		return b.Stages, nil
	}
	var names []string
	for i, stage := range b.Stages {
		if stage.Name == until {
			return b.Stages[:i+1], nil
		}
		names = append(names, stage.Name)
	}
	return nil, fmt.Errorf("there is no stage %q; there are %s", until, strings.Join(names, ", "))
}

// pass takes the subject through one stage.
func (b Belt) pass(ctx context.Context, stage Stage, before Results, follows string) (Outcome, error) {
	if err := ctx.Err(); err != nil {
		return Outcome{}, context.Cause(ctx)
	}
	begin := time.Now()
	b.Watcher.Started(stage.Name)
	ctx, clock := tooltime.With(ctx)
	outcome, err := b.keptOrRun(ctx, stage, before, follows)
	outcome.Here = spent(begin, clock)
	b.Watcher.Ended(stage.Name, outcome.Here.Total, err)
	return outcome, err
}

func (b Belt) keptOrRun(ctx context.Context, stage Stage, before Results, follows string) (Outcome, error) {
	entry, err := b.Store.Read(b.Subject, stage.Name)
	if err != nil {
		return Outcome{}, err
	}
	report := func(detail string) { b.Watcher.Progress(stage.Name, detail) }
	if entry != nil && stage.Check != nil {
		why := errStale
		if entry.Follows == follows {
			why = stage.Check(ctx, before, entry.Result)
		}
		if why == nil {
			return Outcome{Entry: *entry, Kept: true}, nil
		}
		report("again: " + why.Error())
	}
	return b.run(ctx, stage, before, follows, report)
}

// SpentSince is how long it is since a time, with what the clock in the context
// (tooltime.With) has counted.
func SpentSince(ctx context.Context, begin time.Time) Spent {
	return spent(begin, tooltime.In(ctx))
}

func spent(begin time.Time, clock *tooltime.Clock) Spent {
	waited := clock.Spent()
	return Spent{Total: time.Since(begin), Tools: waited.Tools, ByTool: waited.ByTool}
}

var errStale = errors.New("what comes before it has changed")

func (b Belt) run(ctx context.Context, stage Stage, before Results, follows string, report func(string)) (Outcome, error) {
	begin := time.Now()
	ctx, clock := tooltime.With(ctx)
	result, err := stage.Run(ctx, before, report)
	if err != nil {
		return Outcome{}, err
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return Outcome{}, fmt.Errorf("writing the result down: %w", err)
	}
	entry := Entry{
		Subject: b.Subject, Stage: stage.Name, Follows: follows, Result: raw,
		Started: begin.UTC(), Spent: spent(begin, clock),
	}
	return Outcome{Entry: entry, Made: result}, b.Store.Write(entry)
}

// digest names a result by its content. It is compacted first: the store indents.
func digest(result json.RawMessage) string {
	var value any
	// A result was made by the encoder or read by the decoder: it is JSON.
	_ = json.Unmarshal(result, &value)
	canonical, _ := json.Marshal(value)
	sum := sha256.Sum256(canonical)
	return "sha256:" + hex.EncodeToString(sum[:])
}
