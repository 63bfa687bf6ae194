// Package tooltime measures how much of a piece of work was spent waiting for the programs
// and servers of others, and so how much of it is our own.
//
// What waits says so with Begin; who wants to know puts a Clock into the context. Without
// one nothing is measured. Several waits at the same time count once: the rest of the work's
// time is then the time in which nobody else was at work for it.
package tooltime

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

// Clock adds up waits. It is safe for concurrent use.
type Clock struct {
	parent *Clock
	now    func() time.Time

	mu     sync.Mutex
	all    interval
	byTool map[string]*interval
}

// Spent is what a clock shows.
type Spent struct {
	Tools time.Duration
	// ByTool are the shares. They may be more than Tools together: two may work at once.
	ByTool map[string]time.Duration
}

// interval is the time in which at least one wait was under way.
type interval struct {
	waits int
	since time.Time
	total time.Duration
}

func (i *interval) begin(now time.Time) {
	if i.waits == 0 {
		i.since = now
	}
	i.waits++
}

func (i *interval) end(now time.Time) {
	i.waits--
	if i.waits == 0 {
		i.total += now.Sub(i.since)
	}
}

func (i *interval) until(now time.Time) time.Duration {
	if i.waits > 0 {
		return i.total + now.Sub(i.since)
	}
	return i.total
}

type key struct{}

// With starts a clock for all that is done with the context. A clock that is in it already
// goes on, and counts the same waits.
func With(ctx context.Context) (context.Context, *Clock) {
	return with(ctx, time.Now)
}

func with(ctx context.Context, now func() time.Time) (context.Context, *Clock) {
	parent := In(ctx)
	clock := &Clock{parent: parent, now: now, byTool: map[string]*interval{}}
	return context.WithValue(ctx, key{}, clock), clock
}

// In is the clock of a context, nil if it has none.
func In(ctx context.Context) *Clock {
	clock, _ := ctx.Value(key{}).(*Clock)
	return clock
}

// Without is the context with no clock: what is done with it is not measured.
func Without(ctx context.Context) context.Context {
	return context.WithValue(ctx, key{}, (*Clock)(nil))
}

// Begin says that a tool is waited for, until end is called; further calls of end do
// nothing.
func Begin(ctx context.Context, tool string) (end func()) {
	clock := In(ctx)
	for c := clock; c != nil; c = c.parent {
		c.change(tool, (*interval).begin)
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			for c := clock; c != nil; c = c.parent {
				c.change(tool, (*interval).end)
			}
		})
	}
}

func (c *Clock) change(tool string, how func(*interval, time.Time)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byTool[tool] == nil {
		c.byTool[tool] = &interval{}
	}
	now := c.now()
	how(&c.all, now)
	how(c.byTool[tool], now)
}

// Spent is what was waited so far; by no clock it is nothing.
func (c *Clock) Spent() Spent {
	if c == nil {
		return Spent{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	spent := Spent{Tools: c.all.until(now), ByTool: map[string]time.Duration{}}
	for tool, i := range c.byTool {
		spent.ByTool[tool] = i.until(now)
	}
	return spent
}

// Transport counts each request until its answer has been read as waiting for a tool. Base
// is http.DefaultTransport if nil.
func Transport(tool string, base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return transport{tool: tool, base: base}
}

type transport struct {
	tool string
	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(request *http.Request) (*http.Response, error) {
	end := Begin(request.Context(), t.tool)
	response, err := t.base.RoundTrip(request)
	if err != nil || response.Body == nil || response.Body == http.NoBody {
		end()
		return response, err
	}
	response.Body = &body{ReadCloser: response.Body, end: end}
	return response, nil
}

// body ends the wait at its end: who reads all of it may close it much later.
type body struct {
	io.ReadCloser
	end func()
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.end()
	return b.ReadCloser.Close()
}
