package story

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type recorder struct{ lines []string }

func (r *recorder) Started(step string)          { r.lines = append(r.lines, "start "+step) }
func (r *recorder) Progress(step, detail string) { r.lines = append(r.lines, step+": "+detail) }
func (r *recorder) Ended(step string, _ time.Duration, err error) {
	if err != nil {
		step += " failed"
	}
	r.lines = append(r.lines, "end "+step)
}

func ok(context.Context, func(string)) error { return nil }

func TestStepsWaitForWhatTheyComeAfterAndOverlapOtherwise(t *testing.T) {
	met := make(chan struct{})
	meet := func(ctx context.Context, _ func(string)) error { // ends only if both run at once
		select {
		case met <- struct{}{}:
		case <-met:
		case <-ctx.Done():
			return ctx.Err()
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r := &recorder{}
	timings, err := Run(ctx, []Step{
		{Name: "first", Run: func(_ context.Context, report func(string)) error { report("half"); return nil }},
		{Name: "left", After: []string{"first"}, Run: meet},
		{Name: "right", After: []string{"first"}, Run: meet},
		{Name: "last", After: []string{"left", "right"}, Run: ok},
	}, r)
	if err != nil {
		t.Fatal(err)
	}
	if len(timings) != 4 || timings[3].Step != "last" {
		t.Errorf("timings = %v", timings)
	}
	text := strings.Join(r.lines, "\n")
	if !strings.HasPrefix(text, "start first\nfirst: half\nend first\n") || !strings.HasSuffix(text, "start last\nend last") {
		t.Errorf("the story went:\n%s", text)
	}
}

func TestAFailureCancelsTheRestAndIsNamed(t *testing.T) {
	var after atomic.Bool
	_, err := Run(context.Background(), []Step{
		{Name: "slow", Run: func(ctx context.Context, _ func(string)) error { <-ctx.Done(); return ctx.Err() }},
		{Name: "bad", Run: func(context.Context, func(string)) error { return errors.New("no disk") }},
		{Name: "later", After: []string{"bad"}, Run: func(context.Context, func(string)) error { after.Store(true); return nil }},
	}, &recorder{})
	if err == nil || err.Error() != `step "bad": no disk` {
		t.Errorf("err = %v", err)
	}
	if after.Load() {
		t.Error("a step ran after the failure")
	}
}

func TestAnImpossibleListIsRefused(t *testing.T) {
	for name, steps := range map[string][]Step{
		"unknown":  {{Name: "a", After: []string{"b"}, Run: ok}},
		"circle":   {{Name: "a", After: []string{"b"}, Run: ok}, {Name: "b", After: []string{"a"}, Run: ok}},
		"repeated": {{Name: "a", Run: ok}, {Name: "a", Run: ok}},
	} {
		if _, err := Run(context.Background(), steps, &recorder{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCancellationIsReported(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Run(ctx, []Step{
		{Name: "a", Run: func(ctx context.Context, _ func(string)) error { cancel(); <-ctx.Done(); return ctx.Err() }},
		{Name: "b", After: []string{"a"}, Run: ok},
	}, &recorder{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

// takes is a step that does nothing for so long, in the time of a synctest.
func takes(d time.Duration) func(context.Context, func(string)) error {
	return func(ctx context.Context, _ func(string)) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestTimingsAreThoseOfTheStepsInTheOrderOfTheirEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		timings, err := Run(t.Context(), []Step{
			{Name: "long", Run: takes(5 * time.Second)},
			{Name: "short", Run: takes(2 * time.Second)},
			{Name: "after short", After: []string{"short"}, Run: takes(time.Second)},
			{Name: "last", After: []string{"long", "after short"}, Run: takes(time.Second)},
		}, &recorder{})
		if err != nil {
			t.Fatal(err)
		}
		want := []Timing{{"short", 2 * time.Second}, {"after short", time.Second}, {"long", 5 * time.Second}, {"last", time.Second}}
		if !slices.Equal(timings, want) {
			t.Errorf("timings %v, want %v", timings, want)
		}
		// Side by side: the longest way through the list, not the sum of the steps.
		if took := time.Since(begin); took != 6*time.Second {
			t.Errorf("the story took %s, want 6s", took)
		}
	})
}

func TestEverythingThatCanRunAtOnceDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []Step
		for i := range 20 {
			steps = append(steps, Step{Name: fmt.Sprint(i), Run: takes(time.Second)})
		}
		begin := time.Now()
		if _, err := Run(t.Context(), steps, &recorder{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("20 steps of a second each took %s", took)
		}
	})
}

func TestAFailureEndsTheOthersAndWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tidied := false
		r := &recorder{}
		timings, err := Run(t.Context(), []Step{
			{Name: "bad", Run: func(ctx context.Context, _ func(string)) error {
				_ = takes(time.Second)(ctx, nil)
				return errors.New("no disk")
			}},
			{Name: "tidy", Run: func(ctx context.Context, _ func(string)) error {
				<-ctx.Done()
				time.Sleep(3 * time.Second) // it takes something away again
				tidied = true
				return fmt.Errorf("stop: %w", ctx.Err())
			}},
			{Name: "good", Run: func(ctx context.Context, _ func(string)) error { <-ctx.Done(); return nil }},
			{Name: "later", After: []string{"good"}, Run: ok},
		}, r)
		if err == nil || err.Error() != `step "bad": no disk` {
			t.Errorf("err = %v, want the cause alone", err)
		}
		if !tidied {
			t.Error("Run returned while a step was still running")
		}
		if want := []Timing{{"bad", time.Second}, {"good", time.Second}, {"tidy", 4 * time.Second}}; !slices.Equal(timings, want) {
			t.Errorf("timings %v, want %v", timings, want)
		}
		if text := strings.Join(r.lines, "\n"); strings.Contains(text, "later") {
			t.Errorf("a step was started after the failure:\n%s", text)
		}
	})
}

func TestTwoCausesAreBothNamed(t *testing.T) {
	_, err := Run(t.Context(), []Step{
		{Name: "first", Run: func(context.Context, func(string)) error { return errors.New("no disk") }},
		{Name: "second", Run: func(ctx context.Context, _ func(string)) error { <-ctx.Done(); return errors.New("no port") }},
	}, &recorder{})
	for _, want := range []string{`step "first": no disk`, `step "second": no port`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in the error: %v", want, err)
		}
	}
}

func TestAReportAfterTheEndHurtsNobody(t *testing.T) {
	r := &recorder{}
	late := make(chan func(string), 1)
	_, err := Run(t.Context(), []Step{{Name: "a", Run: func(_ context.Context, report func(string)) error {
		late <- report
		return nil
	}}}, r)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	go func() { (<-late)("still here"); close(said) }()
	select {
	case <-said:
	case <-time.After(10 * time.Second):
		t.Fatal("whoever reports after the end waits for ever")
	}
	if text := strings.Join(r.lines, "\n"); strings.Contains(text, "still here") {
		t.Errorf("the watcher was told after the end:\n%s", text)
	}
}

func TestAListWithoutStepsIsDoneAtOnce(t *testing.T) {
	if timings, err := Run(t.Context(), nil, &recorder{}); err != nil || len(timings) != 0 {
		t.Errorf("timings %v, err %v", timings, err)
	}
}

func TestAnImpossibleListNamesTheStepAndWhatItWaitsFor(t *testing.T) {
	_, err := Run(t.Context(), []Step{{Name: "nodes", After: []string{"network", "edge"}, Run: ok}}, &recorder{})
	if err == nil || err.Error() != `step "nodes" comes after edge, network, which the list does not name before it` {
		t.Errorf("err = %v", err)
	}
}
