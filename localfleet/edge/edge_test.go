package edge

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/edge/forward"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/edge/loadbalancer"
	"github.com/omnivision/omnivision/localfleet/edge/target"
)

// With this variable set the test program is the edge itself, so that it can be killed.
const asEdge = "OMNIVISION_TEST_EDGE_CONFIG"

func TestMain(m *testing.M) {
	if path := os.Getenv(asEdge); path != "" {
		if err := Run(context.Background(), path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func loopback(port uint16) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// baseConfig is an edge on loopback whose forge answers "forge".
func baseConfig(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "edge") // t.TempDir's path is too long for a socket in some places
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	forge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "forge ", r.Host) }))
	t.Cleanup(forge.Close)
	return Config{
		StateDir: filepath.Join(dir, "state"), CADir: filepath.Join(dir, "ca"),
		Hub:    Hub{Address: netip.MustParseAddr("127.0.0.1"), HTTPSPort: freeport.Port(t), HTTPPort: freeport.Port(t)},
		Routes: []front.Route{{Hosts: []string{"github.com"}, Kind: front.Proxy, Target: target.Target{Address: strings.TrimPrefix(forge.URL, "http://")}}},
	}
}

func write(t *testing.T, path string, c Config) {
	t.Helper()
	if err := WriteConfig(path, c); err != nil {
		t.Fatal(err)
	}
}

func configPath(c Config) string { return filepath.Join(filepath.Dir(c.StateDir), "edge.json") }

// startEdge runs the edge in this process; stop ends it and returns what Run returned.
func startEdge(t *testing.T, c Config) (hup chan os.Signal, stop func() error) {
	t.Helper()
	write(t, configPath(c), c)
	ctx, cancel := context.WithCancel(context.Background())
	hup = make(chan os.Signal, 1)
	result := make(chan error, 1)
	go func() { result <- run(ctx, configPath(c), hup) }()
	stopped := false
	stop = func() error {
		cancel()
		if stopped {
			return nil
		}
		stopped = true
		return <-result
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return hup, stop
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("waited 30 s until %s: %v", what, err)
}

func waitReady(t *testing.T, c Config) {
	t.Helper()
	eventually(t, "the edge is ready", func() error { return Ready(context.Background(), c.StateDir) })
}

func status(t *testing.T, c Config) Status {
	t.Helper()
	st, err := ReadStatus(context.Background(), c.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func fetch(c Config, url string) (string, error) {
	authority, err := ca.LoadOrCreate(c.CADir)
	if err != nil {
		return "", err
	}
	transport := Transport(c.Hub, authority.Pool())
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// echo answers each line with prefix and the line.
func echo(t *testing.T, prefix string) target.Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveEcho(l, prefix)
	return target.Target{Address: l.Addr().String()}
}

func serveEcho(l net.Listener, prefix string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				fmt.Fprintln(c, prefix, lines.Text())
			}
		}()
	}
}

func say(conn net.Conn, line string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func TestReloadKeepsWhatStaysAndTakesUpWhatIsNew(t *testing.T) {
	c := baseConfig(t)
	kept, gone, added := freeport.Port(t), freeport.Port(t), freeport.Port(t)
	tcp := func(name string, port uint16) forward.Spec {
		return forward.Spec{Name: name, Kind: forward.TCP, Listen: loopback(port), Target: echo(t, name)}
	}
	c.Forwards = []forward.Spec{tcp("kept", kept), tcp("gone", gone)}
	hup, _ := startEdge(t, c)
	waitReady(t, c)
	before := status(t, c)

	conn, err := net.Dial("tcp", loopback(kept))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := say(conn, "1"); err != nil || got != "kept 1" {
		t.Fatalf("%q %v", got, err)
	}

	next := c
	next.Forwards = []forward.Spec{c.Forwards[0], tcp("added", added)}
	next.Routes = append(next.Routes, front.Route{Hosts: []string{"git.example.org"}, Kind: front.Proxy, Target: c.Routes[0].Target})
	// A cluster that is not up, as when `up` adds one.
	next.Clusters = []Cluster{{Name: "cluster-gcp", Kubeconfig: "/no/such/kubeconfig", LoadBalancer: &loadbalancer.Options{Addresses: []string{"10.111.2.11"}}}}
	write(t, configPath(c), next)
	hup <- syscall.SIGHUP
	eventually(t, "the new configuration is in force", func() error {
		if status(t, c).ConfigDigest == before.ConfigDigest {
			return errors.New("still the old one")
		}
		return Ready(context.Background(), c.StateDir)
	})
	if got, err := say(conn, "2"); err != nil || got != "kept 2" {
		t.Errorf("the connection did not survive the reload: %q %v", got, err)
	}
	fresh, err := net.Dial("tcp", loopback(added))
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if got, err := say(fresh, "1"); err != nil || got != "added 1" {
		t.Errorf("%q %v", got, err)
	}
	eventually(t, "the forward that is gone is closed", func() error {
		conn, err := net.Dial("tcp", loopback(gone))
		if err != nil {
			return nil
		}
		conn.Close()
		return errors.New("it still accepts")
	})
	// The authority did not vouch for the new host before: it does now.
	if body, err := fetch(c, "https://git.example.org/"); err != nil || body != "forge git.example.org" {
		t.Errorf("%q %v", body, err)
	}
	st := status(t, c)
	if len(st.Clusters) != 1 || st.Clusters[0].Connected || !strings.Contains(st.Clusters[0].Error, "not up yet") {
		t.Errorf("clusters: %+v", st.Clusters)
	}

	// A wrong file changes nothing, and says so.
	if err := os.WriteFile(configPath(c), []byte(`{"stateDirr": "x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Reload(context.Background(), c.StateDir); err == nil || !strings.Contains(err.Error(), "stateDirr") {
		t.Errorf("got %v, want the unknown key named", err)
	}
	if got := status(t, c); got.ConfigDigest != st.ConfigDigest || !strings.Contains(got.ConfigError, "stateDirr") || !got.Ready {
		t.Errorf("after a wrong file: %+v", got)
	}
	if got, err := say(conn, "3"); err != nil || got != "kept 3" {
		t.Errorf("%q %v", got, err)
	}
	write(t, configPath(c), next)
	if err := Reload(context.Background(), c.StateDir); err != nil {
		t.Error(err)
	}
	if got := status(t, c).ConfigError; got != "" {
		t.Errorf("the error outlived its cause: %s", got)
	}
}

func TestStopEndsWithinTwoSecondsWithRequestsInFlight(t *testing.T) {
	c := baseConfig(t)
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hang.Close()
	port := freeport.Port(t)
	c.Routes[0].Target.Address = strings.TrimPrefix(hang.URL, "http://")
	c.Forwards = []forward.Spec{
		{Name: "tcp", Kind: forward.TCP, Listen: loopback(port), Target: echo(t, "e")},
		{Name: "http", Kind: forward.HTTP, Listen: loopback(freeport.Port(t)), Target: c.Routes[0].Target},
	}
	_, stop := startEdge(t, c)
	waitReady(t, c)
	conn, err := net.Dial("tcp", loopback(port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := say(conn, "x"); err != nil {
		t.Fatal(err)
	}
	go fetch(c, "https://github.com/slow")
	go http.Get("http://" + c.Forwards[1].Listen)
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	if _, err := os.Stat(socketPath(c.StateDir)); err == nil {
		t.Error("the control socket is left behind")
	}
}

func TestSecondEdgeIsRefused(t *testing.T) {
	c := baseConfig(t)
	startEdge(t, c)
	waitReady(t, c)
	err := run(context.Background(), configPath(c), nil)
	if err == nil || !strings.Contains(err.Error(), "another edge serves") {
		t.Errorf("got %v", err)
	}
	if err := Ready(context.Background(), c.StateDir); err != nil {
		t.Errorf("the first one suffered: %v", err)
	}
}

func TestTakenPortKeepsOnlyItselfWaiting(t *testing.T) {
	c := baseConfig(t)
	taken, err := net.Listen("tcp", c.Hub.listen(c.Hub.HTTPPort))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	startEdge(t, c)
	eventually(t, "the rest serves", func() error {
		body, err := fetch(c, "https://github.com/")
		if err == nil && body != "forge github.com" {
			err = errors.New(body)
		}
		return err
	})
	err = Ready(context.Background(), c.StateDir)
	if err == nil || !strings.Contains(err.Error(), c.Hub.listen(c.Hub.HTTPPort)) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want the address that is taken", err)
	}
	taken.Close()
	waitReady(t, c)
}

// The edge as a process: it is killed, started again over what it left, reloaded and ended by signals.
func TestProcessSurvivesKillAndObeysSignals(t *testing.T) {
	c := baseConfig(t)
	write(t, configPath(c), c)
	spawn := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asEdge+"="+configPath(c))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		eventually(t, "the edge is ready", func() error {
			st, err := ReadStatus(context.Background(), c.StateDir)
			if err == nil && (st.PID != cmd.Process.Pid || !st.Ready) {
				err = fmt.Errorf("%+v", st)
			}
			return err
		})
		return cmd
	}
	first := spawn()
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if _, err := os.Stat(socketPath(c.StateDir)); err != nil {
		t.Fatalf("the kill left no socket to stumble over: %v", err)
	}
	second := spawn()
	digest := status(t, c).ConfigDigest
	next := c
	next.Forwards = []forward.Spec{{Name: "new", Kind: forward.TCP, Listen: loopback(freeport.Port(t)), Target: echo(t, "e")}}
	write(t, configPath(c), next)
	if err := second.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "SIGHUP is obeyed", func() error {
		if status(t, c).ConfigDigest == digest {
			return errors.New("the old configuration is in force")
		}
		return nil
	})
	begin := time.Now()
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("SIGTERM took %s", took)
	}
}

func TestConfigErrorsNameWhatIsWrong(t *testing.T) {
	good := func() Config {
		return Config{
			StateDir: "/s", CADir: "/c", Hub: DefaultHub(),
			Routes:   productionRoutes(target.Target{NetNS: "ov-hub", Address: "127.0.0.1:3000"}, target.Target{NetNS: "ov-hub", Address: "127.0.0.1:5000"}),
			Clusters: []Cluster{{Name: "cluster-aws", Kubeconfig: "/k", LoadBalancer: &loadbalancer.Options{Addresses: []string{"10.111.1.11"}}}},
			Forwards: []forward.Spec{
				{Name: "a", Kind: forward.TCP, Listen: "127.0.0.1:1", Target: target.Target{Address: "127.0.0.1:2"}},
				{Name: "b", Kind: forward.TCP, Listen: "10.111.0.1:8443", ListenNetNS: "ov-hub", Target: target.Target{Service: &target.Service{Cluster: "cluster-aws", Namespace: "argocd", Name: "argocd-server", Port: "https"}}},
			},
		}
	}
	for name, tc := range map[string]struct {
		edit func(*Config)
		want string
	}{
		"good":                {func(*Config) {}, ""},
		"relative folder":     {func(c *Config) { c.CADir = "ca" }, "absolute"},
		"long socket path":    {func(c *Config) { c.StateDir = "/" + strings.Repeat("x", 120) }, "107 bytes"},
		"hub in the open":     {func(c *Config) { c.Hub.NetNS = "" }, "only loopback"},
		"no hub":              {func(c *Config) { c.Hub.Address = netip.Addr{} }, "hub.address"},
		"host twice":          {func(c *Config) { c.Routes = append(c.Routes, c.Routes[0]) }, "two routes"},
		"port twice":          {func(c *Config) { c.Forwards[1] = c.Forwards[0] }, `as forward "a" does`},
		"the front's port":    {func(c *Config) { c.Forwards[1].Listen = "10.111.0.1:443" }, "as the front does"},
		"unknown cluster":     {func(c *Config) { c.Clusters = nil }, "no such cluster"},
		"cluster twice":       {func(c *Config) { c.Clusters = append(c.Clusters, c.Clusters[0]) }, "twice"},
		"relative kubeconfig": {func(c *Config) { c.Clusters[0].Kubeconfig = "k" }, "absolute"},
		"no addresses":        {func(c *Config) { c.Clusters[0].LoadBalancer.Addresses = nil }, "addresses is empty"},
	} {
		c := good()
		tc.edit(&c)
		path := filepath.Join(t.TempDir(), "edge.json")
		err := WriteConfig(path, c)
		if tc.want != "" {
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got %v, want %q", name, err, tc.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		read, digest, err := ReadConfig(path)
		if err != nil || !strings.HasPrefix(digest, "sha256:") {
			t.Errorf("%s: %v", name, err)
		}
		if a, b := mustJSON(t, read), mustJSON(t, c); !strings.Contains(a, "10.111.0.1/32") || len(read.Forwards) != 2 {
			t.Errorf("%s: read %s, wrote %s", name, a, b)
		}
	}
	path := filepath.Join(t.TempDir(), "edge.json")
	for content, want := range map[string]string{"": "EOF", "{}{}": "something follows", `{"routes":[{"hosts":["a"],"kindd":"x"}]}`: "kindd"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ReadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", content, err, want)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := openLog(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 500 {
		if _, err := fmt.Fprintf(l, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	var total int64
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 1000 {
			t.Errorf("%s has %d bytes", p, info.Size())
		}
		total += info.Size()
	}
	data, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(data), "line 499\n") || !strings.HasPrefix(string(data), "line ") || total < 1000 {
		t.Errorf("%d bytes kept, %v", total, err)
	}
}

// productionRoutes are those of a fleet with a registry in each cloud.
func productionRoutes(forge, registry target.Target) []front.Route {
	registries := append([]string{"123456789012.dkr.ecr.us-west-2.amazonaws.com", "europe-west1-docker.pkg.dev"}, front.Upstreams...)
	return front.Routes([]string{"github.com"}, registries, forge, registry)
}
