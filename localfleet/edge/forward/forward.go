// Package forward carries connections from one network namespace into another: from the machine's loopback
// to an API server or a page inside the fleet, and from the hub to a Service of a cluster.
//
// Goal: the fleet is reachable from this machine, and nothing of it listens anywhere but on loopback.
// Limits: TCP and HTTP/1.1; an HTTP forward renames hosts in headers, never in bodies.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/omnivision/omnivision/localfleet/edge/target"
	"github.com/omnivision/omnivision/localfleet/netns"
)

// Kind is what a forward understands of what it carries.
type Kind string

const (
	// TCP carries bytes.
	TCP Kind = "tcp"
	// HTTP carries requests, and can present them under another host name.
	HTTP Kind = "http"
)

// Spec is one forward.
type Spec struct {
	// Name is for people: "API server of cluster-aws".
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// Listen is a literal IP and port, in ListenNetNS; an empty ListenNetNS is the machine's own namespace,
	// where only loopback is accepted.
	Listen      string        `json:"listen"`
	ListenNetNS string        `json:"listenNetns,omitempty"`
	Target      target.Target `json:"target"`
	// Host, of an HTTP forward, is the name that the target is asked by. Empty keeps the client's, for
	// servers that make their links from it.
	Host string `json:"host,omitempty"`
}

// Validate checks the form of a forward.
func (s Spec) Validate() error {
	if s.Name == "" {
		return errors.New("a forward has no name")
	}
	if s.Kind != TCP && s.Kind != HTTP {
		return fmt.Errorf("forward %q: kind is %q, want %q or %q", s.Name, s.Kind, TCP, HTTP)
	}
	ap, err := netip.ParseAddrPort(s.Listen)
	if err != nil || ap.Port() == 0 {
		return fmt.Errorf("forward %q: listen is %q, want a literal IP and port such as 127.0.0.1:8080", s.Name, s.Listen)
	}
	if s.ListenNetNS == "" && !ap.Addr().IsLoopback() {
		return fmt.Errorf("forward %q: listen is %s, which others on the network could reach: only loopback is allowed outside the fleet's namespaces", s.Name, s.Listen)
	}
	if s.Kind == TCP && (s.Host != "" || s.Target.TLS != nil) {
		return fmt.Errorf("forward %q: host and target.tls are for kind %q; a TCP forward carries TLS as it is", s.Name, HTTP)
	}
	if err := s.Target.Validate(); err != nil {
		return fmt.Errorf("forward %q: %w", s.Name, err)
	}
	return nil
}

// Key is the socket that the forward listens on: two forwards with the same one exclude each other.
func (s Spec) Key() string { return s.ListenNetNS + "!" + s.Listen }

// Equal says whether nothing about the forward differs.
func (s Spec) Equal(o Spec) bool {
	return s.Name == o.Name && s.Kind == o.Kind && s.Listen == o.Listen && s.ListenNetNS == o.ListenNetNS && s.Host == o.Host && s.Target.Equal(o.Target)
}

// Status is what a forward does now.
type Status struct {
	Name      string `json:"name"`
	Kind      Kind   `json:"kind"`
	Listen    string `json:"listen"`
	NetNS     string `json:"netns,omitempty"`
	Target    string `json:"target"`
	Host      string `json:"host,omitempty"`
	Listening bool   `json:"listening"`
	// Open is the number of connections at this moment.
	Open int64 `json:"open"`
	// Error is why it does not listen, or what the last connection failed with.
	Error string `json:"error,omitempty"`
}

// Forward is a running forward. Its listener stays open from the moment that it can be opened until Close,
// whatever Update changes behind it.
type Forward struct {
	key    string
	dialer *target.Dialer
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}
	conns  connections

	mu        sync.Mutex
	spec      Spec
	listening bool
	lastErr   string
	http      *httpForward // of the present spec, when it is an HTTP one
	open      atomic.Int64
}

// Start begins to forward. It returns at once; a listener that cannot be opened yet (its namespace is not
// there, its port is taken) is tried again until Close.
func Start(spec Spec, dialer *target.Dialer, log *slog.Logger) (*Forward, error) {
	ctx, cancel := context.WithCancel(context.Background())
	f := &Forward{key: spec.Key(), dialer: dialer, log: log, cancel: cancel, done: make(chan struct{})}
	if err := f.Update(spec); err != nil {
		cancel()
		return nil, err
	}
	go f.run(ctx)
	return f, nil
}

// Update changes where new connections lead. The socket must be the same.
func (f *Forward) Update(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.Key() != f.key {
		return fmt.Errorf("forward %q: cannot move from %s to %s", spec.Name, f.key, spec.Key())
	}
	var next *httpForward
	if spec.Kind == HTTP {
		var err error
		if next, err = newHTTPForward(spec, f); err != nil {
			return err
		}
	}
	f.mu.Lock()
	previous := f.http
	f.spec, f.http, f.lastErr = spec, next, ""
	f.mu.Unlock()
	if previous != nil {
		go previous.shutdown(drain)
	}
	return nil
}

// drain is how long requests and connections in flight may take once their forward is closed or changed.
const drain = time.Second

// Spec is the present one.
func (f *Forward) Spec() Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spec
}

// Status is what the forward does now.
func (f *Forward) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Status{
		Name: f.spec.Name, Kind: f.spec.Kind, Listen: f.spec.Listen, NetNS: f.spec.ListenNetNS, Target: f.spec.Target.String(),
		Host: f.spec.Host, Listening: f.listening, Open: f.open.Load(), Error: f.lastErr,
	}
}

// Close stops listening, gives what is in flight a moment, and ends it.
func (f *Forward) Close() {
	f.cancel()
	<-f.done
	f.mu.Lock()
	h := f.http
	f.mu.Unlock()
	if h != nil {
		h.shutdown(drain)
	}
	f.conns.close(drain)
}

func (f *Forward) run(ctx context.Context) {
	defer close(f.done)
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		spec := f.Spec()
		l, err := netns.Listen(ctx, spec.ListenNetNS, "tcp", spec.Listen)
		if err != nil {
			f.failed(err)
			select {
			case <-ctx.Done():
			case <-time.After(backoff):
			}
			backoff = min(backoff*2, 5*time.Second)
			continue
		}
		backoff = 100 * time.Millisecond
		f.setListening(true)
		f.accept(ctx, l)
		f.setListening(false)
	}
}

// accept serves one listener until ctx is done or the listener fails.
func (f *Forward) accept(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // ends Accept
	defer stop()
	defer l.Close() //nolint:errcheck // a second close
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, or a connection that went away: the listener itself is whole.
			f.failed(fmt.Errorf("accepting a connection: %w", err))
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		f.serve(ctx, conn)
	}
}

func (f *Forward) serve(ctx context.Context, conn net.Conn) {
	f.mu.Lock()
	spec, h := f.spec, f.http
	f.mu.Unlock()
	f.open.Add(1)
	if h != nil {
		counted := &countedConn{Conn: conn, closed: func() { f.open.Add(-1) }}
		if !h.handed.put(counted) {
			_ = counted.Close() // the target changed at this very moment: the client tries again
		}
		return
	}
	go func() {
		defer f.open.Add(-1)
		f.pipe(ctx, spec.Target, conn)
	}()
}

// pipe joins conn with a connection to t until both directions have ended.
func (f *Forward) pipe(ctx context.Context, t target.Target, conn net.Conn) {
	defer conn.Close() //nolint:errcheck // closed at its end already
	dialCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	upstream, err := f.dialer.Dial(dialCtx, t)
	cancel()
	if err != nil {
		f.failed(err)
		return
	}
	defer upstream.Close() //nolint:errcheck // closed at its end already
	f.recovered()
	if !f.conns.add(conn, upstream) {
		return
	}
	defer f.conns.remove(conn, upstream)
	var both sync.WaitGroup
	both.Go(func() { halfPipe(upstream, conn) })
	both.Go(func() { halfPipe(conn, upstream) })
	both.Wait()
}

// halfPipe carries one direction and passes its end on, so that a client that has said all it has to say
// still gets the answer. A connection that broke ends both directions.
func halfPipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if err != nil {
		_ = dst.Close() // wakes the other direction
		_ = src.Close()
		return
	}
	if w, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // the peer may be gone already
	} else {
		_ = dst.Close()
	}
}

func (f *Forward) setListening(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listening = on
	if on {
		f.lastErr = ""
	}
}

// failed records an error and logs it once, not once for every attempt.
func (f *Forward) failed(err error) {
	f.mu.Lock()
	repeated := f.lastErr == err.Error()
	f.lastErr = err.Error()
	name := f.spec.Name
	f.mu.Unlock()
	if !repeated {
		f.log.Warn("forward", "name", name, "error", err.Error())
	}
}

func (f *Forward) recovered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastErr = ""
}

// connections are those that are joined now.
type connections struct {
	mu     sync.Mutex
	closed bool
	open   map[net.Conn]struct{}
	empty  chan struct{} // closed when the last ends after close began
}

func (c *connections) add(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	if c.open == nil {
		c.open = map[net.Conn]struct{}{}
	}
	for _, conn := range conns {
		c.open[conn] = struct{}{}
	}
	return true
}

func (c *connections) remove(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		delete(c.open, conn)
	}
	if c.closed && len(c.open) == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

func (c *connections) close(grace time.Duration) {
	c.mu.Lock()
	c.closed = true
	var wait chan struct{}
	if len(c.open) > 0 {
		wait = make(chan struct{})
		c.empty = wait
	}
	c.mu.Unlock()
	if wait == nil {
		return
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-wait:
		return
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Close() // ends its pipe
	}
}
