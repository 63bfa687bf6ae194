// Package shipper is a substitute for Fluent Bit, for the local fleet alone, where Fluent Bit's image cannot be pulled. It
// reads the same configuration files, as the Fluent Operator renders them from the tree's CRs, and understands of them
// what these use: the tail input with the CRI multi-line parser, the multiline and parser filters, the loki output. A
// plugin that it does not know is an error, so that it never ships less than a real Fluent Bit would without a word.
//
// Goals: no line is lost or doubled over rotation, a crash, a Loki that is away, a reload; bounded memory and disk.
//
// Every second what was read is written into a chunk, a file that holds the lines as Loki takes them and the positions in
// all log files behind the last line in it. Reading goes on behind the newest chunk, whatever happened to the process. A
// chunk is deleted when Loki has it; one that is sent twice because the process died in between has the same labels, times
// and lines, which Loki stores once. Limits: a chunk is not synced to disk, so a node that loses power may lose a second.
package shipper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are what the configuration files do not say. The zero values are the defaults.
type Options struct {
	// Poll is how often files are looked at for new lines; default 100 ms.
	Poll time.Duration
	// Backoff is the first wait after Loki refused, default 500 ms; it doubles up to MaxBackoff, default 30 s.
	Backoff, MaxBackoff time.Duration
	// Settle is how long after the order to stop late lines are waited for; default 500 ms.
	Settle time.Duration
	// Watch is how often the configuration is looked at for changes; default 1 s, negative for never.
	Watch time.Duration
	// Listen replaces the address of the HTTP server that the configuration names.
	Listen string
	Log    *slog.Logger
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&o.Poll, 100*time.Millisecond)
	set(&o.Backoff, 500*time.Millisecond)
	set(&o.MaxBackoff, 30*time.Second)
	set(&o.Settle, 500*time.Millisecond)
	set(&o.Watch, time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Shipper ships the logs of one Pod.
type Shipper struct {
	path    string
	options Options
	metrics *metrics
	started time.Time
	// reload carries the answer of each demanded reload back.
	reload chan chan error
	// address is sent the HTTP server's once it listens.
	address chan net.Addr
}

// New makes a Shipper that is configured by the classic configuration file at path.
func New(path string, options Options) *Shipper {
	return &Shipper{path: path, options: options.withDefaults(), metrics: newMetrics(), started: time.Now(),
		reload: make(chan chan error), address: make(chan net.Addr, 1)}
}

// Registry has the metrics, under Fluent Bit's names.
func (s *Shipper) Registry() *prometheus.Registry { return s.metrics.registry }

// Reload reads the configuration anew; what is wrong with it is returned, and the old one stays.
func (s *Shipper) Reload(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case s.reload <- answer:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run ships until ctx is done. Then it reads what is left, and has the configuration's Grace to deliver it; what is not
// delivered stays in the buffer.
func (s *Shipper) Run(ctx context.Context) error {
	config, err := s.firstConfig(ctx)
	if err != nil || config == nil {
		return err
	}
	stopHTTP, err := s.serve(config)
	if err != nil {
		return err
	}
	defer stopHTTP()
	changes := s.watch(ctx)
	for {
		next, err := s.runWith(ctx, config, changes)
		if err != nil || next == nil {
			return err
		}
		config = next
	}
}

// firstConfig waits for the configuration, which in a new namespace may come after the first Pod. It is nil at the end.
func (s *Shipper) firstConfig(ctx context.Context) (*Config, error) {
	config, err := ReadConfig(s.path, os.Getenv)
	if !errors.Is(err, fs.ErrNotExist) || s.options.Watch < 0 {
		return config, err
	}
	s.options.Log.Warn("waiting for the configuration", "file", s.path)
	tick := time.NewTicker(s.options.Watch)
	defer tick.Stop()
	for errors.Is(err, fs.ErrNotExist) {
		select {
		case <-ctx.Done():
			return nil, nil
		case <-tick.C:
		}
		config, err = ReadConfig(s.path, os.Getenv)
	}
	return config, err
}

// runWith ships with one configuration and returns the next one, or nil at the end.
func (s *Shipper) runWith(ctx context.Context, config *Config, changes <-chan struct{}) (*Config, error) {
	p, err := newPipeline(config, s.options, s.metrics)
	if err != nil {
		return nil, err
	}
	stop := make(chan bool, 1) // true: for good
	done := make(chan error, 1)
	go func() { done <- p.run(stop) }()
	for {
		var answer chan error
		select {
		case err := <-done:
			return nil, err
		case <-ctx.Done():
			stop <- true
			return nil, <-done
		case answer = <-s.reload:
		case <-changes:
			answer = make(chan error, 1)
		}
		next, err := ReadConfig(s.path, os.Getenv)
		if err == nil {
			err = next.prepare()
		}
		answer <- err
		if err != nil {
			s.metrics.reloadFailures.Inc()
			s.options.Log.Error("the changed configuration is not taken", "error", err)
			continue
		}
		s.metrics.reloads.Inc()
		s.options.Log.Info("configuration reloaded")
		stop <- false
		return next, <-done
	}
}

// watch sends when one of the configuration's files has changed.
func (s *Shipper) watch(ctx context.Context) <-chan struct{} {
	changes := make(chan struct{})
	if s.options.Watch < 0 {
		return changes
	}
	go func() {
		tick := time.NewTicker(s.options.Watch)
		defer tick.Stop()
		last := fingerprint(s.path)
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := fingerprint(s.path)
			if now == last {
				continue
			}
			select {
			case changes <- struct{}{}:
				last = now
			case <-ctx.Done():
				return
			}
		}
	}()
	return changes
}

// fingerprint tells the state of the configuration's directory. A mounted Secret is exchanged as a whole, by a link.
func fingerprint(path string) (state string) {
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*.conf"))
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			state += fmt.Sprint(file, info.Size(), info.ModTime().UnixNano(), ";")
		}
	}
	return state
}

func (s *Shipper) serve(config *Config) (stop func(), err error) {
	address := s.options.Listen
	if address == "" {
		if !config.Service.HTTPServer {
			return func() {}, nil
		}
		address = net.JoinHostPort(config.Service.HTTPListen, config.Service.HTTPPort)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics, health and reload: %w", err)
	}
	s.address <- listener.Addr()
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.options.Log.Error("serve metrics, health and reload", "error", err)
		}
	}()
	return func() { _ = server.Close() }, nil
}
