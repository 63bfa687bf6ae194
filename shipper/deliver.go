package shipper

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"
)

const requestTimeout = 15 * time.Second

// deliverer brings chunks to Loki, one after the other, so that the order is kept.
type deliverer struct {
	config  *Config
	options Options
	buffer  *buffer
	metrics *metrics
	client  *http.Client
	hurried chan struct{}
	hurries atomic.Bool
}

func newDeliverer(config *Config, options Options, b *buffer, m *metrics) *deliverer {
	return &deliverer{config: config, options: options, buffer: b, metrics: m, client: &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
	}}, hurried: make(chan struct{})}
}

// hurry ends the wait after a failure: the process is about to end.
func (d *deliverer) hurry() {
	if d.hurries.CompareAndSwap(false, true) {
		close(d.hurried)
	}
}

// run delivers until ctx is done, and lets a request that has begun come to its end, unless hard is done as well.
func (d *deliverer) run(ctx, hard context.Context) {
	defer d.client.CloseIdleConnections()
	failures := 0
	for ctx.Err() == nil {
		c, body, any := d.buffer.oldest()
		if !any {
			select {
			case <-ctx.Done():
				return
			case <-d.buffer.added:
			}
			continue
		}
		retry, err := d.push(hard, body)
		if hard.Err() != nil {
			return
		}
		switch {
		case err == nil:
			failures = 0
			d.metrics.delivered.Add(float64(c.records))
			d.metrics.deliveredBytes.Add(float64(len(body)))
			d.buffer.done(c)
			continue
		case !retry || d.config.Loki.RetryLimit >= 0 && failures >= d.config.Loki.RetryLimit:
			failures = 0
			d.options.Log.Error("entries are given up", "records", c.records, "error", err)
			d.metrics.errors.Inc()
			d.metrics.retriesFailed.Inc()
			d.metrics.dropped.Add(float64(c.records))
			d.buffer.done(c)
			continue
		}
		failures++
		d.metrics.retries.Inc()
		d.options.Log.Warn("Loki did not take the entries; they stay in the buffer", "records", c.records, "failures", failures, "error", err)
		if !d.wait(ctx, failures) {
			return
		}
	}
}

// wait is longer after each failure, and shaken up so that a thousand sidecars do not come back at once.
func (d *deliverer) wait(ctx context.Context, failures int) bool {
	backoff := min(d.options.Backoff<<min(failures-1, 16), d.options.MaxBackoff)
	backoff = backoff/2 + rand.N(backoff/2+1)
	hurried := d.hurried
	if d.hurries.Load() {
		hurried, backoff = nil, min(backoff, 200*time.Millisecond)
	}
	timer := time.NewTimer(backoff)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-hurried:
	case <-timer.C:
	}
	return true
}

// push sends one request. retry says whether the same request may be taken later: Loki refuses with 4xx what it will
// never take, 408 and 429 excepted.
func (d *deliverer) push(ctx context.Context, body []byte) (retry bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.config.Loki.URL, bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("push to Loki: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "omnivision-shipper")
	response, err := d.client.Do(request)
	if err != nil {
		return true, fmt.Errorf("push to Loki: %w", err)
	}
	defer response.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	code := response.StatusCode
	if code/100 == 2 {
		return false, nil
	}
	retry = code/100 != 4 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout
	return retry, fmt.Errorf("push to Loki: it answered %d: %.300q", code, said)
}
