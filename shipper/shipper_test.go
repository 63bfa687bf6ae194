package shipper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain is also the program that TestKilledShipperLosesAndDoublesNothing kills, and that BenchmarkSidecar measures, with
// the options of a cluster.
func TestMain(m *testing.M) {
	if path := os.Getenv("SHIPPER_TEST_CONFIG"); path != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		options := Options{Poll: time.Millisecond, Backoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, Settle: 20 * time.Millisecond}
		if os.Getenv("SHIPPER_TEST_DEFAULTS") != "" {
			options = Options{}
		}
		if err := New(path, options).Run(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// loki is a server that takes pushes as Loki does, and can be told not to.
type loki struct {
	t      testing.TB
	server *httptest.Server
	mu     sync.Mutex
	refuse int // the status to refuse with; 0 to accept
	pushes int
	took   []taken
	seen   map[string]bool
	news   chan struct{} // closed and replaced at each push
}

// taken is an entry as Loki stores it: one of equal labels, time and line is stored once.
type taken struct {
	labels   map[string]string
	at, line string
	metadata map[string]string
}

func newLoki(t testing.TB) *loki {
	l := &loki{t: t, seen: map[string]bool{}, news: make(chan struct{})}
	l.server = httptest.NewServer(l)
	t.Cleanup(l.server.Close)
	return l
}

func (l *loki) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pushes++
	defer func() { close(l.news); l.news = make(chan struct{}) }()
	if l.refuse != 0 {
		w.WriteHeader(l.refuse)
		return
	}
	if err != nil {
		return // a client that was killed
	}
	var push struct {
		Streams []struct {
			Stream map[string]string
			Values [][]json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &push); err != nil {
		l.t.Errorf("a push that is no JSON: %v\n%.300q", err, body)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, s := range push.Streams {
		for _, v := range s.Values {
			e := taken{labels: s.Stream}
			_ = json.Unmarshal(v[0], &e.at)
			_ = json.Unmarshal(v[1], &e.line)
			if len(v) > 2 {
				_ = json.Unmarshal(v[2], &e.metadata)
			}
			if key := fmt.Sprint(e.labels, e.at, e.line); !l.seen[key] {
				l.seen[key] = true
				l.took = append(l.took, e)
			}
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func (l *loki) set(refuse int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = refuse
}

// wait returns when the condition, asked after each push, is true.
func (l *loki) wait(what string, condition func(l *loki) bool) []taken {
	l.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		met, news, took := condition(l), l.news, append([]taken(nil), l.took...)
		l.mu.Unlock()
		if met {
			return took
		}
		select {
		case <-news:
		case <-deadline:
			l.t.Fatalf("waited too long for %s; Loki has %d entries", what, len(took))
		}
	}
}

func (l *loki) entries(n int) []taken {
	l.t.Helper()
	return l.wait(fmt.Sprintf("%d entries", n), func(l *loki) bool { return len(l.took) >= n })
}

// pod is a Pod's logs, and a shipper for them.
type pod struct {
	t      testing.TB
	dir    string
	loki   *loki
	config string
	clock  time.Time
	stop   func() error
	s      *Shipper
}

// newPod takes the configuration that the operator renders for the sidecars, with this test's paths and server.
func newPod(t testing.TB, l *loki) *pod {
	t.Helper()
	p := &pod{t: t, dir: t.TempDir(), loki: l, clock: time.Date(2026, 11, 27, 2, 0, 0, 0, time.UTC)}
	p.config = filepath.Join(p.dir, "config", "fluent-bit.conf")
	for _, d := range []string{"config", "logs/main"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"OMNIVISION_CLUSTER": "cluster-aws", "OMNIVISION_REGION": "us-west-2", "POD_NAMESPACE": "omnivision", "OMNIVISION_WORKLOAD": "worker", "OMNIVISION_VERSION": "1.4.0", "POD_NAME": "worker-0", "POD_UID": "uid", "NODE_NAME": "gpu-0"} {
		if tt, ok := t.(interface{ Setenv(string, string) }); ok {
			tt.Setenv(name, value)
		}
	}
	p.configure()
	return p
}

// configure writes the configuration, with further replacements of old by new.
func (p *pod) configure(replacements ...string) {
	p.t.Helper()
	_, port, _ := strings.Cut(strings.TrimPrefix(p.loki.server.URL, "http://"), ":")
	replacer := strings.NewReplacer(append(replacements,
		"/var/log/pod", filepath.Join(p.dir, "logs"), "/var/lib/fluent-bit", filepath.Join(p.dir, "state"), "/fluent-bit/config", filepath.Join(p.dir, "config"),
		"loki.logging.svc", "127.0.0.1", "port    3100", "port    "+port, "Flush    1", "Flush    0.02", "flush_ms    500", "flush_ms    50",
		"Http_Server    true", "Http_Server    false", "Refresh_Interval    1", "Refresh_Interval    0.005", "Rotate_Wait    30", "Rotate_Wait    1")...)
	for _, name := range []string{"parsers.conf", "parsers_multiline.conf", "fluent-bit.conf"} {
		text, err := os.ReadFile(filepath.Join("../gate/logconfig/testdata", name))
		if err != nil {
			p.t.Fatal(err)
		}
		if err := replace(filepath.Join(p.dir, "config", name), []byte(replacer.Replace(string(text)))); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pod) start(options ...func(*Options)) {
	p.t.Helper()
	o := Options{Poll: time.Millisecond, Backoff: 2 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, Settle: 10 * time.Millisecond, Watch: -1}
	for _, change := range options {
		change(&o)
	}
	p.s = New(p.config, o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.s.Run(ctx) }()
	p.stop = func() error {
		p.stop = func() error { return nil }
		cancel()
		return <-ended
	}
	p.t.Cleanup(func() {
		if err := p.stop(); err != nil {
			p.t.Error(err)
		}
	})
}

func (p *pod) log(name string) string { return filepath.Join(p.dir, "logs", name) }

// cri is a line of a log file, each a nanosecond after the one before.
func (p *pod) cri(stream, tag, text string) string {
	p.clock = p.clock.Add(time.Nanosecond)
	return p.clock.Format(time.RFC3339Nano) + " " + stream + " " + tag + " " + text + "\n"
}

func (p *pod) write(name, text string) {
	p.t.Helper()
	f, err := os.OpenFile(p.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// numbered writes n lines that say their numbers.
func (p *pod) numbered(name string, from, n int) {
	p.t.Helper()
	var text strings.Builder
	for i := from; i < from+n; i++ {
		text.WriteString(p.cri("stdout", "F", "line "+strconv.Itoa(i)))
	}
	p.write(name, text.String())
}

// each checks that the numbers from 0 on came once each.
func each(t testing.TB, took []taken, n int) {
	t.Helper()
	count := map[int]int{}
	for _, e := range took {
		i, err := strconv.Atoi(strings.TrimPrefix(e.line, "line "))
		if err != nil {
			t.Errorf("a line that nobody wrote: %.100q", e.line)
		}
		count[i]++
	}
	lost, doubled := 0, 0
	for i := range n {
		switch c := count[i]; {
		case c == 0:
			lost++
		case c > 1:
			doubled++
		}
	}
	if lost+doubled > 0 || len(count) != n {
		t.Errorf("of %d lines %d are lost, %d came more than once, %d numbers in all", n, lost, doubled, len(count))
	}
}

func metric(t testing.TB, s *Shipper, name string) (value float64) {
	t.Helper()
	families, err := s.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestLinesArriveWithLabelsAndMetadata(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.write("main/3.log", p.cri("stderr", "F", `{"level":"info","n":12345678901234567890}`))
	if err := os.MkdirAll(p.log("omnivision-fluent-bit"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.write("omnivision-fluent-bit/0.log", p.cri("stdout", "F", "its own"))
	p.start()
	got := p.loki.entries(1)[0]
	if got.line != `{"level":"info","n":12345678901234567890}` {
		t.Errorf("line %s: JSON must stay as it was written", got.line)
	}
	wantLabels := map[string]string{"cluster": "cluster-aws", "region": "us-west-2", "namespace": "omnivision", "workload": "worker", "pod": "worker-0", "container": "main", "version": "1.4.0"}
	wantMetadata := map[string]string{"node": "gpu-0", "pod_uid": "uid", "restart": "3", "stream": "stderr"}
	if fmt.Sprint(got.labels) != fmt.Sprint(wantLabels) || fmt.Sprint(got.metadata) != fmt.Sprint(wantMetadata) {
		t.Errorf("labels %v\nmetadata %v", got.labels, got.metadata)
	}
	if got.at != strconv.FormatInt(p.clock.Add(-time.Nanosecond).UnixNano(), 10) {
		t.Errorf("time %s, want the container's", got.at)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if took := p.loki.entries(1); len(took) != 1 {
		t.Errorf("%d entries: its own log must not come back to it", len(took))
	}
}

func TestRotationLosesAndDoublesNothing(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.start()
	const rounds, each1 = 20, 50
	n := 0
	for i := range rounds {
		p.numbered("main/0.log", n, each1)
		n += each1
		if i%2 == 1 {
			if err := os.Rename(p.log("main/0.log"), p.log(fmt.Sprintf("main/0.log.2026%02d", i))); err != nil {
				t.Fatal(err)
			}
			// The runtime goes on writing to the renamed file for a moment.
			p.numbered(fmt.Sprintf("main/0.log.2026%02d", i), n, each1)
			n += each1
		}
	}
	p.numbered("main/0.log", n, 1)
	each(t, p.loki.entries(n+1), n+1)
}

func TestFilesRotatedWhileNobodyReadAreReadFromWhereItStopped(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.numbered("main/0.log", 0, 10)
	p.start()
	p.loki.entries(10)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.numbered("main/0.log", 10, 10)
	_ = os.Rename(p.log("main/0.log"), p.log("main/0.log.20261127-1"))
	p.numbered("main/0.log.20261127-2", 20, 10) // came and went meanwhile
	p.numbered("main/0.log", 30, 10)
	p.start()
	each(t, p.loki.entries(40), 40)
}

func TestLokiAwayAndBackLosesAndDoublesNothing(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	l.set(http.StatusServiceUnavailable)
	p.start()
	for i := range 20 {
		p.numbered("main/0.log", i*100, 100)
		before := 0
		l.wait("another attempt", func(l *loki) bool {
			if before == 0 {
				before = l.pushes
			}
			return l.pushes > before
		})
	}
	l.set(0)
	each(t, l.entries(2000), 2000)
	if metric(t, p.s, "fluentbit_output_retries_total") == 0 || metric(t, p.s, "fluentbit_output_dropped_records_total") != 0 {
		t.Error("retries are not counted, or something was dropped")
	}
}

func TestFullBufferDropsTheOldestAndCounts(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	p.configure("storage.total_limit_size    64M", "storage.total_limit_size    64k", "Grace    5", "Grace    0.05")
	l.set(http.StatusInternalServerError)
	p.start()
	const n, size = 400, 1000
	for i := range n / 10 {
		var text strings.Builder
		for j := range 10 {
			text.WriteString(p.cri("stdout", "F", fmt.Sprintf("%05d%s", i*10+j, strings.Repeat("x", size))))
		}
		p.write("main/0.log", text.String())
		read := float64(i*10 + 10)
		l.wait("the lines to be read", func(*loki) bool { return metric(t, p.s, "fluentbit_input_records_total") >= read })
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(p.dir, "state/buffer/shipper/*"))
	total := int64(0)
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 64<<10+11*(size+200) {
		t.Errorf("the buffer has %d bytes", total)
	}
	dropped := metric(t, p.s, "fluentbit_output_dropped_records_total")
	l.set(0)
	p.start()
	took := l.wait("the rest", func(l *loki) bool { return len(l.took) >= n-int(dropped) })
	if dropped == 0 || len(took) != n-int(dropped) || took[len(took)-1].line[:5] != fmt.Sprintf("%05d", n-1) {
		t.Errorf("%v counted as dropped, %d of %d arrived, the last is %.5s", dropped, len(took), n, took[len(took)-1].line)
	}
}

func TestRefusedForGoodIsCountedAndDoesNotBlock(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	l.set(http.StatusBadRequest)
	p.numbered("main/0.log", 0, 1)
	p.start()
	l.wait("a refusal", func(l *loki) bool { return l.pushes > 0 })
	l.set(0)
	p.numbered("main/0.log", 1, 1)
	if got := l.entries(1)[0].line; got != "line 1" {
		t.Errorf("line %q", got)
	}
	if metric(t, p.s, "fluentbit_output_dropped_records_total") != 1 {
		t.Error("what Loki never takes is not counted")
	}
}

// The process is killed again and again, at any moment, while a container writes and its log is rotated.
func TestKilledShipperLosesAndDoublesNothing(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	const rounds, lines = 12, 300
	for i := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SHIPPER_TEST_CONFIG="+p.config)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p.numbered("main/0.log", i*lines, lines/2)
		if i%3 == 1 {
			_ = os.Rename(p.log("main/0.log"), p.log(fmt.Sprintf("main/0.log.2026%02d", i)))
		}
		p.numbered("main/0.log", i*lines+lines/2, lines/2)
		// Killed in the middle of it: when part of this round's lines has arrived.
		l.entries(i*lines + lines*(i%4)/4 + 1)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	p.start()
	each(t, l.entries(rounds*lines), rounds*lines)
}

func TestStopReadsAndDeliversTheLastLine(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.start()
	p.numbered("main/0.log", 0, 1)
	p.loki.entries(1)
	p.write("main/0.log", p.cri("stdout", "F", "line 1")+p.cri("stderr", "F", "panic: the end")+"2026-11-27T03:00:00Z stdout F line with no end")
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range p.loki.entries(4) {
		lines = append(lines, e.line)
	}
	for _, want := range []string{"line 0", "line 1", "panic: the end", "line with no end"} {
		if !strings.Contains(strings.Join(lines, "|"), want) {
			t.Errorf("%q is missing in %q", want, lines)
		}
	}
}

func TestStopWithoutLokiKeepsTheBufferAndEndsInTime(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	p.configure("Grace    5", "Grace    0.05")
	l.set(http.StatusServiceUnavailable)
	p.start()
	p.numbered("main/0.log", 0, 5)
	l.wait("an attempt", func(l *loki) bool { return l.pushes > 0 })
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	l.set(0)
	p.start()
	each(t, l.entries(5), 5)
}

func TestReloadTakesEffectAndLosesAndDoublesNothing(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	p.start(func(o *Options) { o.Listen = "127.0.0.1:0" })
	address := (<-p.s.address).String()
	reload := func() (int, string) {
		response, err := http.Post("http://"+address+"/api/v2/reload", "application/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(text)
	}
	for i := range 10 {
		p.numbered("main/0.log", i*100, 100)
		p.configure("labels    cluster", fmt.Sprintf("labels    generation=%d,cluster", i))
		if code, text := reload(); code != http.StatusOK {
			t.Fatalf("reload: %d %s", code, text)
		}
	}
	took := l.entries(1000)
	each(t, took, 1000)
	p.configure("labels    cluster", "labels    nonsense,cluster")
	if code, text := reload(); code != http.StatusBadRequest || !strings.Contains(text, "nonsense") {
		t.Errorf("a broken configuration: %d %s", code, text)
	}
	p.numbered("main/0.log", 1000, 1)
	last := l.entries(1001)[1000]
	if last.labels["generation"] != "9" {
		t.Errorf("labels %v, want those of the last good configuration", last.labels)
	}
	response, err := http.Get("http://" + address + "/api/v1/metrics/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	for _, want := range []string{"fluentbit_hot_reloaded_times 10", "fluentbit_hot_reload_failures_total 1", `fluentbit_input_records_total{name="tail.0"}`, `fluentbit_output_dropped_records_total{name="loki.0"} 0`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestChangedFileIsReloadedByItself(t *testing.T) {
	l := newLoki(t)
	p := newPod(t, l)
	p.start(func(o *Options) { o.Watch = time.Millisecond })
	p.numbered("main/0.log", 0, 1)
	l.entries(1)
	p.configure("labels    cluster", "labels    generation=new,cluster")
	deadline := time.Now().Add(time.Minute)
	for i := 1; ; i++ {
		p.numbered("main/0.log", i, 1)
		if l.entries(i + 1)[i].labels["generation"] == "new" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody noticed the change")
		}
	}
}

// A Pod may start before its namespace has the configuration.
func TestConfigurationMayComeLater(t *testing.T) {
	p := newPod(t, newLoki(t))
	later := p.config + ".later"
	if err := os.Rename(p.config, later); err != nil {
		t.Fatal(err)
	}
	p.numbered("main/0.log", 0, 3)
	p.start(func(o *Options) { o.Watch = time.Millisecond })
	if err := os.Rename(later, p.config); err != nil {
		t.Fatal(err)
	}
	each(t, p.loki.entries(3), 3)
}

func TestLongAndBinaryLines(t *testing.T) {
	p := newPod(t, newLoki(t))
	long := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	var text strings.Builder
	for part := range 64 {
		tag := "P"
		if part == 63 {
			tag = "F"
		}
		text.WriteString(p.cri("stdout", tag, long[part<<14:(part+1)<<14]))
		text.WriteString(p.cri("stderr", "F", "in between")) // streams are joined apart
	}
	text.WriteString(p.cri("stdout", "F", "\xff\xfe\x00\x01\x7f\"\\ü"))
	text.WriteString("\x00\xffgarbage without a time\n\n")
	p.write("main/0.log", text.String())
	p.start()
	lines := map[string]int{}
	for _, e := range p.loki.entries(64 + 4) {
		lines[e.line]++
	}
	for want, n := range map[string]int{long: 1, "in between": 64, "\ufffd\ufffd\x00\x01\x7f\"\\ü": 1, "\x00\ufffdgarbage without a time": 1, "": 1} {
		if lines[want] != n {
			t.Errorf("%.60q came %d times, want %d", want, lines[want], n)
		}
	}
}

func TestLineWithoutEndIsBounded(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.configure("Buffer_Max_Size    2M", "Buffer_Max_Size    64k")
	p.start()
	p.write("main/0.log", strings.Repeat("x", 1<<20))
	p.write("main/0.log", strings.Repeat("x", 1<<20)+"\n"+p.cri("stdout", "F", "after"))
	if got := p.loki.entries(1)[0].line; got != "after" {
		t.Errorf("line %.50q", got)
	}
	if metric(t, p.s, "fluentbit_input_long_line_skipped_total") != 1 {
		t.Error("the line is not counted")
	}
}

func TestStackTracesAreOneEntry(t *testing.T) {
	traces := map[string]string{
		"go":     "panic: runtime error: index out of range [3]\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:8 +0x1d\nexit status 2",
		"java":   "Exception in thread \"main\" java.lang.RuntimeException: outer\n\tat com.example.Main.main(Main.java:5)\nCaused by: java.lang.IllegalStateException: inner\n\t... 1 more",
		"python": "Traceback (most recent call last):\n  File \"x.py\", line 1, in <module>\n    f()\nValueError: bad",
	}
	for name, trace := range traces {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, newLoki(t))
			text := p.cri("stderr", "F", "before")
			for line := range strings.SplitSeq(trace, "\n") {
				text += p.cri("stderr", "F", line)
			}
			text += p.cri("stderr", "F", "after it")
			p.write("main/0.log", text)
			p.start()
			var got []string
			for _, e := range p.loki.entries(3) {
				got = append(got, e.line)
			}
			if want := []string{"before", trace, "after it"}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("entries %q\nwant    %q", got, want)
			}
		})
	}
}

func TestFileInAnothersInodeIsReadFromItsHead(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.numbered("main/0.log", 0, 3)
	p.start()
	p.loki.entries(3)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	// The same inode, another content: what a file system does when it gives an inode away again.
	if err := os.Truncate(p.log("main/0.log"), 0); err != nil {
		t.Fatal(err)
	}
	p.clock = p.clock.Add(time.Hour)
	p.numbered("main/0.log", 3, 5)
	p.start()
	each(t, p.loki.entries(8), 8)
}

func TestTruncatedFileIsReadAnew(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.start()
	p.numbered("main/0.log", 0, 10)
	p.loki.entries(10)
	if err := os.Truncate(p.log("main/0.log"), 0); err != nil {
		t.Fatal(err)
	}
	p.numbered("main/0.log", 10, 1)
	each(t, p.loki.entries(11), 11)
}

func TestProgramEndsWithAConfigurationThatItDoesNotUnderstand(t *testing.T) {
	p := newPod(t, newLoki(t))
	p.configure("Name    loki", "Name    kafka")
	if err := New(p.config, Options{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "kafka") {
		t.Errorf("error %v", err)
	}
	if err := New(filepath.Join(p.dir, "none"), Options{Watch: -1}).Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
