package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tiny is an engine without dependencies, of two steps, that builds in a second.
func tiny() Engine {
	return Engine{
		Name: "tiny", Purpose: "test", Module: "example.com/dep",
		Stamps: []Stamp{version("example.com/dep.Version", "example.com/dep")},
		Steps: [][]Program{
			{{"one", "example.com/tiny/first"}},
			{{"two", "example.com/tiny/second"}},
		},
		Extras: []string{"page"},
	}
}

var goCache = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOCACHE").Output()
	return strings.TrimSpace(string(out)), err
})

// newStore makes a store in dir over a copy of the tiny source. Its Go cache is
// a link to the user's, so that the runtime is not compiled for every test.
func newStore(t *testing.T, dir string) *Store {
	t.Helper()
	cache, err := goCache()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "source")
	if _, err := os.Stat(source); err != nil {
		if err := os.CopyFS(source, os.DirFS("testdata/source")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "cache", "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cache, filepath.Join(dir, "cache", "build", "gocache")); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return &Store{Dir: filepath.Join(dir, "cache"), Source: source, Engines: []Engine{tiny()}, KeepCaches: true}
}

// countingGo makes the store's go command log what it is called for.
func countingGo(t *testing.T, s *Store, log string) {
	t.Helper()
	script := filepath.Join(filepath.Dir(log), "go.sh")
	if err := os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\necho \"$*\" >> %s\nexec go \"$@\"\n", log), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Go = script
}

func builds(t *testing.T, log string) int {
	t.Helper()
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "build ") {
			n++
		}
	}
	return n
}

// collect is a Progress that remembers.
type collect struct {
	mu     sync.Mutex
	events []Event
}

func (c *collect) add(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

func (c *collect) phases() []Phase {
	var phases []Phase
	for _, e := range c.events {
		if len(phases) == 0 || phases[len(phases)-1] != e.Phase {
			phases = append(phases, e.Phase)
		}
	}
	return phases
}

func run(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command(path).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, out)
	}
	return strings.TrimSpace(string(out))
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestEnsureBuildsStampedProgramsOnce(t *testing.T) {
	s := newStore(t, t.TempDir())
	if _, err := s.Path("one"); !errors.As(err, new(*NotBuiltError)) || !strings.Contains(err.Error(), "omnivision engines build tiny") {
		t.Fatalf("Path before the build: %v", err)
	}
	// What the last build from nothing took is the estimate for this one.
	if err := recordTiming(t.Context(), s.timingsPath(), "tiny", timing{Duration: Seconds(90 * time.Second), Packages: 30}); err != nil {
		t.Fatal(err)
	}
	first := &collect{}
	if err := s.Ensure(deadline(t), nil, first.add); err != nil {
		t.Fatal(err)
	}
	if got := first.phases(); got[0] != Resolving || got[len(got)-1] != Built || !slices.Contains(got, Compiling) {
		t.Errorf("phases %v", got)
	}
	for name, want := range map[string]string{"one": "first v1.2.3", "two": "second v1.2.3"} {
		path, err := s.Path(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := run(t, path); got != want {
			t.Errorf("%s says %q, want %q", name, got, want)
		}
	}
	again := &collect{}
	if err := s.Ensure(deadline(t), []string{"tiny"}, again.add); err != nil {
		t.Fatal(err)
	}
	if got := again.phases(); !slices.Equal(got, []Phase{Cached}) {
		t.Errorf("second time: phases %v", got)
	}
	b, err := s.Resolve("tiny")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(b[0])
	if err != nil {
		t.Fatal(err)
	}
	path, _ := s.Path("one")
	if digest, _ := hashFile(path); m.Files["one"].SHA256 != digest || len(m.Files) != 2 || m.Version != "v1.2.3" || !strings.HasPrefix(m.Go, "go1.") {
		t.Errorf("manifest %+v", m)
	}
	for _, e := range first.events {
		if e.Last != 90*time.Second || e.Done > e.Total {
			t.Errorf("event %+v", e)
		}
	}
	if last, err := readTimings(s.timingsPath()); err != nil || last["tiny"].Packages != 30 && last["tiny"].Packages < 10 {
		t.Errorf("a build that the cache served became the estimate: %v %v", last, err)
	}
}

func TestEnsureRemovesItsCaches(t *testing.T) {
	s := newStore(t, t.TempDir())
	s.KeepCaches = false
	// A module cache is read-only, directories included.
	module := filepath.Join(s.modCache(), "example.com", "x@v1")
	if err := os.MkdirAll(module, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(module, "x.go"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(module, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(deadline(t), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{s.modCache(), s.goCache(), s.goTemp()} {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if _, err := s.Path("two"); err != nil {
		t.Error(err)
	}
}

func TestTwoEnsuresAtTheSameTimeBuildOnce(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	ctx := deadline(t)
	var group sync.WaitGroup
	stores, errs := make([]*Store, 2), make([]error, 2)
	for i := range stores {
		stores[i] = newStore(t, dir)
		// Not while the other one starts programs: a fork keeps a script that is
		// being written open, and the kernel then refuses to run it.
		countingGo(t, stores[i], log)
	}
	for i, s := range stores {
		group.Go(func() { errs[i] = s.Ensure(ctx, nil, nil) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := builds(t, log); got != 2 {
		t.Errorf("%d builds ran, want one for each of the two steps", got)
	}
}

// TestHelperEnsure is the process that TestKilledBuildGoesOn kills.
func TestHelperEnsure(t *testing.T) {
	dir := os.Getenv("ENGINE_TEST_DIR")
	if dir == "" {
		t.Skip("only as the child of TestKilledBuildGoesOn")
	}
	s := newStore(t, dir)
	s.Go = filepath.Join(dir, "go.sh")
	_ = s.Ensure(t.Context(), nil, nil)
}

func TestKilledBuildGoesOn(t *testing.T) {
	dir := t.TempDir()
	// This go command builds the first program, and hangs at the second.
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >> %[1]s/log\ncase \"$*\" in build*second*) echo $$ > %[1]s/hangs; exec sleep 300;; esac\nexec go \"$@\"\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "go.sh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestHelperEnsure$")
	child.Env = append(os.Environ(), "ENGINE_TEST_DIR="+dir)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var pid string
	waitFor(t, "the second step to start", func() bool {
		raw, err := os.ReadFile(filepath.Join(dir, "hangs"))
		pid = strings.TrimSpace(string(raw))
		return err == nil && pid != ""
	})
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	waitFor(t, "the go command to die with the killed builder", func() bool {
		_, err := os.Stat("/proc/" + pid)
		return err != nil || zombie(pid)
	})

	s := newStore(t, dir)
	if _, err := s.Path("one"); err == nil {
		t.Error("a half-built engine is offered")
	}
	countingGo(t, s, filepath.Join(dir, "log"))
	if err := os.Remove(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(deadline(t), nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := builds(t, filepath.Join(dir, "log")); got != 1 {
		t.Errorf("%d builds after the kill, want 1: the first program was finished", got)
	}
	for _, name := range []string{"one", "two"} {
		path, err := s.Path(name)
		if err != nil {
			t.Fatal(err)
		}
		run(t, path)
	}
	left, err := filepath.Glob(filepath.Join(s.enginesDir(), partialDir, ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func zombie(pid string) bool {
	raw, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && strings.Contains(string(raw), ") Z ")
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited 2 minutes for %s", what)
}

func TestCancelledBuildStops(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "go.sh"), []byte("#!/bin/sh\n[ $1 = version ] && exit\nsleep 300\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Go = filepath.Join(dir, "go.sh")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	started := time.Now()
	err := s.Ensure(ctx, nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(started) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(started), err)
	}
}

func TestMachineWithoutGoIsToldToLoad(t *testing.T) {
	s := newStore(t, t.TempDir())
	s.Go = "/nonexistent/go"
	err := s.Ensure(deadline(t), nil, nil)
	if !errors.As(err, new(*ToolError)) || !strings.Contains(err.Error(), "omnivision engines load") || !strings.Contains(err.Error(), "tiny") {
		t.Error(err)
	}
}

func TestFullDiskIsFoundBeforeTheBuild(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	s.Engines[0].Scratch = 1 << 60
	countingGo(t, s, filepath.Join(dir, "log"))
	err := s.Ensure(deadline(t), nil, nil)
	if !errors.As(err, new(*NoSpaceError)) {
		t.Error(err)
	}
	if got := builds(t, filepath.Join(dir, "log")); got != 0 {
		t.Errorf("%d builds ran", got)
	}
}

func TestCompilerErrorIsShown(t *testing.T) {
	s := newStore(t, t.TempDir())
	file := filepath.Join(s.Source, "engines/tiny/first/main.go")
	if err := os.WriteFile(file, []byte("package main\n\nfunc main() { undefinedName() }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := s.Ensure(deadline(t), nil, nil)
	if !errors.As(err, new(*BuildError)) || !strings.Contains(err.Error(), "undefined: undefinedName") || !strings.Contains(err.Error(), "building engine tiny v1.2.3") {
		t.Error(err)
	}
}

func TestKeyCoversEveryInput(t *testing.T) {
	edit := func(path, content string) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			f, err := os.OpenFile(filepath.Join(s.Source, "engines/tiny", path), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(*testing.T, *Store)
		same   bool
	}{
		"nothing":        {func(*testing.T, *Store) {}, true},
		"a test":         {edit("first/main_test.go", "package main\n"), true},
		"a note":         {edit("NOTES.md", "text\n"), true},
		"go.mod":         {edit("go.mod", "// comment\n"), false},
		"go.sum":         {edit("go.sum", "example.com/x v1.0.0 h1:x=\n"), false},
		"a main package": {edit("first/main.go", "// comment\n"), false},
		"a new source":   {edit("first/other.go", "package main\n"), false},
		"tags":           {func(_ *testing.T, s *Store) { s.Engines[0].Tags = []string{"x"} }, false},
		"cgo":            {func(_ *testing.T, s *Store) { s.Engines[0].CGO = true }, false},
		"toolchain":      {func(_ *testing.T, s *Store) { s.Engines[0].Toolchain = "go1.99.0" }, false},
		"stamps":         {func(_ *testing.T, s *Store) { s.Engines[0].Stamps = nil }, false},
		"programs":       {func(_ *testing.T, s *Store) { s.Engines[0].Steps = s.Engines[0].Steps[:1] }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, t.TempDir())
			before, err := s.Resolve("tiny")
			if err != nil {
				t.Fatal(err)
			}
			c.change(t, s)
			after, err := s.Resolve("tiny")
			if err != nil {
				t.Fatal(err)
			}
			if same := before[0].Key == after[0].Key; same != c.same {
				t.Errorf("the key stayed the same: %v, want %v", same, c.same)
			}
		})
	}
}

func TestExtraStepIsMadeWhenItIsRegistered(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	s.Engines[0].Assets = []Asset{}
	countingGo(t, s, filepath.Join(dir, "log"))
	if err := s.Ensure(deadline(t), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Asset("tiny", "page/index.html"); !errors.As(err, new(*NotBuiltError)) {
		t.Fatalf("an extra that nobody registered: %v", err)
	}
	calls := 0
	s.Extras = map[string]ExtraStep{"page": func(_ context.Context, in ExtraInput) error {
		calls++
		in.Report("writing")
		return os.WriteFile(filepath.Join(in.Dir, "index.html"), []byte(in.Build.Version), 0o644)
	}}
	for range 2 {
		if err := s.Ensure(deadline(t), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	path, err := s.Asset("tiny", "page/index.html")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || string(raw) != "v1.2.3" || calls != 1 || builds(t, filepath.Join(dir, "log")) != 2 {
		t.Errorf("%q %v, %d calls, %d builds", raw, err, calls, builds(t, filepath.Join(dir, "log")))
	}
}

func TestManifestDurationsAreSeconds(t *testing.T) {
	raw, err := json.Marshal(Seconds(90 * time.Second))
	if err != nil || string(raw) != "90" {
		t.Errorf("%s %v", raw, err)
	}
}

func TestPackageNamesGiveTheFileNamesOfGoBuild(t *testing.T) {
	for pkg, want := range map[string]string{
		"go.etcd.io/etcd/server/v3":          "server",
		"sigs.k8s.io/kustomize/kustomize/v5": "kustomize",
		"k8s.io/kubernetes/cmd/kubelet":      "kubelet",
		"github.com/argoproj/argo-cd/v3/cmd": "cmd",
		"code.gitea.io/gitea":                "gitea",
	} {
		if got := (Program{Package: pkg}).defaultName(); got != want {
			t.Errorf("%s: %s, want %s", pkg, got, want)
		}
	}
}
