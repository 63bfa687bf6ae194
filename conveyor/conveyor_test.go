package conveyor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/tooltime"
)

var subject = Subject{App: "omnivision-worker", Commit: strings.Repeat("0123456789", 4), Version: "0.1.0-57"}

type watcher struct{ lines []string }

func (w *watcher) Started(stage string)          { w.lines = append(w.lines, "start "+stage) }
func (w *watcher) Progress(stage, detail string) { w.lines = append(w.lines, stage+": "+detail) }
func (w *watcher) Ended(stage string, _ time.Duration, err error) {
	w.lines = append(w.lines, fmt.Sprintf("end %s %v", stage, err))
}

// world is what the stages of a test change and find again.
type world struct {
	image, signed string
	ran           []string
	fail          map[string]error
}

type result struct {
	Digest string `json:"digest"`
}

func (w *world) stages() []Stage {
	run := func(name string, work func() string) func(context.Context, Results, func(string)) (any, error) {
		return func(context.Context, Results, func(string)) (any, error) {
			w.ran = append(w.ran, name)
			if err := w.fail[name]; err != nil {
				return nil, err
			}
			return result{work()}, nil
		}
	}
	return []Stage{
		{
			Name: "build",
			Run:  run("build", func() string { return w.image }),
			Check: func(_ context.Context, _ Results, raw json.RawMessage) error {
				var have result
				if err := json.Unmarshal(raw, &have); err != nil {
					return err
				}
				if have.Digest != w.image {
					return errors.New("the registry does not have it any more")
				}
				return nil
			},
		},
		{
			Name: "sign",
			Run: func(_ context.Context, before Results, _ func(string)) (any, error) {
				w.ran = append(w.ran, "sign")
				var built result
				if err := before.Read("build", &built); err != nil {
					return nil, err
				}
				if err := w.fail["sign"]; err != nil {
					return nil, err
				}
				w.signed = built.Digest
				return built, nil
			},
			Check: func(context.Context, Results, json.RawMessage) error { return nil },
		},
		{Name: "propose", Run: run("propose", func() string { return w.signed })},
	}
}

func (w *world) run(t *testing.T, store Store, until string) ([]Outcome, *watcher, error) {
	t.Helper()
	w.ran = nil
	seen := &watcher{}
	outcomes, err := Belt{Subject: subject, Stages: w.stages(), Store: store, Watcher: seen}.Run(t.Context(), until)
	return outcomes, seen, err
}

func wantRan(t *testing.T, w *world, names ...string) {
	t.Helper()
	if strings.Join(w.ran, " ") != strings.Join(names, " ") {
		t.Errorf("stages %v ran, want %v", w.ran, names)
	}
}

func TestSecondRunSkipsWhatIsDoneAndStillHolds(t *testing.T) {
	w, store := &world{image: "sha256:1"}, Store{t.TempDir()}
	if _, _, err := w.run(t, store, ""); err != nil {
		t.Fatal(err)
	}
	wantRan(t, w, "build", "sign", "propose")
	outcomes, seen, err := w.run(t, store, "")
	if err != nil || len(outcomes) != 3 || !outcomes[0].Kept || !outcomes[1].Kept || outcomes[2].Kept {
		t.Errorf("outcomes are %+v, %v", outcomes, err)
	}
	wantRan(t, w, "propose") // it has no Check: it looks for itself
	if got := strings.Join(seen.lines, "; "); got != "start build; end build <nil>; start sign; end sign <nil>; start propose; end propose <nil>" {
		t.Errorf("the watcher saw %s", got)
	}
}

func TestStageIsDoneAgainWhenTheWorldLostItsResult(t *testing.T) {
	w, store := &world{image: "sha256:1"}, Store{t.TempDir()}
	if _, _, err := w.run(t, store, ""); err != nil {
		t.Fatal(err)
	}
	w.image = "sha256:2"
	_, seen, err := w.run(t, store, "")
	if err != nil || w.signed != "sha256:2" {
		t.Errorf("signed %s, %v", w.signed, err)
	}
	// What was signed followed from another image, so it is signed again too.
	wantRan(t, w, "build", "sign", "propose")
	if !strings.Contains(strings.Join(seen.lines, "\n"), "build: again: the registry does not have it any more") {
		t.Errorf("the watcher was not told why: %v", seen.lines)
	}
}

func TestFailedStageStopsTheBeltAndTheNextRunGoesOnThere(t *testing.T) {
	w, store := &world{image: "sha256:1", fail: map[string]error{"sign": errors.New("no identity")}}, Store{t.TempDir()}
	outcomes, _, err := w.run(t, store, "")
	var stage *StageError
	if !errors.As(err, &stage) || stage.Stage != "sign" || err.Error() != `stage "sign": no identity` || len(outcomes) != 1 {
		t.Errorf("outcomes are %+v, error %v", outcomes, err)
	}
	wantRan(t, w, "build", "sign")
	w.fail = nil
	if _, _, err := w.run(t, store, ""); err != nil {
		t.Fatal(err)
	}
	wantRan(t, w, "sign", "propose")
}

func TestBeltStopsWhereItIsTold(t *testing.T) {
	w, store := &world{image: "sha256:1"}, Store{t.TempDir()}
	if _, _, err := w.run(t, store, "build"); err != nil {
		t.Fatal(err)
	}
	wantRan(t, w, "build")
	if _, _, err := w.run(t, store, "deploy"); err == nil || err.Error() != `there is no stage "deploy"; there are build, sign, propose` {
		t.Errorf("error is %v", err)
	}
}

func TestCancelledRunStartsNoFurtherStage(t *testing.T) {
	w, store := &world{image: "sha256:1"}, Store{t.TempDir()}
	ctx, cancel := context.WithCancel(t.Context())
	stages := w.stages()
	first := stages[0].Run
	stages[0].Run = func(ctx context.Context, before Results, report func(string)) (any, error) {
		defer cancel()
		return first(ctx, before, report)
	}
	_, err := Belt{Subject: subject, Stages: stages, Store: store, Watcher: &watcher{}}.Run(ctx, "")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	wantRan(t, w, "build")
}

// A kill leaves a temporary file, half a file of an older program, or nothing.
func TestWhatAKillLeavesInTheStoreCountsAsNothing(t *testing.T) {
	w, store := &world{image: "sha256:1"}, Store{t.TempDir()}
	if _, _, err := w.run(t, store, ""); err != nil {
		t.Fatal(err)
	}
	path := store.path(subject, "sign")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) - 2 { // the last two are the brace and the line end
		if err := os.WriteFile(path, whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		if e, err := store.Read(subject, "sign"); e != nil || err != nil {
			t.Fatalf("the first %d bytes were taken for an entry: %+v, %v", cut, e, err)
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".new-123"), whole[:10], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.run(t, store, ""); err != nil {
		t.Fatal(err)
	}
	wantRan(t, w, "sign", "propose")
}

func TestEntryOfAnotherReleaseIsNotTaken(t *testing.T) {
	store := Store{t.TempDir()}
	if err := store.Write(Entry{Subject: subject, Stage: "build", Result: json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	other := subject
	other.Version = "0.2.0-57"
	if e, err := store.Read(other, "build"); e != nil || err != nil {
		t.Errorf("the entry of another version was taken: %+v, %v", e, err)
	}
}

func TestSubjectCannotLeaveTheStore(t *testing.T) {
	for _, s := range []Subject{
		{App: "../x", Commit: subject.Commit, Version: "1"},
		{App: "x", Commit: "../../etc", Version: "1"},
		{App: "x", Commit: "HEAD", Version: "1"},
		{App: "x", Commit: subject.Commit},
	} {
		if _, err := (Belt{Subject: s, Store: Store{t.TempDir()}, Watcher: &watcher{}}).Run(t.Context(), ""); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
}

func TestReleasesOfOneAppOnOneMachineTakeTurns(t *testing.T) {
	store := Store{t.TempDir()}
	var group sync.WaitGroup
	var inside, turns atomic.Int64 // a lock on a file means nothing to the race detector
	for range 4 {
		group.Go(func() {
			unlock, err := store.Lock(t.Context(), "worker")
			if err != nil {
				t.Error(err)
				return
			}
			if n := inside.Add(1); n != 1 {
				t.Errorf("%d releases run at once", n)
			}
			turns.Add(1)
			time.Sleep(5 * time.Millisecond) // long enough for another one to come in
			inside.Add(-1)
			unlock()
		})
	}
	group.Wait()
	if turns.Load() != 4 {
		t.Errorf("%d of 4 had their turn", turns.Load())
	}
	unlock, err := store.Lock(t.Context(), "worker")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("not free within 50 ms"))
	defer cancel()
	if _, err := store.Lock(ctx, "worker"); err == nil || !strings.Contains(err.Error(), "waiting for another release of worker") || !strings.Contains(err.Error(), "not free within 50 ms") {
		t.Errorf("error is %v", err)
	}
}

func TestFullDiskLeavesTheEntryThatWasThere(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	store := Store{dir}
	entry := Entry{Subject: subject, Stage: "build", Result: json.RawMessage(`{"digest":"sha256:1"}`)}
	if err := store.Write(entry); err != nil {
		t.Fatal(err)
	}
	entry.Result = json.RawMessage(`"` + strings.Repeat("x", 32<<10) + `"`)
	if err := store.Write(entry); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the next run finds it") {
		t.Errorf("writing to a full disk gives %v", err)
	}
	e, err := store.Read(subject, "build")
	if err != nil || e == nil || digest(e.Result) != digest(json.RawMessage(`{"digest":"sha256:1"}`)) {
		t.Errorf("afterwards the entry is %+v, %v", e, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, subject.App, subject.Commit, ".new-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDigestIsOfTheContentAndNotOfItsLayout(t *testing.T) {
	if digest(json.RawMessage(`{"b":1,"a":[1,2]}`)) != digest(json.RawMessage("{\n  \"a\": [1, 2],\n  \"b\": 1\n}")) {
		t.Error("the layout changes the digest")
	}
}

// What a stage waited for is in its evidence; asking whether that still holds counts too,
// but only in the run that asks.
func TestEvidenceTellsTheToolsTimeFromOurOwn(t *testing.T) {
	store := Store{t.TempDir()}
	wait := func(ctx context.Context, tool string) { tooltime.Begin(ctx, tool)() }
	belt := Belt{Subject: subject, Store: store, Watcher: &watcher{}, Stages: []Stage{{
		Name: "build",
		Run: func(ctx context.Context, _ Results, _ func(string)) (any, error) {
			wait(ctx, "BuildKit")
			return result{"sha256:1"}, nil
		},
		Check: func(ctx context.Context, _ Results, _ json.RawMessage) error { wait(ctx, "registry"); return nil },
	}}}
	for _, kept := range []bool{false, true} {
		ctx, clock := tooltime.With(t.Context())
		outcomes, err := belt.Run(ctx, "")
		if err != nil || len(outcomes) != 1 || outcomes[0].Kept != kept {
			t.Fatalf("outcomes are %+v, %v", outcomes, err)
		}
		o, here := outcomes[0], map[bool]string{false: "BuildKit", true: "registry"}[kept]
		if _, ok := o.Here.ByTool[here]; !ok || len(o.Here.ByTool) != 1 || o.Here.Own()+o.Here.Tools != o.Here.Total || o.Here.Own() <= 0 {
			t.Errorf("this run spent %+v", o.Here)
		}
		if _, ok := o.Spent.ByTool["BuildKit"]; !ok || len(o.Spent.ByTool) != 1 || o.Spent.Total <= 0 {
			t.Errorf("the evidence says %+v", o.Spent)
		}
		if whole := SpentSince(ctx, time.Now().Add(-time.Minute)); len(whole.ByTool) != 1 || whole.Tools != clock.Spent().Tools || whole.Total < time.Minute {
			t.Errorf("all of it was %+v", whole)
		}
	}
	if none := SpentSince(t.Context(), time.Now()); none.Tools != 0 || len(none.ByTool) != 0 {
		t.Errorf("without a clock it was %+v", none)
	}
}

// A stage that has its turn while the next one's work is done waits for it here, so it would
// never end if the work were done later.
func TestWorkAheadIsDoneBesideTheStagesInBetween(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx, clock := tooltime.With(ctx)
	begun, ended := make(chan string, 1), false
	w := &world{image: "sha256:1"}
	stages := w.stages()
	sign := stages[1].Run
	stages[1].Check, stages[1].Run = nil, func(ctx context.Context, before Results, report func(string)) (any, error) {
		select {
		case digest := <-begun:
			if digest != w.image {
				t.Errorf("the work was given the image %q", digest)
			}
		case <-ctx.Done():
			t.Error("nothing was done ahead")
		}
		return sign(ctx, before, report)
	}
	stages[2].Ahead = &Ahead{After: "build", Do: func(ctx context.Context, before Results) {
		var built result
		if err := before.Read("build", &built); err != nil || len(before) != 1 {
			t.Errorf("the work was given %v, %v", before, err)
		}
		defer tooltime.Begin(ctx, "git")()
		begun <- built.Digest
		<-ctx.Done() // it has no end of its own
		ended = true
	}}
	belt := Belt{Subject: subject, Stages: stages, Store: Store{t.TempDir()}, Watcher: &watcher{}}
	for range 2 { // what is kept has its result as well
		if _, err := belt.Run(ctx, ""); err != nil {
			t.Fatal(err)
		}
		if !ended {
			t.Fatal("the run ended before the work beside it")
		}
		ended = false
	}
	if spent := clock.Spent(); len(spent.ByTool) != 0 {
		t.Errorf("what was waited for beside the stages counts: %+v", spent)
	}
}

func TestNothingIsDoneAheadOfAStageThatDoesNotCome(t *testing.T) {
	w, did := &world{image: "sha256:1"}, false
	stages := w.stages()
	stages[2].Ahead = &Ahead{After: "build", Do: func(context.Context, Results) { did = true }}
	if _, err := (Belt{Subject: subject, Stages: stages, Store: Store{t.TempDir()}, Watcher: &watcher{}}).Run(t.Context(), "sign"); err != nil || did {
		t.Errorf("done ahead: %t, %v", did, err)
	}
}
