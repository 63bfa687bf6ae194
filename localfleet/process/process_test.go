package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// gone waits until the process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a descriptor without data
	if !waitGone(t.Context(), fd, 10*time.Second) {
		t.Fatalf("waited 10 s for process %d to end", pid)
	}
}

func TestADaemonThatWasKilledIsStartedAgain(t *testing.T) {
	for name, kill := range map[string]func(*Supervisor, int) error{
		"by us":           func(s *Supervisor, _ int) error { return s.Kill(context.Background(), "c/etcd") },
		"by somebody":     func(_ *Supervisor, pid int) error { return unix.Kill(pid, unix.SIGKILL) },
		"and not stopped": func(_ *Supervisor, pid int) error { return unix.Kill(pid, unix.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSupervisor(t)
			first := mustStart(t, s, sleeper("c/etcd"))
			if err := kill(s, first); err != nil {
				t.Fatal(err)
			}
			gone(t, first)
			if pid, ok := s.Running("c/etcd"); ok {
				t.Errorf("process %d counts as running after it was killed", pid)
			}
			if names, err := s.Names(); err != nil || len(names) != 1 {
				t.Errorf("Names = %v, %v; want its record to be kept", names, err)
			}
			if err := s.Kill(t.Context(), "c/etcd"); err == nil || !strings.Contains(err.Error(), "kill c/etcd: it does not run") {
				t.Errorf("killing it twice: %v", err)
			}
			if again := mustStart(t, s, sleeper("c/etcd")); again == first {
				t.Error("the dead process counts as the new one")
			}
			if err := s.Stop(t.Context(), "c/etcd"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestADaemonsChildrenEndWithItsGroup(t *testing.T) {
	s := newSupervisor(t)
	spec := Spec{Name: "parent", Path: "/bin/sh", Args: []string{"-c", "sleep 300 & echo child $!; wait"},
		Env: []string{"PATH=/usr/bin:/bin"}, StopGrace: time.Second, KillGroup: true}
	mustStart(t, s, spec)
	var child int
	err := s.Wait(t.Context(), "parent", 10*time.Second, func(context.Context) error {
		_, err := fmt.Sscanf(s.LogTail("parent", 1), "child %d", &child)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context(), "parent"); err != nil {
		t.Fatal(err)
	}
	gone(t, child)
}

// rewrite changes the record of a daemon.
func rewrite(t *testing.T, s *Supervisor, name string, change func(*record)) {
	t.Helper()
	data, err := os.ReadFile(s.recordPath(name))
	if err != nil {
		t.Fatal(err)
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		t.Fatal(err)
	}
	change(&rec)
	if data, err = json.Marshal(rec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.recordPath(name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A process id, and even the time since boot, may be those of another process
// after a reboot, or a moment later. Neither is signalled, and the daemon is
// started beside it.
func TestAStaleRecordIsReplacedAndNobodyIsSignalled(t *testing.T) {
	for name, change := range map[string]func(*record){
		"from before a reboot":    func(r *record) { r.Boot = "11111111-2222-3333-4444-555555555555" },
		"of an older process":     func(r *record) { r.Started-- },
		"of a process that ended": func(r *record) { r.PID = endedPID(t) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSupervisor(t)
			stranger := mustStart(t, s, sleeper("edge"))
			t.Cleanup(func() { _ = unix.Kill(stranger, unix.SIGKILL) })
			rewrite(t, s, "edge", change)
			if pid, ok := s.Running("edge"); ok {
				t.Errorf("process %d counts as running", pid)
			}
			if own := mustStart(t, s, sleeper("edge")); own == stranger {
				t.Error("somebody else's process was taken for the daemon")
			}
			if err := s.Stop(t.Context(), "edge"); err != nil {
				t.Fatal(err)
			}
			if _, err := startTime(stranger); err != nil {
				t.Errorf("somebody else's process was ended: %v", err)
			}
		})
	}
}

// endedPID is the id of a process that has ended.
func endedPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestStoppingWhatDoesNotRunForgetsIt(t *testing.T) {
	s := newSupervisor(t)
	if err := s.Stop(t.Context(), "never/started"); err != nil {
		t.Error(err)
	}
	pid := mustStart(t, s, sleeper("etcd"))
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	for range 2 {
		if err := s.Stop(t.Context(), "etcd"); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Errorf("Names = %v, %v; want none", names, err)
	}
}

func TestAProgramThatIsMissingIsNamed(t *testing.T) {
	s := newSupervisor(t)
	started, err := s.Start(t.Context(), Spec{Name: "c/etcd", Path: "/none/etcd"})
	if started || err == nil || !strings.Contains(err.Error(), "start c/etcd") || !strings.Contains(err.Error(), "/none/etcd") {
		t.Errorf("started %v, err = %v", started, err)
	}
	if _, ok := s.Running("c/etcd"); ok {
		t.Error("it counts as running")
	}
}

func TestWaitNamesWhatWasNotReadyInTime(t *testing.T) {
	s := newSupervisor(t)
	mustStart(t, s, sleeper("slow"))
	err := s.Wait(t.Context(), "slow", time.Millisecond, func(context.Context) error { return errors.New("no answer") })
	for _, want := range []string{"slow was not ready within 1ms: no answer", s.LogPath("slow")} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in the error: %v", want, err)
		}
	}
}

// group is a supervisor whose control group nobody has made yet.
func group(t *testing.T) *Supervisor {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	s := newSupervisor(t)
	s.Cgroup = fmt.Sprintf("ovtest-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	t.Cleanup(func() {
		if err := s.Sweep(context.Background(), ""); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestAMissingControlGroupHasNoMembersAndIsMadeWhenNeeded(t *testing.T) {
	s := group(t)
	for range 2 { // nothing there: nothing to do
		if err := s.Sweep(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if members := s.Members(); len(members) != 0 {
		t.Errorf("members %v of a group that is not there", members)
	}
	if bytes, err := s.MemoryBytes(); err != nil || bytes != 0 {
		t.Errorf("memory %d, %v", bytes, err)
	}
	pid := mustStart(t, s, sleeper("etcd"))
	if members := s.Members(); len(members) != 1 || members[0] != pid {
		t.Errorf("members %v, want the daemon %d", members, pid)
	}
	if bytes, err := s.MemoryBytes(); err != nil || bytes == 0 {
		t.Errorf("memory %d, %v", bytes, err)
	}
}

func TestSweepEndsOneSubgroupAlone(t *testing.T) {
	s := group(t)
	one, two := sleeper("one"), sleeper("two")
	one.Subgroup, two.Subgroup = "c/gpu-0", "c/cpu-0"
	first, second := mustStart(t, s, one), mustStart(t, s, two)
	if err := s.Sweep(t.Context(), "c/gpu-0"); err != nil {
		t.Fatal(err)
	}
	gone(t, first)
	if members := s.Members(); len(members) != 1 || members[0] != second {
		t.Errorf("members %v, want %d alone", members, second)
	}
}

func TestAControlGroupThatCannotBeMadeStartsNothing(t *testing.T) {
	s := group(t)
	mustStart(t, s, sleeper("first"))
	blocked := &Supervisor{Dir: s.Dir, Cgroup: filepath.Join(s.Cgroup, "cgroup.procs")} // a file
	started, err := blocked.Start(t.Context(), sleeper("second"))
	if started || err == nil || !strings.Contains(err.Error(), "start second: make control group") {
		t.Errorf("started %v, err = %v", started, err)
	}
	if members := s.Members(); len(members) != 1 {
		t.Errorf("members %v, want the first daemon alone", members)
	}
}

func TestSweepWithoutAControlGroupIsRefused(t *testing.T) {
	if err := newSupervisor(t).Sweep(t.Context(), ""); err == nil {
		t.Error("a sweep of everything on the machine was accepted")
	}
}
