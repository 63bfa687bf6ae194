package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/edge/target"
)

func start(t *testing.T, spec Spec) *Forward {
	t.Helper()
	if spec.Listen == "" {
		spec.Listen = freeport.Address(t)
	}
	if spec.Name == "" {
		spec.Name = t.Name()
	}
	f, err := Start(spec, &target.Dialer{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	waitFor(t, "the forward listens", func() bool { return f.Status().Listening })
	return f
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s until %s", what)
		}
	}
}

func TestTCPForwardPassesTheEndOfEachDirectionOn(t *testing.T) {
	// The server answers only when the client has said all.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(all))
			c.Close()
		}
	}()
	f := start(t, Spec{Kind: TCP, Target: target.Target{Address: l.Addr().String()}})
	conn, err := net.Dial("tcp", f.Spec().Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || string(answer) != "1048576 bytes" {
		t.Errorf("%q %v", answer, err)
	}
	waitFor(t, "no connection is open", func() bool { return f.Status().Open == 0 })
}

func TestCloseEndsIdleConnectionsWithinItsGrace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := start(t, Spec{Kind: TCP, Target: target.Target{Address: l.Addr().String()}})
	conn, err := net.Dial("tcp", f.Spec().Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	waitFor(t, "the connection is joined", func() bool { return f.Status().Open == 1 })
	begin := time.Now()
	f.Close()
	if took := time.Since(begin); took > drain+900*time.Millisecond {
		t.Errorf("closing took %s", took)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if _, err := net.Dial("tcp", f.Spec().Listen); err == nil {
		t.Error("the listener is still open")
	}
}

func TestForwardComesUpWhenItsPortIsFreed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Start(Spec{Name: "API", Kind: TCP, Listen: taken.Addr().String(), Target: target.Target{Address: "127.0.0.1:1"}}, &target.Dialer{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	waitFor(t, "the error is shown", func() bool { return strings.Contains(f.Status().Error, "address already in use") })
	taken.Close()
	waitFor(t, "it listens", func() bool { s := f.Status(); return s.Listening && s.Error == "" })
}

func TestTargetThatIsDownIsShownAndRecovers(t *testing.T) {
	addr := freeport.Address(t)
	f := start(t, Spec{Kind: TCP, Target: target.Target{Address: addr}})
	conn, err := net.Dial("tcp", f.Spec().Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the connection closed", err)
	}
	waitFor(t, "the error is shown", func() bool { return strings.Contains(f.Status().Error, addr) })
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	again, err := net.Dial("tcp", f.Spec().Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	waitFor(t, "the error is gone", func() bool { return f.Status().Error == "" })
}

func backend(t *testing.T, h http.HandlerFunc) target.Target {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return target.Target{Address: strings.TrimPrefix(srv.URL, "http://")}
}

func request(t *testing.T, method, url string, edit func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestHTTPForwardPresentsRequestsUnderTheProductionName(t *testing.T) {
	f := start(t, Spec{Kind: HTTP, Host: "ui.omnivision.example", Target: backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://ui.omnivision.example/next?x=1")
		w.Header().Add("Set-Cookie", "session=1; Path=/; Domain=ui.omnivision.example; Secure; HttpOnly")
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		w.WriteHeader(http.StatusFound)
		fmt.Fprintf(w, "%s|%s|%s|%s|%s", r.Host, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("Origin"), r.Header.Get("Referer"), r.URL.RequestURI())
	})})
	listen := f.Spec().Listen
	resp, body := request(t, http.MethodGet, "http://"+listen+"/a%2Fb?c", func(r *http.Request) {
		r.Header.Set("Origin", "http://"+listen)
		r.Header.Set("Referer", "http://"+listen+"/login")
	})
	if want := "ui.omnivision.example|https|https://ui.omnivision.example|https://ui.omnivision.example/login|/a%2Fb?c"; body != want {
		t.Errorf("the target saw %q, want %q", body, want)
	}
	if got, want := resp.Header.Get("Location"), "http://"+listen+"/next?x=1"; got != want {
		t.Errorf("Location %q, want %q", got, want)
	}
	if got, want := resp.Header.Get("Set-Cookie"), "session=1; Path=/; HttpOnly"; got != want {
		t.Errorf("cookie %q, want %q", got, want)
	}
	if resp.Header.Get("Strict-Transport-Security") != "" {
		t.Error("loopback would be asked by https from now on")
	}
	// Another page's origin stays another.
	_, body = request(t, http.MethodPost, "http://"+listen+"/", func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:1") })
	if !strings.Contains(body, "|http://127.0.0.1:1|") {
		t.Errorf("a foreign origin was renamed: %q", body)
	}
}

func TestHTTPForwardKeepsTheClientsHostWhenNoneIsGiven(t *testing.T) {
	f := start(t, Spec{Kind: HTTP, Target: backend(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s://%s", r.Header.Get("X-Forwarded-Proto"), r.Host)
	})})
	if _, body := request(t, http.MethodGet, "http://"+f.Spec().Listen, nil); body != "http://"+f.Spec().Listen {
		t.Errorf("the target saw %q", body)
	}
}

func TestLoopbackForwardRefusesAForeignHost(t *testing.T) {
	f := start(t, Spec{Kind: HTTP, Host: "github.com", Target: backend(t, func(http.ResponseWriter, *http.Request) {})})
	for host, want := range map[string]int{
		"evil.example": http.StatusMisdirectedRequest, "evil.example:80": http.StatusMisdirectedRequest, "10.0.0.1": http.StatusMisdirectedRequest,
		"localhost": http.StatusOK, "oregon.localhost:8080": http.StatusOK, "[::1]:80": http.StatusOK, "127.0.0.1": http.StatusOK,
		"localhost.evil.example": http.StatusMisdirectedRequest,
	} {
		resp, _ := request(t, http.MethodGet, "http://"+f.Spec().Listen, func(r *http.Request) { r.Host = host })
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, resp.StatusCode, want)
		}
	}
}

func TestWebsocketPassesAndEndsWithTheForward(t *testing.T) {
	upgrader := websocket.Upgrader{}
	f := start(t, Spec{Kind: HTTP, Host: "argocd.example", Target: backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, append([]byte(r.Host+" "), data...)) != nil {
				return
			}
		}
	})})
	listen := f.Spec().Listen
	c, _, err := websocket.DefaultDialer.Dial("ws://"+listen, http.Header{"Origin": {"http://" + listen}}) // the upgrader compares Origin and Host
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := c.ReadMessage(); err != nil || string(data) != "argocd.example hello" {
		t.Errorf("%q %v", data, err)
	}
	begin := time.Now()
	f.Close()
	if took := time.Since(begin); took > 1900*time.Millisecond {
		t.Errorf("closing took %s", took)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var timeout net.Error
	if _, _, err := c.ReadMessage(); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the websocket outlived its forward: %v", err)
	}
}

func TestUpdateMovesNewRequestsAndKeepsTheListener(t *testing.T) {
	release := make(chan struct{})
	slow := backend(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "old begins")
		w.(http.Flusher).Flush()
		<-release
		fmt.Fprintln(w, "old ends")
	})
	f := start(t, Spec{Kind: HTTP, Target: slow})
	resp, err := http.Get("http://" + f.Spec().Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	reader := bufio.NewReader(resp.Body)
	if line, err := reader.ReadString('\n'); err != nil || line != "old begins\n" {
		t.Fatalf("%q %v", line, err)
	}
	next := f.Spec()
	next.Target = backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "new") })
	if err := f.Update(next); err != nil {
		t.Fatal(err)
	}
	if _, body := request(t, http.MethodGet, "http://"+f.Spec().Listen, nil); body != "new" {
		t.Errorf("a new request reached %q", body)
	}
	close(release)
	if line, err := reader.ReadString('\n'); err != nil || line != "old ends\n" {
		t.Errorf("the request in flight: %q %v", line, err)
	}
	elsewhere := next
	elsewhere.Listen = freeport.Address(t)
	if err := f.Update(elsewhere); err == nil {
		t.Error("the listener moved")
	}
}

func TestServerThatSpeaksTLSWithItsOwnCertificate(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "argocd") }))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "https://")
	f := start(t, Spec{Kind: HTTP, Target: target.Target{Address: addr, TLS: &target.TLS{SkipVerify: true}}})
	if _, body := request(t, http.MethodGet, "http://"+f.Spec().Listen, nil); body != "argocd" {
		t.Errorf("got %q", body)
	}
	strict := start(t, Spec{Kind: HTTP, Target: target.Target{Address: addr, TLS: &target.TLS{ServerName: "argocd.example"}}})
	if resp, body := request(t, http.MethodGet, "http://"+strict.Spec().Listen, nil); resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "certificate") {
		t.Errorf("an unknown certificate was accepted: %s %s", resp.Status, body)
	}
}

func TestNothingListensBeyondLoopback(t *testing.T) {
	good := Spec{Name: "x", Kind: TCP, Listen: "127.0.0.1:8080", Target: target.Target{Address: "10.111.1.2:6443"}}
	for name, tc := range map[string]struct {
		edit func(*Spec)
		want string
	}{
		"loopback":            {func(*Spec) {}, ""},
		"IPv6 loopback":       {func(s *Spec) { s.Listen = "[::1]:8080" }, ""},
		"inside the hub":      {func(s *Spec) { s.Listen, s.ListenNetNS = "10.111.0.1:8443", "ov-hub" }, ""},
		"all addresses":       {func(s *Spec) { s.Listen = "0.0.0.0:8080" }, "only loopback"},
		"a network's address": {func(s *Spec) { s.Listen = "192.168.1.5:8080" }, "only loopback"},
		"no address":          {func(s *Spec) { s.Listen = ":8080" }, "literal IP"},
		"no kind":             {func(s *Spec) { s.Kind = "" }, "kind"},
		"TLS in TCP":          {func(s *Spec) { s.Target.TLS = &target.TLS{SkipVerify: true} }, "carries TLS as it is"},
		"no target":           {func(s *Spec) { s.Target = target.Target{} }, "either address or service"},
	} {
		spec := good
		tc.edit(&spec)
		err := spec.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	if _, err := Start(Spec{Name: "x", Kind: TCP, Listen: "0.0.0.0:1", Target: good.Target}, &target.Dialer{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("started all the same")
	}
}

func TestClientThatLeavesIsNoError(t *testing.T) {
	arrived := make(chan struct{})
	f := start(t, Spec{Kind: HTTP, Target: backend(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})})
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.Spec().Listen, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-arrived; cancel() }()
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Fatal("answered")
	}
	waitFor(t, "no connection is open", func() bool { return f.Status().Open == 0 })
	if e := f.Status().Error; e != "" {
		t.Errorf("shown as %q", e)
	}
}
