package conveyor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A run of the belt in a process of its own, which kills itself where it is told to.
const (
	killedDir = "OMNIVISION_TEST_KILLED_DIR"
	killedAt  = "OMNIVISION_TEST_KILLED_AT"
)

// killer kills its process when a stage begins or has ended.
type killer struct{ at string }

func (k killer) Started(stage string)                         { k.here("begin " + stage) }
func (k killer) Progress(string, string)                      {}
func (k killer) Ended(stage string, _ time.Duration, _ error) { k.here("end " + stage) }

func (k killer) here(point string) {
	if point == k.at {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
}

// TestBeltInAProcessOfItsOwn is no test but what the test below runs.
func TestBeltInAProcessOfItsOwn(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		return
	}
	k := killer{os.Getenv(killedAt)}
	var stages []Stage
	for _, name := range []string{"build", "scan", "sign", "propose"} {
		stage := Stage{Name: name, Run: func(context.Context, Results, func(string)) (any, error) {
			log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, err
			}
			_, err = log.WriteString(name + " ")
			k.here("within " + name)
			return name, errors.Join(err, log.Close())
		}}
		if name != "propose" {
			stage.Check = func(context.Context, Results, json.RawMessage) error { return nil }
		}
		stages = append(stages, stage)
	}
	if _, err := (Belt{Subject: subject, Stages: stages, Store: Store{filepath.Join(dir, "store")}, Watcher: k}).Run(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
}

func runInAProcess(t *testing.T, dir, at string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBeltInAProcessOfItsOwn$")
	cmd.Env = append(os.Environ(), killedDir+"="+dir, killedAt+"="+at)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil && at == "" {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return err
}

// Wherever a run is killed, the next finishes, and no stage is done twice whose end was
// written down.
func TestRunKilledBetweenAnyTwoStagesIsFinishedByTheNext(t *testing.T) {
	for at, want := range map[string]string{
		"begin build":    "build scan sign propose",
		"within build":   "build build scan sign propose",
		"end build":      "build scan sign propose",
		"begin scan":     "build scan sign propose",
		"within scan":    "build scan scan sign propose",
		"end scan":       "build scan sign propose",
		"begin sign":     "build scan sign propose",
		"within sign":    "build scan sign sign propose",
		"end sign":       "build scan sign propose",
		"begin propose":  "build scan sign propose",
		"within propose": "build scan sign propose propose",
		"end propose":    "build scan sign propose propose", // it looks for itself what there is to do
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var exit *exec.ExitError
			if err := runInAProcess(t, dir, at); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the run ended with %v", err)
			}
			_ = runInAProcess(t, dir, "")
			log, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil || strings.TrimSpace(string(log)) != want {
				t.Errorf("the stages were %s, %v; want %s", log, err, want)
			}
		})
	}
}

// What cannot be written down stops the belt, and the next run goes on.
func TestFullDiskStopsTheBelt(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	w, store := &world{image: "sha256:1"}, Store{dir}
	full := filepath.Join(dir, "full")
	if _, _, err := w.run(t, store, "build"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, bytes.Repeat([]byte("x"), 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	_, _, err := w.run(t, store, "")
	var stage *StageError
	if !errors.As(err, &stage) || stage.Stage != "sign" || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error is %v", err)
	}
	wantRan(t, w, "sign") // and propose did not
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.run(t, store, ""); err != nil {
		t.Fatal(err)
	}
	wantRan(t, w, "sign", "propose")
}
