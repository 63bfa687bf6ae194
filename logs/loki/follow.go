package loki

import (
	"context"
	"fmt"
	"time"
)

// page is how many lines are asked for at once: Loki's own limit unless somebody changed it.
const page = 5000

// Latest are the newest lines that a query selects in [start, end), the oldest first, at most limit of them, asked for in
// as many pages as it takes.
func (c *Client) Latest(ctx context.Context, query string, start, end time.Time, limit int) ([]Entry, error) {
	var found []Entry
	seen := map[string]bool{}
	// A later page begins with some that are known, so each is a whole one.
	for size := min(page, limit); len(found) < limit && end.After(start); size = page {
		entries, err := c.Query(ctx, query, start, end, size, true)
		if err != nil {
			return nil, err
		}
		var fresh []Entry
		for _, e := range entries {
			if key := e.key(); !seen[key] {
				seen[key] = true
				fresh = append(fresh, e)
			}
		}
		found = append(fresh, found...)
		if len(entries) < size {
			break
		}
		// Others of the page's oldest moment may be left: it is asked about again, unless it fills a page by itself.
		oldest := entries[0].At
		if end = oldest.Add(1); len(fresh) == 0 {
			end = oldest
		}
	}
	return found[max(0, len(found)-limit):], nil
}

// key tells entries apart as Loki does: two of one stream with the same time and text are one.
func (e Entry) key() string { return fmt.Sprint(e.At.UnixNano(), e.Labels, e.Line) }

// Follower hands over each line once, as lines arrive. They may come late, and out of order between containers, so each
// question reaches back by Overlap, and what was handed over is left out. A line that comes later than that after a newer
// one is not seen.
type Follower struct {
	Client  *Client
	Query   string
	Overlap time.Duration

	start time.Time
	seen  map[string]time.Time
}

// From begins to follow at start; entries that were shown already are not handed over.
func (f *Follower) From(start time.Time, shown []Entry) {
	f.start, f.seen = start, map[string]time.Time{}
	for _, e := range shown {
		f.seen[e.key()] = e.At
	}
}

// Next are the lines that are new since it was asked last, in the order of their times. With an error come those that
// were found before it; then it may be asked again, and misses nothing.
func (f *Follower) Next(ctx context.Context) (fresh []Entry, err error) {
	if f.seen == nil {
		f.seen = map[string]time.Time{}
	}
	for start := f.start; ; {
		entries, err := f.Client.Query(ctx, f.Query, start, time.Now().Add(time.Minute), page, false)
		if err != nil {
			return fresh, err
		}
		newest := start
		for _, e := range entries {
			newest = e.At
			if _, was := f.seen[e.key()]; !was {
				f.seen[e.key()] = e.At
				fresh = append(fresh, e)
			}
		}
		if len(entries) < page {
			f.forget(earlier(newest, time.Now()).Add(-f.Overlap))
			return fresh, nil
		}
		if start = newest; start.Equal(entries[0].At) {
			start = start.Add(1) // a page of one moment: asked again it would be the same
		}
	}
}

// earlier keeps a node whose clock is ahead from moving the others' lines out of reach.
func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// forget lets go of what the next question does not reach.
func (f *Follower) forget(before time.Time) {
	if !before.After(f.start) {
		return
	}
	f.start = before
	for key, at := range f.seen {
		if at.Before(before) {
			delete(f.seen, key)
		}
	}
}

// Follow hands over lines from start on as they arrive, until ctx is done, asking at each tick of every.
func (c *Client) Follow(ctx context.Context, query string, start time.Time, every, overlap time.Duration, hand func(Entry) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	f := Follower{Client: c, Query: query, Overlap: overlap}
	f.From(start, nil)
	for {
		entries, err := f.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := hand(e); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
