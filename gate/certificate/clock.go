package certificate

import (
	"net/http"
	"sync/atomic"
	"time"
)

// APIClock tells the API server's time, as its answers do. The API server is who decides whether a certificate
// is valid; a replica whose own clock jumps must not replace what all replicas share. The zero value tells
// this machine's time until it hears from the API server.
type APIClock struct {
	ahead atomic.Int64 // nanoseconds that the API server's clock is ahead
	heard atomic.Bool
	local func() time.Time // nil is time.Now
}

// tolerated is the difference that the Date header's resolution and the way of an answer may make.
const tolerated = 5 * time.Second

// Now is the API server's time.
func (c *APIClock) Now() time.Time {
	now := c.machine()
	if c.heard.Load() {
		now = now.Add(time.Duration(c.ahead.Load()))
	}
	return now
}

func (c *APIClock) machine() time.Time {
	if c.local != nil {
		return c.local()
	}
	return time.Now().Round(0) // the wall clock: the monotonic one stops while a machine sleeps
}

// Wrap listens to what comes back; it is for rest.Config.Wrap.
func (c *APIClock) Wrap(rt http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := rt.RoundTrip(r)
		if err == nil {
			c.hear(response.Header.Get("Date"))
		}
		return response, err
	})
}

func (c *APIClock) hear(date string) {
	told, err := http.ParseTime(date)
	if err != nil {
		return
	}
	ahead := told.Sub(c.machine())
	if ahead.Abs() < tolerated {
		ahead = 0
	}
	c.ahead.Store(int64(ahead))
	c.heard.Store(true)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
