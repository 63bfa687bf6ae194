package worker

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/omnivision/omnivision/worker/api"
)

// pool hands out devices, each to one generation at a time.
type pool struct {
	mu      sync.Mutex
	free    []string
	running map[*job]struct{}
	size    int
}

// job is a generation that has a device.
type job struct {
	device string
	frames int64
	start  time.Time
	done   atomic.Int64 // frames that were sent

	pool *pool
}

func newPool(devices []string) *pool {
	return &pool{free: append([]string(nil), devices...), running: map[*job]struct{}{}, size: len(devices)}
}

// Bounds of Retry-After. The lower one keeps callers from storming a worker
// that is about to finish, the upper one from giving up on a slow caller's job.
const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

// acquire never waits: without a free device it returns a 429.
func (p *pool) acquire(g api.Generation) (*job, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return nil, &api.Problem{
			Type: api.TypeBusy, Title: "Every GPU of this worker is busy", Status: http.StatusTooManyRequests,
			Detail:     "Try again after the number of seconds in Retry-After.",
			RetryAfter: p.retryAfter(time.Now()),
		}
	}
	j := &job{device: p.free[0], frames: int64(g.Frames), start: time.Now(), pool: p}
	p.free = p.free[1:]
	p.running[j] = struct{}{}
	return j, nil
}

func (j *job) release() {
	j.pool.mu.Lock()
	defer j.pool.mu.Unlock()
	delete(j.pool.running, j)
	j.pool.free = append(j.pool.free, j.device)
}

// retryAfter is when the first of the running jobs ends, if it goes on as fast
// as so far.
func (p *pool) retryAfter(now time.Time) time.Duration {
	soonest := maxRetry
	for j := range p.running {
		if done := j.done.Load(); done > 0 {
			soonest = min(soonest, now.Sub(j.start)*time.Duration(j.frames-done)/time.Duration(done))
		}
	}
	if soonest == maxRetry {
		soonest = 2 * time.Second // nothing is known yet
	}
	return max(soonest, minRetry)
}

func (p *pool) busy() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return float64(len(p.running))
}
