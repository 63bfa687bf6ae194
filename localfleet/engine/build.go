package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// worker builds one engine.
type worker struct {
	store    *Store
	build    Build
	progress Progress
	started  time.Time
	last     time.Duration

	// known is how many packages the programs are made of.
	known int

	mu sync.Mutex
	// done of total packages that the cache lacked are compiled.
	done, total int
}

// run is the story of a build: wait for the lock, look again, build what is
// missing in a directory of its own, and move that into place.
func (w *worker) run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	l, err := acquire(ctx, w.store.lockPath(w.build.DirName()), syscall.LOCK_EX, func() { w.report(Waiting, "another process builds it") })
	if err != nil {
		return err
	}
	defer l.release()

	programs, extras, err := w.store.missing(w.build)
	if err != nil {
		return err
	}
	if programs {
		if err := w.buildPrograms(ctx); err != nil {
			return err
		}
		if _, extras, err = w.store.missing(w.build); err != nil {
			return err
		}
	}
	for _, name := range extras {
		if err := w.makeExtra(ctx, name); err != nil {
			return fmt.Errorf("step %q: %w", name, err)
		}
	}
	w.report(Built, "")
	return nil
}

func (w *worker) report(phase Phase, item string) {
	w.mu.Lock()
	done, total := w.done, w.total
	w.mu.Unlock()
	w.progress.report(Event{
		Engine: w.build.Name, Version: w.build.Version, Phase: phase, Item: item,
		Done: done, Total: total, Elapsed: time.Since(w.started), Last: w.last,
	})
}

// buildPrograms makes all programs and assets of the engine.
func (w *worker) buildPrograms(ctx context.Context) error {
	// The partial directory has a fixed name: a build that was killed finds
	// the programs that it had finished. They are of the same key.
	partial := filepath.Join(w.store.enginesDir(), partialDir, w.build.DirName())
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return err
	}
	if err := w.count(ctx); err != nil {
		return err
	}
	for _, step := range w.build.Steps {
		if err := w.buildStep(ctx, partial, step); err != nil {
			return err
		}
	}
	if err := w.copyAssets(ctx, partial); err != nil {
		return err
	}
	if err := w.publish(ctx, partial); err != nil {
		return err
	}
	// A build that a warm cache served says little about one from nothing.
	if w.done*2 < w.known {
		return nil
	}
	return recordTiming(ctx, w.store.timingsPath(), w.build.Name, timing{
		Duration: Seconds(time.Since(w.started)), Packages: w.done, When: time.Now().UTC(),
	})
}

// count downloads the modules that the programs need and finds out how many
// packages are not in the build cache.
func (w *worker) count(ctx context.Context) error {
	w.report(Resolving, "")
	args := []string{"list", "-deps", "-f", "{{.Stale}}"}
	args = append(args, w.build.buildFlags(w.build.Versions)...)
	for _, step := range w.build.Steps {
		for _, p := range step {
			args = append(args, p.Package)
		}
	}
	stale := 0
	err := w.goCommand(ctx, args, func(line string) {
		w.known++
		if line == "true" {
			stale++
		}
	}, func(line string) {
		if module, ok := strings.CutPrefix(line, "go: downloading "); ok {
			w.report(Resolving, module)
		}
	})
	w.mu.Lock()
	w.total = stale
	w.mu.Unlock()
	return err
}

// buildStep makes those programs of a step that partial does not have yet.
func (w *worker) buildStep(ctx context.Context, partial string, step []Program) error {
	var todo []Program
	var names, packages []string
	for _, p := range step {
		if _, err := os.Stat(filepath.Join(partial, p.Name)); err != nil {
			todo, names, packages = append(todo, p), append(names, p.Name), append(packages, p.Package)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	// The linker writes into its target; a program under its own name in
	// partial is always whole.
	out, err := w.scratch("step")
	if err != nil {
		return err
	}
	defer os.RemoveAll(out)

	w.report(Compiling, strings.Join(names, ", "))
	args := append([]string{"build", "-v", "-o", out + string(filepath.Separator)}, w.build.buildFlags(w.build.Versions)...)
	args = append(args, packages...)
	err = w.goCommand(ctx, args, nil, func(line string) {
		if strings.ContainsAny(line, " \t") || line == "" || line[0] == '#' {
			return
		}
		w.mu.Lock()
		w.done++
		w.total = max(w.total, w.done)
		w.mu.Unlock()
		w.report(Compiling, line)
	})
	if err != nil {
		return err
	}
	for _, p := range todo {
		if err := os.Rename(filepath.Join(out, p.defaultName()), filepath.Join(partial, p.Name)); err != nil {
			return fmt.Errorf("taking over %s: %w", p.Name, err)
		}
	}
	return nil
}

// scratch makes an empty directory on the store's file system, and removes what
// killed builds of this engine left of theirs. Its name is never used twice: a
// go command that outlives its killed parent for a moment writes elsewhere.
func (w *worker) scratch(purpose string) (string, error) {
	parent := filepath.Join(w.store.enginesDir(), partialDir)
	prefix := "." + purpose + "-" + w.build.DirName() + "-"
	left, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range left {
		if err := removeReadOnly(dir); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// copyAssets takes the assets out of their modules, which are removed with the
// module cache.
func (w *worker) copyAssets(ctx context.Context, partial string) error {
	for _, a := range w.build.Assets {
		dir, err := w.moduleDir(ctx, a.Module)
		if err != nil {
			return err
		}
		if err := copyFile(filepath.Join(dir, filepath.FromSlash(a.Path)), filepath.Join(partial, "share", filepath.FromSlash(a.Path))); err != nil {
			return fmt.Errorf("taking %s out of %s: %w", a.Path, a.Module, err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// publish writes the manifest and moves the directory into place.
func (w *worker) publish(ctx context.Context, partial string) error {
	goVersion, err := w.goVersion(ctx)
	if err != nil {
		return err
	}
	b := w.build
	m := Manifest{
		Name: b.Name, Version: b.Version, Key: b.Key, OS: runtime.GOOS, Arch: runtime.GOARCH,
		Go: goVersion, Flags: b.buildFlags(b.Versions),
		Built: time.Now().UTC().Truncate(time.Second), Duration: Seconds(time.Since(w.started)),
	}
	if err := m.hashTree(partial); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(partial, manifestName), m); err != nil {
		return err
	}
	target := w.store.dir(b)
	// Only a directory without a readable manifest can be in the way here.
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	return os.Rename(partial, target)
}

// makeExtra runs a registered extra step, and enters what it made into the
// manifest of the engine.
func (w *worker) makeExtra(ctx context.Context, name string) error {
	w.report(Extra, name)
	target := w.store.dir(w.build)
	scratch, err := w.scratch("extra")
	if err != nil {
		return err
	}
	defer removeReadOnly(scratch)
	err = w.store.Extras[name](ctx, ExtraInput{
		Build: w.build, Dir: scratch, ModuleDir: w.moduleDir,
		Report: func(what string) { w.report(Extra, name+": "+what) },
	})
	if err != nil {
		return err
	}
	final := filepath.Join(target, "share", name)
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	// Left by a build that was killed before it entered it.
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	if err := os.Rename(scratch, final); err != nil {
		return err
	}
	m, err := readManifest(target)
	if err != nil {
		return err
	}
	if err := m.hashTree(target); err != nil {
		return err
	}
	m.Extras = append(m.Extras, name)
	return writeJSON(filepath.Join(target, manifestName), m)
}

// moduleDir returns the unpacked source of a module in the engine's build list.
func (w *worker) moduleDir(ctx context.Context, module string) (string, error) {
	// `mod download` takes what `list -m` does not: a module that the build
	// served from the cache may not be unpacked.
	var out strings.Builder
	err := w.goCommand(ctx, []string{"mod", "download", "-json", module}, func(line string) { out.WriteString(line) }, nil)
	if err != nil {
		return "", err
	}
	var info struct{ Dir string }
	if err := json.Unmarshal([]byte(out.String()), &info); err != nil {
		return "", fmt.Errorf("locating module %s: %w", module, err)
	}
	return info.Dir, nil
}

func (w *worker) goVersion(ctx context.Context) (string, error) {
	var version string
	err := w.goCommand(ctx, []string{"env", "GOVERSION"}, func(line string) { version = line }, nil)
	return version, err
}

// BuildError is a go command that failed.
type BuildError struct {
	Command string
	// Output is the end of what it said.
	Output []string
	Err    error
}

func (e *BuildError) Error() string {
	return fmt.Sprintf("%s: %v\n\t%s", e.Command, e.Err, strings.Join(e.Output, "\n\t"))
}

func (e *BuildError) Unwrap() error { return e.Err }

// outputTail is how many lines of a failed command are worth showing.
const outputTail = 20

// goCommand runs go in the engine's module. The lines that it writes go to
// stdout and stderr, where those are set.
func (w *worker) goCommand(ctx context.Context, args []string, stdout, stderr func(string)) error {
	cmd := exec.CommandContext(ctx, w.store.goCommand(), args...)
	cmd.Dir = w.build.Source
	cmd.Env = w.store.environment(w.build)
	// The compilers that go starts die with it, on cancellation; and go dies
	// with us, should we be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second

	var tail []string
	cmdErr := runLines(cmd, stdout, func(line string) {
		if stderr != nil {
			stderr(line)
		}
		// With -v go names each package on a line of its own; what it complains about
		// has spaces.
		if !strings.ContainsAny(line, " \t") {
			return
		}
		if tail = append(tail, line); len(tail) > outputTail {
			tail = slices.Delete(tail, 0, 1)
		}
	})
	if cmdErr == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("go %s: %w: %w", args[0], errStopped, context.Cause(ctx))
	}
	return &BuildError{Command: "go " + args[0] + " in " + w.build.Source, Output: tail, Err: cmdErr}
}

// runLines runs cmd and calls back for each line of its two outputs.
func runLines(cmd *exec.Cmd, stdout, stderr func(string)) error {
	// The death signal is tied to the thread that starts the child; keep it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	errPipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	outPipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var readers sync.WaitGroup
	read := func(r io.Reader, line func(string)) {
		scanner := bufio.NewScanner(r)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			if line != nil {
				line(scanner.Text())
			}
		}
		// A line too long to scan must not block the child.
		_, _ = io.Copy(io.Discard, r)
	}
	readers.Go(func() { read(outPipe, stdout) })
	readers.Go(func() { read(errPipe, stderr) })
	readers.Wait()
	return cmd.Wait()
}
