// Package edge is the rim of the local fleet: what the internet and the clouds would supply by name.
//
// One process serves, from one configuration file: the production host names inside the fleet (package
// front), the way from the machine's loopback into the fleet and from the hub into the clusters (package
// forward), and an address for Services of type LoadBalancer (package loadbalancer).
//
// Goal: the production tree runs unmodified, because only names and certificates are redirected. Limits:
// it supervises nothing and holds no state of its own; killed at any moment, it starts again as it was.
package edge

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/edge/forward"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/edge/target"
)

// Run serves the configuration in the file at configPath until ctx is done or the process gets SIGTERM or
// SIGINT; then it ends within 2 s. At SIGHUP it reads the file again: what stays is not interrupted, and a
// file that is wrong changes nothing.
func Run(ctx context.Context, configPath string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	return run(ctx, configPath, hup)
}

func run(ctx context.Context, configPath string, hup <-chan os.Signal) (err error) {
	config, digest, err := ReadConfig(configPath)
	if err != nil {
		return err
	}
	s, err := newServer(configPath, config.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.apply(config, digest); err != nil {
		return err
	}
	if err := s.serveControl(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			s.log.Info("stopping")
			return nil
		case <-hup:
			_ = s.reload() // logged, and shown by status
		}
	}
}

// server is the running edge.
type server struct {
	configPath string
	stateDir   string
	started    time.Time
	log        *slog.Logger
	access     *slog.Logger
	logs       []*logFile
	lock       *os.File
	control    *http.Server
	dialer     *target.Dialer
	clusters   *clusters
	front      atomic.Pointer[front.Front]

	applying sync.Mutex // one configuration at a time

	mu          sync.Mutex // of what follows; never held while waiting
	config      Config
	digest      string
	configError error
	forwards    map[string]*forward.Forward
	listeners   []*frontListener
}

func newServer(configPath, stateDir string) (*server, error) {
	if err := os.MkdirAll(stateDir, 0o750); err != nil {
		return nil, fmt.Errorf("creating the edge's folder: %w", err)
	}
	s := &server{configPath: configPath, stateDir: stateDir, started: time.Now().UTC(), forwards: map[string]*forward.Forward{}}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	for _, l := range []struct {
		name   string
		logger **slog.Logger
	}{{"edge-events.log", &s.log}, {"edge-access.log", &s.access}} {
		file, err := openLog(filepath.Join(stateDir, l.name), maxLogSize)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.logs = append(s.logs, file)
		*l.logger = slog.New(slog.NewJSONHandler(file, nil))
	}
	s.clusters = &clusters{log: s.log}
	s.dialer = &target.Dialer{Services: s.clusters}
	return s, nil
}

// takeLock keeps a second edge from taking over the socket of a first.
func (s *server) takeLock() error {
	path := filepath.Join(s.stateDir, "edge.lock")
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the edge's folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another edge serves %s: end it first, or send it SIGHUP to change what it serves", s.stateDir)
		}
		return fmt.Errorf("locking %s: %w", path, err)
	}
	s.lock = lock
	return nil
}

func (s *server) serveControl() error {
	path := socketPath(s.stateDir)
	// The lock is ours, so a socket that is there belongs to an edge that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a stale control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("opening the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return fmt.Errorf("closing the control socket to others: %w", err)
	}
	s.control = &http.Server{Handler: s.controlHandler(), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}
	go func() { _ = s.control.Serve(l) }() // always ErrServerClosed
	return nil
}

// reload reads the configuration file again.
func (s *server) reload() error {
	config, digest, err := ReadConfig(s.configPath)
	if err == nil {
		err = s.apply(config, digest)
	}
	s.mu.Lock()
	s.configError = err
	s.mu.Unlock()
	if err != nil {
		s.log.Error("the new configuration is not in force, the earlier one is", "error", err.Error())
		return fmt.Errorf("reloading the edge: %w", err)
	}
	s.log.Info("reloaded", "config", digest)
	return nil
}

// apply makes the running edge the one that config describes. What can fail comes first and changes
// nothing; after it, what is equal is not touched.
func (s *server) apply(config Config, digest string) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if config.StateDir != s.stateDir {
		return fmt.Errorf("stateDir cannot change from %s to %s while the edge runs: restart it", s.stateDir, config.StateDir)
	}
	next, err := s.newFront(config)
	if err != nil {
		return err
	}
	forwards, obsolete, err := s.planForwards(config.Forwards)
	if err != nil {
		next.Close()
		return err
	}

	s.clusters.apply(config.Clusters)
	if previous := s.front.Swap(next); previous != nil {
		previous.Close()
	}
	s.applyListeners(config.Hub)
	s.mu.Lock()
	s.forwards = forwards
	s.config, s.digest, s.configError = config, digest, nil
	s.mu.Unlock()
	closeForwards(obsolete)
	return nil
}

func (s *server) newFront(config Config) (*front.Front, error) {
	authority, err := ca.LoadOrCreate(config.CADir, config.Hosts()...)
	if err != nil {
		return nil, err
	}
	return front.New(config.Routes, front.Options{
		CA: authority, Address: config.Hub.ip(), Dialer: s.dialer, Writers: config.Writers, Access: s.access, Log: s.log,
	})
}

// planForwards returns the forwards that specs ask for, those that are no longer asked for, and starts or
// updates what is new or different.
func (s *server) planForwards(specs []forward.Spec) (next map[string]*forward.Forward, obsolete []*forward.Forward, err error) {
	s.mu.Lock()
	have := s.forwards
	s.mu.Unlock()
	for _, spec := range specs {
		// All that can go wrong with a valid forward, before the first one is touched: its authority's file.
		if _, err := s.dialer.Transport(spec.Target); err != nil {
			return nil, nil, fmt.Errorf("forward %q: %w", spec.Name, err)
		}
	}
	next = map[string]*forward.Forward{}
	var started []*forward.Forward
	for _, spec := range specs {
		f := have[spec.Key()]
		switch {
		case f == nil:
			if f, err = forward.Start(spec, s.dialer, s.log); err == nil {
				started = append(started, f)
			}
		case !f.Spec().Equal(spec):
			err = f.Update(spec)
		}
		if err != nil {
			closeForwards(started)
			return nil, nil, err
		}
		next[spec.Key()] = f
	}
	for key, f := range have {
		if next[key] == nil {
			obsolete = append(obsolete, f)
		}
	}
	return next, obsolete, nil
}

func closeForwards(forwards []*forward.Forward) {
	var closing sync.WaitGroup
	for _, f := range forwards {
		closing.Go(f.Close)
	}
	closing.Wait()
}

// applyListeners opens the front's sockets anew when the hub moved.
func (s *server) applyListeners(hub Hub) {
	s.mu.Lock()
	same := len(s.listeners) > 0 && s.config.Hub == hub
	old := s.listeners
	s.mu.Unlock()
	if same {
		return
	}
	closeListeners(old)
	secure := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.front.Load().GetCertificate(hello)
		},
	}
	https := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.front.Load().ServeHTTP(w, r) })
	plain := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.front.Load().Redirect(w, r) })
	listeners := []*frontListener{
		startFrontListener(hub.NetNS, hub.listen(hub.HTTPSPort), https, secure, s.log),
		startFrontListener(hub.NetNS, hub.listen(hub.HTTPPort), plain, nil, s.log),
	}
	s.mu.Lock()
	s.listeners = listeners
	s.mu.Unlock()
}

func closeListeners(listeners []*frontListener) {
	var closing sync.WaitGroup
	for _, l := range listeners {
		closing.Go(l.close)
	}
	closing.Wait()
}

// close ends everything at once; each part has its own grace of a second.
func (s *server) close() error {
	s.mu.Lock()
	listeners, forwards := s.listeners, s.forwards
	s.listeners, s.forwards = nil, map[string]*forward.Forward{}
	s.mu.Unlock()
	var all []*forward.Forward
	for _, f := range forwards {
		all = append(all, f)
	}
	var closing sync.WaitGroup
	closing.Go(func() { closeListeners(listeners) })
	closing.Go(func() { closeForwards(all) })
	if s.clusters != nil {
		closing.Go(s.clusters.close)
	}
	closing.Wait()
	if f := s.front.Load(); f != nil {
		f.Close()
	}
	var errs []error
	if s.control != nil {
		errs = append(errs, s.control.Close()) // removes the socket
	}
	for _, l := range s.logs {
		errs = append(errs, l.Close())
	}
	errs = append(errs, s.lock.Close()) // last: now another edge may start
	return errors.Join(errs...)
}

func (s *server) status() Status {
	s.mu.Lock()
	st := Status{PID: os.Getpid(), Started: s.started, ConfigDigest: s.digest, Substitutes: Substitutes}
	if s.configError != nil {
		st.ConfigError = s.configError.Error()
	}
	config, listeners, forwards := s.config, s.listeners, s.forwards
	s.mu.Unlock()

	for _, l := range listeners {
		ls := l.status()
		if !ls.Listening {
			st.Waiting = append(st.Waiting, fmt.Sprintf("front %s: %s", ls.Listen, ls.Error))
		}
		st.Front = append(st.Front, ls)
	}
	for _, f := range forwards {
		fs := f.Status()
		if !fs.Listening {
			st.Waiting = append(st.Waiting, fmt.Sprintf("forward %q: %s", fs.Name, fs.Error))
		}
		st.Forwards = append(st.Forwards, fs)
	}
	for _, r := range config.Routes {
		for _, h := range r.Hosts {
			st.Routes = append(st.Routes, RouteStatus{Host: h, Kind: r.Kind, Target: r.Target.String()})
		}
	}
	st.Clusters = s.clusters.status()
	slices.SortFunc(st.Forwards, func(a, b forward.Status) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Listen, b.Listen))
	})
	slices.SortFunc(st.Clusters, func(a, b ClusterStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(st.Waiting)
	st.Ready = len(listeners) > 0 && len(st.Waiting) == 0
	return st
}
