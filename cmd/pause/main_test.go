package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary stand for the program.
func TestMain(m *testing.M) {
	if os.Getenv("PAUSE_TEST_RUN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start runs the program as the parent of children that it did not start, which
// is what the first process of a Pod is, and waits until it has reaped them.
func start(t *testing.T) *exec.Cmd {
	t.Helper()
	pids := filepath.Join(t.TempDir(), "pids")
	cmd := exec.Command("sh", "-c", `for n in 0.1 0.3 0.3; do sleep $n & echo $! >> "$PIDS"; done; exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), "PAUSE_TEST_RUN=1", "PIDS="+pids)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	waitFor(t, "the children to be reaped", func() bool {
		raw, _ := os.ReadFile(pids)
		children := strings.Fields(string(raw))
		for _, pid := range children {
			if _, err := os.Stat("/proc/" + pid); err == nil {
				return false
			}
		}
		return len(children) == 3
	})
	return cmd
}

func TestReapsOrphans(t *testing.T) {
	_ = start(t).Process.Kill()
}

func TestEndsWithStatusZeroWhenToldTo(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := start(t)
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%v: %v", s, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%v: it still runs after 10 s", s)
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited 20 s for %s", what)
}
