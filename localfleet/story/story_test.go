package story

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
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
