package loki_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/logs/loki"
	"github.com/omnivision/omnivision/logs/loki/lokitest"
	"github.com/omnivision/omnivision/shipper"
)

const limit = 2 * time.Minute

// sidecar is a Pod's logs and a shipper that ships them, with the configuration that the tree's CRs render to.
type sidecar struct {
	t       *testing.T
	dir     string
	pod     string
	shipper *shipper.Shipper
	client  *loki.Client
	stop    func()
	start   time.Time // before the first line
	at      time.Time // of the last line
}

func newSidecar(t *testing.T, server *lokitest.Server, pod string, replacements ...string) *sidecar {
	t.Helper()
	s := &sidecar{t: t, dir: t.TempDir(), pod: pod, client: &loki.Client{URL: server.URL}, start: time.Now().Add(-time.Minute)}
	s.at = s.start
	for _, d := range []string{"config", "logs/main"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	replacer := strings.NewReplacer(append(replacements, "/var/log/pod", filepath.Join(s.dir, "logs"), "/var/lib/fluent-bit", filepath.Join(s.dir, "state"), "/fluent-bit/config", filepath.Join(s.dir, "config"),
		"loki.logging.svc", "127.0.0.1", "port    3100", "port    "+server.Port, "Http_Server    true", "Http_Server    false", "Flush    1", "Flush    0.1")...)
	for _, name := range []string{"parsers.conf", "parsers_multiline.conf", "fluent-bit.conf"} {
		text, err := os.ReadFile(filepath.Join("../../gate/logconfig/testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, "config", name), []byte(replacer.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"OMNIVISION_CLUSTER": "cluster-aws", "OMNIVISION_REGION": "us-west-2", "POD_NAMESPACE": "omnivision", "OMNIVISION_WORKLOAD": "worker", "OMNIVISION_VERSION": "1.4.0", "POD_NAME": pod, "POD_UID": "uid", "NODE_NAME": "gpu-0"} {
		t.Setenv(name, value)
	}
	s.shipper = shipper.New(filepath.Join(s.dir, "config/fluent-bit.conf"), shipper.Options{MaxBackoff: time.Second})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.shipper.Run(ctx) }()
	s.stop = func() {
		s.stop = func() {}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("shipping: %v", err)
		}
	}
	t.Cleanup(func() { s.stop() })
	return s
}

// cri is a line as the runtime writes it: F is a whole one, P goes on in the next.
func (s *sidecar) cri(tag, text string) string {
	s.at = s.at.Add(time.Microsecond)
	return s.at.UTC().Format(time.RFC3339Nano) + " stderr " + tag + " " + text + "\n"
}

func (s *sidecar) write(text string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "logs/main/0.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sidecar) query() string { return loki.Selector(map[string]string{"pod": s.pod}) }

// arrive waits until n entries of the Pod are in Loki.
func (s *sidecar) arrive(n int) (got []loki.Entry) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	err := s.client.Follow(ctx, s.query(), s.start, 100*time.Millisecond, limit, func(e loki.Entry) error {
		if got = append(got, e); len(got) == n {
			cancel()
		}
		return nil
	})
	if err != nil || len(got) != n {
		s.t.Fatalf("%d of %d entries; following: %v", len(got), n, err)
	}
	return got
}

func (s *sidecar) metric(name string) (value float64) {
	s.t.Helper()
	families, err := s.shipper.Registry().Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	s.t.Fatalf("no metric %s", name)
	return 0
}

// await waits for a metric.
func (s *sidecar) await(what string, met func() bool) {
	s.t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-deadline:
			s.t.Fatalf("%s did not happen within %s", what, limit)
		case <-tick.C:
		}
	}
}

// The tree's configurations of both sides fit: what a sidecar ships is in Loki as a container wrote it.
func TestShippedLinesAreInARealLoki(t *testing.T) {
	server := lokitest.Start(t, "../..")
	t.Run("LabelsAndOddLines", func(t *testing.T) { testOddLines(t, server) })
	t.Run("StackTraces", func(t *testing.T) { testTraces(t, server) })
	t.Run("TenThousandLinesASecond", func(t *testing.T) { testManyLines(t, server) })
	t.Run("LokiAway", func(t *testing.T) { testLokiAway(t, server) })
}

// Lines of JSON, binary garbage and a line of 1 MiB, with labels and structured metadata, and counted as delivered.
func testOddLines(t *testing.T, server *lokitest.Server) {
	s := newSidecar(t, server, "worker-0")
	long := strings.Repeat("0123456789abcdef", 1<<16)
	var log strings.Builder
	const lines = 2000
	for i := range lines {
		log.WriteString(s.cri("F", fmt.Sprintf(`{"n":%d,"level":"info"}`, i)))
	}
	log.WriteString(s.cri("F", "\xff\x00garbage"))
	for part := range 64 {
		tag := "P"
		if part == 63 {
			tag = "F"
		}
		log.WriteString(s.cri(tag, long[part<<14:(part+1)<<14]))
	}
	s.write(log.String())
	got := s.arrive(lines + 2)
	s.stop()
	if got[7].Line != `{"n":7,"level":"info"}` || got[lines].Line != "\ufffd\x00garbage" || got[lines+1].Line != long {
		t.Errorf("lines %q, %q, %d bytes", got[7].Line, got[lines].Line, len(got[lines+1].Line))
	}
	for name, value := range map[string]string{"cluster": "cluster-aws", "region": "us-west-2", "workload": "worker", "pod": "worker-0", "version": "1.4.0", "stream": "stderr", "node": "gpu-0", "restart": "0"} {
		if got[0].Labels[name] != value {
			t.Errorf("%s is %q, want %q: %v", name, got[0].Labels[name], value, got[0].Labels)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	found, err := s.client.Query(ctx, loki.Selector(map[string]string{"workload": "worker"})+` | json | n = 1234`, s.start, time.Now(), 10, true)
	if err != nil || len(found) != 1 {
		t.Errorf("the fields of JSON: %v, %v", found, err)
	}
	testReading(ctx, t, s, long)
}

// testReading asks in all the ways that this package has.
func testReading(ctx context.Context, t *testing.T, s *sidecar, last string) {
	worker := loki.Source{Namespace: "omnivision", Pod: "worker-0", Container: "main"}
	if delivered, err := s.client.Delivered(ctx, "omnivision", 10*time.Minute); err != nil || !delivered[worker] || len(delivered) != 1 {
		t.Errorf("delivered are %v: %v", delivered, err)
	}
	// Its lines are a minute old.
	if delivered, err := s.client.Delivered(ctx, "omnivision", time.Second); err != nil || delivered[worker] {
		t.Errorf("delivered within the last second: %v, %v", delivered, err)
	}
	if latest, err := s.client.Latest(ctx, loki.Everything, s.start, time.Now(), 1000); err != nil || len(latest) != 1000 || latest[999].Line != last {
		t.Errorf("%d of the latest 1000 lines: %v", len(latest), err)
	}
	for text, want := range map[string]int{`"n":777,`: 1, "\x00garbage": 1, "`": 0, `\`: 0, "\ufffd": 1, `" or "`: 0} {
		if found, err := s.client.Query(ctx, loki.Everything+loki.Containing(text), s.start, time.Now(), 10, true); err != nil || len(found) != want {
			t.Errorf("%q is in %d lines, want %d: %v", text, len(found), want, err)
		}
	}
}

func testTraces(t *testing.T, server *lokitest.Server) {
	s := newSidecar(t, server, "traces")
	want := []string{
		`{"msg":"before","nested":{"a":[1,2]}}`,
		"panic: runtime error: index out of range [3]\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:8 +0x1d\nexit status 2",
		"Exception in thread \"main\" java.lang.RuntimeException: outer\n\tat com.example.Main.main(Main.java:5)\nCaused by: java.lang.IllegalStateException: inner\n\t... 1 more",
		"Traceback (most recent call last):\n  File \"x.py\", line 1, in <module>\n    f()\nValueError: bad",
		"after",
	}
	var log strings.Builder
	for _, entry := range want {
		for text := range strings.SplitSeq(entry, "\n") {
			log.WriteString(s.cri("F", text))
		}
	}
	s.write(log.String())
	for i, e := range s.arrive(len(want)) {
		if e.Line != want[i] {
			t.Errorf("entry %d is %q, want %q", i, e.Line, want[i])
		}
	}
}

// once checks that entries say the numbers from first on, in order and once each.
func once(t *testing.T, entries []loki.Entry, first int) {
	t.Helper()
	for i, e := range entries {
		if number, _, _ := strings.Cut(e.Line, " "); number != strconv.Itoa(first+i) {
			t.Fatalf("entry %d says %.20q, want %d", i, e.Line, first+i)
		}
	}
}

// A container writes 10,000 lines a second for three seconds, and its log is rotated meanwhile.
func testManyLines(t *testing.T, server *lokitest.Server) {
	s := newSidecar(t, server, "many")
	const perTick, ticks = 100, 300
	tick := time.NewTicker(time.Second / 100)
	defer tick.Stop()
	for i := range ticks {
		var log strings.Builder
		for j := range perTick {
			log.WriteString(s.cri("F", fmt.Sprint(i*perTick+j, " ", strings.Repeat("x", 100))))
		}
		s.write(log.String())
		if i == ticks/2 {
			path := filepath.Join(s.dir, "logs/main/0.log")
			if err := os.Rename(path, path+".20261127-030000"); err != nil {
				t.Fatal(err)
			}
		}
		<-tick.C
	}
	once(t, s.arrive(perTick*ticks), 0)
	if n := s.metric("fluentbit_output_dropped_records_total"); n != 0 {
		t.Errorf("%v dropped", n)
	}
}

// Loki is away until the buffer is full and longer: the oldest are dropped and counted; when it is back the rest arrives,
// and what is new.
func testLokiAway(t *testing.T, server *lokitest.Server) {
	const bufferLimit, lines, size = 1 << 20, 3000, 1000
	s := newSidecar(t, server, "away", "storage.total_limit_size    64M", "storage.total_limit_size    1M")
	server.Stop()
	for i := range lines / 100 {
		var log strings.Builder
		for j := range 100 {
			log.WriteString(s.cri("F", fmt.Sprint(i*100+j, " ", strings.Repeat("x", size))))
		}
		s.write(log.String())
		read := float64(i+1) * 100
		s.await("reading", func() bool { return s.metric("fluentbit_input_records_total") >= read })
	}
	s.await("buffering and retrying", func() bool {
		return s.metric("fluentbit_output_dropped_records_total") > 0 && s.metric("fluentbit_output_retries_total") > 0
	})
	// The files themselves: the oldest chunk may be in the deliverer's hand, beyond the limit.
	chunks, _ := filepath.Glob(filepath.Join(s.dir, "state/buffer/shipper/*"))
	var total int64
	for _, chunk := range chunks {
		if info, err := os.Stat(chunk); err == nil {
			total += info.Size()
		}
	}
	if total > 2*bufferLimit {
		t.Errorf("the buffer has %d bytes", total)
	}
	server.Again()
	s.write(s.cri("F", strconv.Itoa(lines)+" after"))
	s.await("delivery", func() bool {
		return s.metric("fluentbit_output_dropped_records_total")+s.metric("fluentbit_output_proc_records_total") == lines+1
	})
	dropped := int(s.metric("fluentbit_output_dropped_records_total"))
	got := s.arrive(lines + 1 - dropped)
	if last := got[len(got)-1].Line; last != strconv.Itoa(lines)+" after" || dropped == 0 || len(got) < 100 {
		t.Errorf("%d dropped, %d arrived, the last is %.20q", dropped, len(got), last)
	}
	t.Logf("%d dropped, %d arrived", dropped, len(got))
	seen := map[string]bool{}
	for _, e := range got {
		seen[e.Line] = true
	}
	if len(seen) != len(got) {
		t.Errorf("of %d entries %d are different", len(got), len(seen))
	}
}
