package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newSupervisor(t *testing.T) *Supervisor {
	t.Helper()
	s := &Supervisor{Dir: t.TempDir()}
	t.Cleanup(func() {
		names, err := s.Names()
		if err != nil {
			t.Error(err)
		}
		for _, name := range names {
			if err := s.Stop(context.Background(), name); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func sleeper(name string) Spec {
	return Spec{Name: name, Path: "/usr/bin/sleep", Args: []string{"300"}, StopGrace: time.Second}
}

func mustStart(t *testing.T, s *Supervisor, spec Spec) int {
	t.Helper()
	if _, err := s.Start(context.Background(), spec); err != nil {
		t.Fatal(err)
	}
	pid, ok := s.Running(spec.Name)
	if !ok {
		t.Fatalf("%s does not run", spec.Name)
	}
	return pid
}

func TestStartKeepsADaemonAndReplacesItWhenItsSpecChanges(t *testing.T) {
	s := newSupervisor(t)
	first := mustStart(t, s, sleeper("c/etcd"))
	if again := mustStart(t, s, sleeper("c/etcd")); again != first {
		t.Errorf("the daemon was restarted: process %d, then %d", first, again)
	}
	changed := sleeper("c/etcd")
	changed.Inputs = []string{"another configuration"}
	if replaced := mustStart(t, s, changed); replaced == first {
		t.Error("the daemon kept running with the old configuration")
	}
	if names, err := s.Names(); err != nil || len(names) != 1 || names[0] != "c/etcd" {
		t.Errorf("Names = %v, %v", names, err)
	}
}

func TestStopKillsADaemonThatIgnoresSIGTERM(t *testing.T) {
	s := newSupervisor(t)
	spec := Spec{Name: "deaf", Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"},
		Env: []string{"PATH=/usr/bin:/bin"}, StopGrace: 300 * time.Millisecond}
	mustStart(t, s, spec)
	err := s.Wait(context.Background(), "deaf", 5*time.Second, func(context.Context) error {
		if !strings.Contains(s.LogTail("deaf", 1), "deaf") {
			return errors.New("no output yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(context.Background(), "deaf"); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Running("deaf"); ok {
		t.Error("it still runs")
	}
}

func TestANumberThatTheKernelGaveToAnotherProcessIsNotSignalled(t *testing.T) {
	s := newSupervisor(t)
	stranger := exec.Command("/usr/bin/sleep", "300")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	mustStart(t, s, sleeper("old"))
	data, err := os.ReadFile(s.recordPath("old"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := s.Running("old")
	forged := strings.Replace(string(data), fmt.Sprintf(`"pid":%d,`, pid), fmt.Sprintf(`"pid":%d,`, stranger.Process.Pid), 1)
	forged = strings.Replace(forged, `"started":`, `"started":1`, 1)
	if err := os.WriteFile(s.recordPath("forged"), []byte(forged), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Running("forged"); ok {
		t.Error("a stranger's process counts as the daemon")
	}
	if err := s.Stop(context.Background(), "forged"); err != nil {
		t.Fatal(err)
	}
	if _, err := startTime(stranger.Process.Pid); err != nil {
		t.Errorf("the stranger was ended: %v", err)
	}
}

func TestHalfWrittenRecordsCountAsNotRunning(t *testing.T) {
	s := newSupervisor(t)
	for name, content := range map[string]string{"empty": "", "half": `{"pid":12`, "zero": `{"pid":0}`, "one": `{"pid":1,"started":1}`} {
		path := s.recordPath(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Running(name); ok {
			t.Errorf("%s: counts as running", name)
		}
	}
}

func TestWaitNamesADaemonThatEndsAndShowsItsLog(t *testing.T) {
	s := newSupervisor(t)
	spec := Spec{Name: "short", Path: "/bin/sh", Args: []string{"-c", "echo cannot bind; sleep 0.2; exit 1"}, Env: []string{"PATH=/usr/bin:/bin"}}
	mustStart(t, s, spec)
	err := s.Wait(context.Background(), "short", 10*time.Second, func(context.Context) error { return errors.New("no answer") })
	if err == nil || !strings.Contains(err.Error(), "short ended before it was ready: no answer") || !strings.Contains(err.Error(), "cannot bind") {
		t.Fatalf("err = %v", err)
	}
}

func TestSweepEndsWhatNoRecordNames(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	s := newSupervisor(t)
	s.Cgroup = fmt.Sprintf("ovtest-%d", os.Getpid())
	spec := Spec{Name: "parent", Path: "/bin/sh", Args: []string{"-c", "setsid sleep 300 & setsid sleep 300 & echo forked; wait"},
		Env: []string{"PATH=/usr/bin:/bin"}, Subgroup: "a/b"}
	mustStart(t, s, spec)
	err := s.Wait(context.Background(), "parent", 5*time.Second, func(context.Context) error {
		if len(s.Members()) < 3 {
			return fmt.Errorf("%d processes", len(s.Members()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.recordPath("parent")); err != nil { // killed before it could record
		t.Fatal(err)
	}
	if err := s.Sweep(context.Background(), ""); err != nil {
		t.Fatal(err)
	}
	if left := s.Members(); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
	if dirs := trees(s.Cgroup); len(dirs) > 0 && !unified() {
		t.Errorf("control groups are left: %v", dirs)
	}
}
