// Package lines reads log lines across clusters, each from its own Loki, and merges them by time. There is no store of
// them all: a cluster that does not answer is missing, which is told, and the others' lines are shown.
package lines

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/omnivision/omnivision/logs/loki"
)

// Selection says which lines; what is empty selects nothing away.
type Selection struct {
	// App is the workload's name: the Deployment's, Rollout's, StatefulSet's, DaemonSet's or CronJob's.
	App, Namespace, Pod, Container string
	// Grep is a text that lines contain, to the letter.
	Grep string
}

// Query is the selection in LogQL. Values are quoted, so they cannot mean anything else there.
func (s Selection) Query() string {
	return loki.Selector(map[string]string{"workload": s.App, "namespace": s.Namespace, "pod": s.Pod, "container": s.Container}) + loki.Containing(s.Grep)
}

// Source is a cluster and its Loki.
type Source struct {
	Cluster string
	Loki    *loki.Client
}

// Line is one that a container of a cluster wrote.
type Line struct {
	Cluster string
	loki.Entry
}

// Problem is a cluster that did not answer; Err is nil when it answers again.
type Problem struct {
	Cluster string
	Err     error
}

// Reader reads from all Sources at the same time.
type Reader struct {
	Sources   []Source
	Selection Selection
	// Patience is how long one Loki may take for one answer.
	Patience time.Duration
	// Report hears of each Source that does not answer and, while following, that it does again. It is not called
	// by two at the same time.
	Report func(Problem)
}

// Latest are the newest lines since a moment, the oldest first, at most limit of all clusters together. failed are the
// Sources that did not answer.
func (r *Reader) Latest(ctx context.Context, since time.Time, limit int) (lines []Line, failed int) {
	for i, entries := range r.latest(ctx, since, time.Now(), limit) {
		if entries == nil {
			failed++
			continue
		}
		lines = append(lines, r.of(i, entries)...)
	}
	return newest(lines, limit), failed
}

// latest asks each Source; nil stands for one that did not answer.
func (r *Reader) latest(ctx context.Context, since, until time.Time, limit int) [][]loki.Entry {
	found, problems := make([][]loki.Entry, len(r.Sources)), make([]error, len(r.Sources))
	var asked sync.WaitGroup
	for i, s := range r.Sources {
		asked.Go(func() {
			limited, cancel := context.WithTimeout(ctx, r.Patience)
			defer cancel()
			entries, err := s.Loki.Latest(limited, r.Selection.Query(), since, until, limit)
			if problems[i] = err; err == nil {
				found[i] = append([]loki.Entry{}, entries...)
			}
		})
	}
	asked.Wait()
	for i, err := range problems {
		if err != nil && ctx.Err() == nil {
			r.Report(Problem{r.Sources[i].Cluster, err})
		}
	}
	return found
}

func (r *Reader) of(source int, entries []loki.Entry) (lines []Line) {
	for _, e := range entries {
		lines = append(lines, Line{r.Sources[source].Cluster, e})
	}
	return lines
}

// merge orders lines by their times; those of one moment stay in the order of one cluster.
func merge(lines []Line) []Line {
	slices.SortStableFunc(lines, func(a, b Line) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Cluster, b.Cluster)) })
	return lines
}

func newest(lines []Line, limit int) []Line {
	return merge(lines)[max(0, len(lines)-limit):]
}

// Pace of following.
type Pace struct {
	// Every is how often each Loki is asked, and lines are shown.
	Every time.Duration
	// Overlap is how late a line may arrive, counted from the newest that did.
	Overlap time.Duration
}

// Follow shows the newest lines since a moment, at most limit of them, and then those that arrive, until ctx is done.
// What arrives within one Pace.Every is shown in the order of time. failing are the Sources that did not answer when it
// ended.
func (r *Reader) Follow(ctx context.Context, since time.Time, limit int, pace Pace, show func([]Line) error) (failing int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	until := time.Now()
	first := r.latest(ctx, since, until, limit)
	if ctx.Err() != nil {
		return 0, nil
	}
	arrived := make(chan batch)
	var lines []Line
	problems := make([]error, len(r.Sources))
	for i, entries := range first {
		if entries == nil {
			problems[i] = fmt.Errorf("no answer yet")
		}
		lines = append(lines, r.of(i, entries)...)
		running.Go(func() { r.follow(ctx, i, r.follower(i, since, until, limit, entries, pace), pace, arrived) })
	}
	lines = newest(lines, limit)
	tick := time.NewTicker(pace.Every)
	defer tick.Stop()
	for {
		if len(lines) > 0 {
			if err := show(merge(lines)); err != nil {
				return 0, err
			}
			lines = nil
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return count(problems), nil
			case b := <-arrived:
				lines = append(lines, r.of(b.source, b.entries)...)
				r.changed(b, problems)
			case <-tick.C:
				waiting = len(lines) == 0
			}
		}
	}
}

// changed tells of a Source that stopped answering or answers again, once.
func (r *Reader) changed(b batch, problems []error) {
	if (b.err == nil) != (problems[b.source] == nil) {
		r.Report(Problem{r.Sources[b.source].Cluster, b.err})
	}
	problems[b.source] = b.err
}

func count(problems []error) (n int) {
	for _, err := range problems {
		if err != nil {
			n++
		}
	}
	return n
}

// batch is what one Source had to say at one time.
type batch struct {
	source  int
	entries []loki.Entry
	err     error
}

// follower goes on behind what was read: not before the first line of it where limit cut the older ones off.
func (r *Reader) follower(source int, since, until time.Time, limit int, read []loki.Entry, pace Pace) *loki.Follower {
	start := until.Add(-pace.Overlap)
	if since.After(start) || read == nil {
		start = since
	}
	if len(read) >= limit && read[0].At.After(start) {
		start = read[0].At
	}
	f := &loki.Follower{Client: r.Sources[source].Loki, Query: r.Selection.Query(), Overlap: pace.Overlap}
	f.From(start, read)
	return f
}

func (r *Reader) follow(ctx context.Context, source int, f *loki.Follower, pace Pace, arrived chan<- batch) {
	tick := time.NewTicker(pace.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, r.Patience)
		entries, err := f.Next(limited)
		cancel()
		select {
		case <-ctx.Done():
			return
		case arrived <- batch{source, entries, err}:
		}
	}
}
