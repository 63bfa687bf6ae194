// Package front answers for the production host names inside the local fleet: the forge under its name,
// and every container registry under its own name out of one server.
//
// Goal: Git URLs, chart and image references stay exactly those of production; only names and
// certificates lead elsewhere. Limits: it routes and renames, it stores nothing and authenticates nobody.
// Reading is open to whoever reaches it; writing to a registry is for the addresses in Options.Writers,
// as a production node's role may pull and not push.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"

	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/edge/target"
)

// Kind is how a route treats its requests.
type Kind string

const (
	// Proxy passes requests on as they are.
	Proxy Kind = "proxy"
	// Registry puts the repositories of a host below the route's prefix in a shared registry.
	Registry Kind = "registry"
)

// Route sends host names to a target.
type Route struct {
	Hosts []string `json:"hosts"`
	Kind  Kind     `json:"kind"`
	// Prefix of a registry's repositories; by default the first host.
	Prefix string        `json:"prefix,omitempty"`
	Target target.Target `json:"target"`
}

// Validate checks one route.
func (r Route) Validate() error {
	if len(r.Hosts) == 0 {
		return errors.New("a route has no hosts")
	}
	for _, h := range r.Hosts {
		if err := validateHost(h); err != nil {
			return err
		}
	}
	switch {
	case r.Kind != Proxy && r.Kind != Registry:
		return fmt.Errorf("route %s: kind is %q, want %q or %q", r.Hosts[0], r.Kind, Proxy, Registry)
	case r.Kind == Proxy && r.Prefix != "":
		return fmt.Errorf("route %s: only a registry has a prefix", r.Hosts[0])
	case r.Kind == Registry && !nameOnly.MatchString(r.prefix()):
		return fmt.Errorf("route %s: prefix %q cannot begin a repository name", r.Hosts[0], r.prefix())
	}
	if err := r.Target.Validate(); err != nil {
		return fmt.Errorf("route %s: %w", r.Hosts[0], err)
	}
	return nil
}

func (r Route) prefix() string {
	if r.Prefix != "" {
		return r.Prefix
	}
	return r.Hosts[0]
}

func validateHost(h string) error {
	if h != normalHost(h) || h == "" || len(h) > 253 || strings.ContainsAny(h, ":/ *?#@") {
		return fmt.Errorf("host %q: want a host name in lower case, without port or wildcard", h)
	}
	if net.ParseIP(h) != nil {
		return fmt.Errorf("host %q: is an address; the edge's own address needs no route", h)
	}
	return nil
}

// Options of a Front.
type Options struct {
	CA *ca.Authority
	// Address is the one that the front listens on. A request that names it as its host is a registry
	// mirror's and says in its query (?ns=HOST) which registry it means.
	Address net.IP
	Dialer  *target.Dialer
	// Writers may push. Others get 403.
	Writers []netip.Prefix
	// Access gets one record for each request; nil for none.
	Access *slog.Logger
	// Log gets the server's own trouble.
	Log *slog.Logger
}

// Front routes by host name. It is immutable: a reload makes another.
type Front struct {
	opts       Options
	routes     map[string]*route
	certs      certificates
	transports []*http.Transport
}

type route struct {
	host    string
	label   string
	prefix  string // of a registry
	kind    Kind
	proxy   *httputil.ReverseProxy
	handler func(w http.ResponseWriter, r *http.Request, ns string) error
}

// New makes a front for routes.
func New(routes []Route, opts Options) (*Front, error) {
	if opts.CA == nil || opts.Dialer == nil {
		return nil, errors.New("front: CA and Dialer are required")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	f := &Front{opts: opts, routes: map[string]*route{}}
	for _, r := range routes {
		if err := r.Validate(); err != nil {
			return nil, err
		}
		transport, err := opts.Dialer.Transport(r.Target)
		if err != nil {
			return nil, err
		}
		f.transports = append(f.transports, transport)
		for _, host := range r.Hosts {
			if _, ok := f.routes[host]; ok {
				return nil, fmt.Errorf("host %q has two routes", host)
			}
			f.routes[host] = f.newRoute(host, r, transport)
		}
	}
	f.certs = certificates{authority: opts.CA, address: opts.Address, cache: map[string]*tls.Certificate{}}
	return f, nil
}

// Close lets go of idle connections to the targets. Requests in flight end by themselves.
func (f *Front) Close() {
	for _, t := range f.transports {
		t.CloseIdleConnections()
	}
}

func (f *Front) newRoute(host string, r Route, transport http.RoundTripper) *route {
	out := &route{host: host, kind: r.Kind, label: r.Target.String(), prefix: r.prefix()}
	base := &url.URL{Scheme: r.Target.Scheme(), Host: r.Target.Address}
	if base.Host == "" {
		base.Host = host
	}
	out.proxy = &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // progress of a Git transfer and server-sent events are worth nothing late
		BufferPool:    buffers,
		ErrorLog:      slog.NewLogLogger(f.opts.Log.Handler(), slog.LevelWarn),
		ErrorHandler:  f.upstreamError(host, r.Target),
	}
	if r.Kind == Registry {
		out.handler = f.registryHandler(out, base)
		return out
	}
	out.proxy.Rewrite = func(p *httputil.ProxyRequest) {
		p.SetURL(base)
		p.Out.Host = host
		p.SetXForwarded()
		p.Out.Header.Set("X-Forwarded-Proto", "https")
		p.Out.Header.Set("X-Forwarded-Host", host)
		p.Out.Header.Set("X-Real-IP", p.Out.Header.Get("X-Forwarded-For"))
	}
	out.handler = func(w http.ResponseWriter, r *http.Request, _ string) error {
		out.proxy.ServeHTTP(w, r)
		return nil
	}
	return out
}

func (f *Front) upstreamError(host string, t target.Target) func(http.ResponseWriter, *http.Request, error) {
	return func(w http.ResponseWriter, r *http.Request, err error) {
		var p *problem
		switch {
		case errors.As(err, &p):
		case errors.Is(err, context.Canceled) || r.Context().Err() != nil:
			// The status of a client that went away, as nginx logs it; nobody receives it.
			p = &problem{499, "CLIENT_CLOSED", "the client closed the connection"}
		default:
			f.opts.Log.Warn("target does not answer", "host", host, "target", t.String(), "error", err.Error())
			p = &problem{http.StatusBadGateway, "UNAVAILABLE",
				fmt.Sprintf("%s is served by %s, which does not answer: %v. `omnivision status` shows whether it runs.", host, t, err)}
		}
		writeError(w, r, p)
	}
}

// ServeHTTP answers requests that came over TLS.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	record := f.record(w, r)
	defer record.write()
	if err := f.serve(record, r); err != nil {
		writeError(record, r, err)
	}
}

func (f *Front) serve(w *accessRecord, r *http.Request) error {
	// A target may answer before the whole request has passed; HTTP/2 can do so anyway, and says ErrNotSupported.
	_ = http.NewResponseController(w).EnableFullDuplex()
	host := normalHost(r.Host)
	if r.TLS != nil && r.TLS.ServerName != "" && normalHost(r.TLS.ServerName) != host {
		return &problem{http.StatusMisdirectedRequest, "MISDIRECTED",
			fmt.Sprintf("the connection was opened for %s, the request is for %s", abbreviate(r.TLS.ServerName, 253), abbreviate(host, 253))}
	}
	if f.isOwnAddress(host) {
		return f.serveMirror(w, r)
	}
	route, ok := f.routes[host]
	if !ok {
		return &problem{http.StatusMisdirectedRequest, "UNKNOWN_HOST",
			fmt.Sprintf("the local fleet has no server for the host %q: add a route for it to the edge's configuration", abbreviate(host, 253))}
	}
	w.route = route.host
	return route.handler(w, r, "")
}

// serveMirror answers containerd's mirror requests: with https://ADDRESS as the mirror of a registry in
// certs.d, the registry's name is in the query only.
// https://github.com/containerd/containerd/blob/main/docs/hosts.md
func (f *Front) serveMirror(w *accessRecord, r *http.Request) error {
	ns := normalHost(r.URL.Query().Get("ns"))
	if ns == "" {
		if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
			w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte("{}")) // the client is gone: nobody to tell
			return nil
		}
		return &problem{http.StatusNotFound, "UNKNOWN_HOST",
			"a request to the edge's address must name a registry as a mirror request does (?ns=HOST); otherwise use the host's name"}
	}
	route, ok := f.routes[ns]
	if !ok || route.kind != Registry {
		return &problem{http.StatusNotFound, "UNKNOWN_HOST",
			fmt.Sprintf("the local fleet has no registry %q: add a route for it to the edge's configuration", abbreviate(ns, 253))}
	}
	w.route = route.host
	return route.handler(w, r, ns)
}

func (f *Front) isOwnAddress(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.Equal(f.opts.Address)
}

// Redirect answers requests without TLS as the production hosts do: known names are sent to https.
func (f *Front) Redirect(w http.ResponseWriter, r *http.Request) {
	record := f.record(w, r)
	defer record.write()
	host := normalHost(r.Host)
	if _, ok := f.routes[host]; !ok && !f.isOwnAddress(host) {
		writeError(record, r, &problem{http.StatusMisdirectedRequest, "UNKNOWN_HOST",
			fmt.Sprintf("the local fleet has no server for the host %q: add a route for it to the edge's configuration", abbreviate(host, 253))})
		return
	}
	u := *r.URL
	u.Scheme, u.Host = "https", host
	if strings.Contains(host, ":") {
		u.Host = "[" + host + "]"
	}
	record.Header().Set("Location", u.String())
	record.WriteHeader(http.StatusPermanentRedirect)
}

// normalHost is a host as routes are keyed: lower case, without port and without the root's dot.
func normalHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

type bufferPool struct{ pool sync.Pool }

var buffers httputil.BufferPool = &bufferPool{sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}

func (p *bufferPool) Get() []byte  { return *p.pool.Get().(*[]byte) }
func (p *bufferPool) Put(b []byte) { p.pool.Put(&b) }
