package shipper

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// sidecarMeasured is how long each state is measured.
	sidecarMeasured = 10 * time.Second
	sidecarRate     = 1000 // lines a second
	sidecarLine     = 120  // bytes
)

// counter is a Loki that counts entries and keeps none: what it costs is not the sidecar's.
type counter struct{ entries atomic.Int64 }

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.entries.Add(int64(strings.Count(string(body), "benchmark line")))
	w.WriteHeader(http.StatusNoContent)
}

// BenchmarkSidecar measures a shipper in a process of its own, as it runs in a Pod: resident memory and CPU at rest and at
// 1,000 lines a second from one container. (The process is the test's program, which is a little larger than the
// shipper's.)
func BenchmarkSidecar(b *testing.B) {
	for range b.N {
		counts := &counter{}
		server := httptest.NewServer(counts)
		defer server.Close()
		p := newPod(b, &loki{t: b, server: server})
		// Those of a cluster, which tests make shorter.
		p.configure("Flush    1", "Flush    1", "flush_ms    500", "flush_ms    500", "Refresh_Interval    1", "Refresh_Interval    1")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SHIPPER_TEST_CONFIG="+p.config, "SHIPPER_TEST_DEFAULTS=1")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = cmd.Process.Kill() }) // where something fails below
		pid := cmd.Process.Pid
		p.write("main/0.log", p.cri("stdout", "F", "benchmark line"))
		arrived(b, counts, 1)
		measured(b, pid, "rest", func() { <-time.After(sidecarMeasured) })
		const lines = int64(sidecarRate * sidecarMeasured / time.Second)
		measured(b, pid, "load", func() { p.paced(lines) })
		arrived(b, counts, lines+1)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// arrived waits until so many entries did.
func arrived(b *testing.B, counts *counter, n int64) {
	b.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for counts.entries.Load() < n {
		select {
		case <-deadline:
			b.Fatalf("%d of %d entries arrived", counts.entries.Load(), n)
		case <-tick.C:
		}
	}
}

// paced writes lines at the rate of the benchmark.
func (p *pod) paced(lines int64) {
	const perTick = 10
	tick := time.NewTicker(time.Second * perTick / sidecarRate)
	defer tick.Stop()
	filler := strings.Repeat("x", sidecarLine)
	for i := int64(0); i < lines; i += perTick {
		var text strings.Builder
		for j := range int64(perTick) {
			text.WriteString(p.cri("stdout", "F", fmt.Sprint("benchmark line ", i+j, filler)[:sidecarLine]))
		}
		p.write("main/0.log", text.String())
		<-tick.C
	}
}

// measured reports what a process used while something happened.
func measured(b *testing.B, pid int, state string, while func()) {
	b.Helper()
	before, start := cpuTime(b, pid), time.Now()
	while()
	share := float64(cpuTime(b, pid)-before) / float64(time.Since(start))
	b.ReportMetric(100*share, state+"-%CPU")
	b.ReportMetric(float64(resident(b, pid))/(1<<20), state+"-MB")
}

// cpuTime is what a process used so far, in hundredths of a second on every Linux that Go runs on.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	_, rest, _ := strings.Cut(processFile(b, pid, "stat"), ") ")
	var ticks int
	for _, field := range strings.Fields(rest)[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}

// resident is the memory of a process, in bytes.
func resident(b *testing.B, pid int) int {
	b.Helper()
	pages, err := strconv.Atoi(strings.Fields(processFile(b, pid, "statm"))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func processFile(b *testing.B, pid int, name string) string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}
