package forward

import (
	"context"
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
	"time"
)

// httpForward is an HTTP server that is handed connections of the forward's listener, so that the listener
// survives a change of what is behind it.
type httpForward struct {
	spec      Spec
	forward   *Forward
	transport *http.Transport
	proxy     *httputil.ReverseProxy
	server    *http.Server
	handed    *handedListener
	loopback  bool
	// upgraded connections (websockets) leave the server's care and are ended here.
	cancel context.CancelFunc
}

func newHTTPForward(spec Spec, f *Forward) (*httpForward, error) {
	transport, err := f.dialer.Transport(spec.Target)
	if err != nil {
		return nil, fmt.Errorf("forward %q: %w", spec.Name, err)
	}
	listen, err := netip.ParseAddrPort(spec.Listen)
	if err != nil {
		return nil, fmt.Errorf("forward %q: %w", spec.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &httpForward{
		spec: spec, forward: f, transport: transport, cancel: cancel,
		handed:   newHandedListener(net.TCPAddrFromAddrPort(listen)),
		loopback: spec.ListenNetNS == "",
	}
	h.proxy = &httputil.ReverseProxy{
		Transport:      transport,
		FlushInterval:  -1, // frames and log lines are worth nothing late
		Rewrite:        h.rewrite,
		ModifyResponse: h.mapResponse,
		ErrorLog:       slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
		ErrorHandler:   h.upstreamError,
	}
	h.server = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	go func() { _ = h.server.Serve(h.handed) }() // always ErrServerClosed
	return h, nil
}

// shutdown lets requests in flight end, for a moment.
func (h *httpForward) shutdown(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := h.server.Shutdown(ctx); err != nil {
		_ = h.server.Close() // what is left is cut
	}
	h.cancel()
	h.transport.CloseIdleConnections()
}

// clientHostKey holds the name that the client asked by, for what must lead it back there.
type clientHostKey struct{}

// ServeHTTP answers one request.
func (h *httpForward) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.loopback && !loopbackHost(r.Host) {
		// A page on the internet may let its own name point to 127.0.0.1 and so speak to this listener as
		// if it were its own origin. Since the forward renames hosts, the target could not notice.
		http.Error(w, fmt.Sprintf("this address forwards to %s and answers for localhost only, not for the host %.100q", h.spec.Target, r.Host), http.StatusMisdirectedRequest)
		return
	}
	// The target may answer before the whole request has passed.
	_ = http.NewResponseController(w).EnableFullDuplex() // this server speaks HTTP/1, which can
	h.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), clientHostKey{}, r.Host)))
}

func (h *httpForward) rewrite(p *httputil.ProxyRequest) {
	host := h.spec.Host
	if host == "" {
		host = p.In.Host
	}
	p.Out.URL.Scheme = h.spec.Target.Scheme()
	p.Out.URL.Host = host
	p.Out.Host = host
	p.SetXForwarded()
	if h.spec.Host == "" {
		return
	}
	// The target is told what it would be told in production: this host, by https.
	p.Out.Header.Set("X-Forwarded-Host", host)
	p.Out.Header.Set("X-Forwarded-Proto", "https")
	// A server that compares Origin or Referer with its own name must find them equal when the browser is
	// on this forward's page, and different when it is on another.
	for _, name := range []string{"Origin", "Referer"} {
		if v := p.Out.Header.Get(name); v != "" {
			p.Out.Header.Set(name, h.renameURL(v, p.In.Host, "https", host))
		}
	}
}

func (h *httpForward) mapResponse(resp *http.Response) error {
	h.forward.recovered()
	if h.spec.Host == "" {
		return nil
	}
	local, _ := resp.Request.Context().Value(clientHostKey{}).(string)
	if l := resp.Header.Get("Location"); l != "" {
		resp.Header.Set("Location", h.renameURL(l, h.spec.Host, "http", local))
	}
	// A cookie for the production name over https would be thrown away by a browser at this address.
	if cookies := resp.Header.Values("Set-Cookie"); len(cookies) > 0 {
		mapped := make([]string, len(cookies))
		for i, c := range cookies {
			mapped[i] = localCookie(c)
		}
		resp.Header["Set-Cookie"] = mapped
	}
	// It would make the browser ask this loopback address by https from now on.
	resp.Header.Del("Strict-Transport-Security")
	return nil
}

// renameURL replaces scheme and host of a URL when its host is from.
func (h *httpForward) renameURL(raw, from, scheme, to string) string {
	u, err := url.Parse(raw)
	if err != nil || !strings.EqualFold(u.Host, from) {
		return raw
	}
	u.Scheme, u.Host = scheme, to
	return u.String()
}

// localCookie takes the attributes off that bind a cookie to the production name and to https.
func localCookie(c string) string {
	parts := strings.Split(c, ";")
	kept := parts[:1]
	for _, p := range parts[1:] {
		name, _, _ := strings.Cut(strings.TrimSpace(p), "=")
		switch strings.ToLower(name) {
		case "secure", "domain":
		default:
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ";")
}

func (h *httpForward) upstreamError(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) || r.Context().Err() != nil {
		w.WriteHeader(499) // the client went away: nobody receives it
		return
	}
	h.forward.failed(err)
	http.Error(w, fmt.Sprintf("%s: %s does not answer: %v.\n`omnivision status` shows whether it runs; the forward tries again with each request.", h.spec.Name, h.spec.Target, err), http.StatusBadGateway)
}

// loopbackHost says whether a request's host is one that only this machine gives to itself.
func loopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // RFC 6761, 6.3
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// handedListener is a listener whose connections somebody else accepted.
type handedListener struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandedListener(addr net.Addr) *handedListener {
	return &handedListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *handedListener) put(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.closed:
		return false
	}
}

// Accept implements net.Listener.
func (l *handedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *handedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *handedListener) Addr() net.Addr { return l.addr }

type countedConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}
