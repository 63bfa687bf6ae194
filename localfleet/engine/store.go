package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/localfleet/preflight"
)

const (
	locksDir   = ".locks"
	partialDir = ".partial"
	// parallelBuilds is small because each build already keeps all processors
	// busy; a second one fills the gaps while the first links.
	parallelBuilds = 2
)

// Store is the built engines of a machine, and how they are built.
type Store struct {
	// Dir is the cache's directory. Engines live in Dir/engines, and the Go
	// caches that building needs in Dir/build.
	Dir string
	// Source is a checkout of this project; its engines/ directory holds the
	// modules that decide versions and keys.
	Source string
	// Engines is the catalogue; nil means Catalogue().
	Engines []Engine
	// Extras are the further steps that the caller can make; see Engine.Extras.
	Extras map[string]ExtraStep
	// KeepCaches leaves Dir/build when all is built. Otherwise it is removed:
	// the caches of all engines are tens of gigabytes.
	KeepCaches bool
	// SeedCache starts the engines' Go cache with what the user's own has.
	SeedCache bool
	// Go is the go command; empty means the one on the path.
	Go string

	// collection is the garbage collection of the compilers; see collection.
	collection []string
}

// ExtraStep makes a part of an engine that is not a Go program. It writes files
// below in.Dir and nothing else.
type ExtraStep func(ctx context.Context, in ExtraInput) error

// ExtraInput is what an extra step gets to work with.
type ExtraInput struct {
	Build Build
	// Dir is empty and belongs to the step.
	Dir string
	// ModuleDir returns the unpacked, read-only source of a module that the
	// engine requires.
	ModuleDir func(ctx context.Context, module string) (string, error)
	// Report tells what the step is doing.
	Report func(what string)
}

// NotBuiltError says that the store lacks an engine.
type NotBuiltError struct {
	Build  Build
	Binary string
}

func (e *NotBuiltError) Error() string {
	return fmt.Sprintf("%s of engine %s %s is not built; run `omnivision engines build %s`, or `omnivision engines load` on a machine without Go",
		e.Binary, e.Build.Name, e.Build.Version, e.Build.Name)
}

func (s *Store) catalogue() []Engine {
	if s.Engines != nil {
		return s.Engines
	}
	return Catalogue()
}

func (s *Store) enginesDir() string { return filepath.Join(s.Dir, "engines") }
func (s *Store) buildDir() string   { return filepath.Join(s.Dir, "build") }
func (s *Store) dir(b Build) string { return filepath.Join(s.enginesDir(), b.DirName()) }
func (s *Store) timingsPath() string {
	return filepath.Join(s.enginesDir(), "timings.json")
}

// lockPath is beside the engines' directories, so that a lock can be taken
// before its engine exists.
func (s *Store) lockPath(name string) string {
	return filepath.Join(s.enginesDir(), locksDir, name+".lock")
}

// Resolve returns what the engines called names are in the source checkout, in
// the order given; no names means all of them.
func (s *Store) Resolve(names ...string) ([]Build, error) {
	catalogue := s.catalogue()
	if len(names) == 0 {
		for _, e := range catalogue {
			names = append(names, e.Name)
		}
	}
	builds := make([]Build, 0, len(names))
	for _, name := range names {
		e, err := find(catalogue, name)
		if err != nil {
			return nil, err
		}
		b, err := resolve(s.Source, e)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(builds, func(o Build) bool { return o.Name == b.Name }) {
			builds = append(builds, b)
		}
	}
	return builds, nil
}

// Manifest returns what the store holds of b; the error is a *NotBuiltError
// when it holds nothing.
func (s *Store) Manifest(b Build) (Manifest, error) {
	m, err := readManifest(s.dir(b))
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, &NotBuiltError{Build: b, Binary: strings.Join(b.Programs(), ", ")}
	}
	return m, err
}

// Path returns where a program is. The error is a *NotBuiltError when the store
// does not hold it at the version and key of the source checkout.
func (s *Store) Path(binary string) (string, error) {
	for _, e := range s.catalogue() {
		if slices.Contains(e.Programs(), binary) {
			return s.file(e, binary, binary)
		}
	}
	return "", fmt.Errorf("no engine has a program called %q", binary)
}

// Asset returns where a file of an engine that is not a program is: one of
// Engine.Assets by its path in the module, or what an extra step made by
// EXTRA or EXTRA/FILE.
func (s *Store) Asset(engine, path string) (string, error) {
	e, err := find(s.catalogue(), engine)
	if err != nil {
		return "", err
	}
	return s.file(e, filepath.Join("share", filepath.FromSlash(path)), path)
}

func (s *Store) file(e Engine, rel, what string) (string, error) {
	b, err := resolve(s.Source, e)
	if err != nil {
		return "", err
	}
	if _, err := s.Manifest(b); err != nil {
		if missing := new(NotBuiltError); errors.As(err, &missing) {
			missing.Binary = what
		}
		return "", err
	}
	path := filepath.Join(s.dir(b), rel)
	if _, err := os.Stat(path); err != nil {
		return "", &NotBuiltError{Build: b, Binary: what}
	}
	return path, nil
}

// missing returns what has to be made for b to be complete.
func (s *Store) missing(b Build) (programs bool, extras []string, err error) {
	m, err := s.Manifest(b)
	if notBuilt := new(NotBuiltError); errors.As(err, &notBuilt) {
		programs, err = true, nil
	}
	if err != nil {
		return false, nil, err
	}
	for _, x := range b.Extras {
		if s.Extras[x] != nil && !slices.Contains(m.Extras, x) {
			extras = append(extras, x)
		}
	}
	return programs, extras, nil
}

// Ensure makes the store hold the engines called names. It builds only what is
// missing, in the order given, two at a time, and may be killed at any moment:
// the next call goes on with the programs and packages that were finished.
func (s *Store) Ensure(ctx context.Context, names []string, progress Progress) error {
	builds, err := s.Resolve(names...)
	if err != nil {
		return err
	}
	todo, err := s.incomplete(builds, progress)
	if err != nil || len(todo) == 0 {
		return err
	}
	if err := s.Environment(ctx, todo...); err != nil {
		return err
	}
	last, err := readTimings(s.timingsPath())
	if err != nil {
		last = timings{}
	}

	// Builders share the Go caches; whoever removes them must be alone.
	caches, err := s.openCaches(ctx)
	if err != nil {
		return err
	}
	defer caches.release()
	if err := s.checkSpace(todo); err != nil {
		return err
	}

	if available, err := preflight.AvailableMemory(); err == nil { // else as Go has it
		s.collection = collection(available, runtime.NumCPU())
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelBuilds)
	for _, b := range todo {
		group.Go(func() error {
			w := &worker{store: s, build: b, progress: progress, started: time.Now(), last: time.Duration(last[b.Name].Duration)}
			if err := w.run(groupCtx); err != nil {
				return fmt.Errorf("building engine %s %s: %w", b.Name, b.Version, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if s.KeepCaches {
		return nil
	}
	caches.release()
	return s.removeCaches()
}

// incomplete leaves out what is built, and reports it.
func (s *Store) incomplete(builds []Build, progress Progress) ([]Build, error) {
	var todo []Build
	for _, b := range builds {
		programs, extras, err := s.missing(b)
		if err != nil {
			return nil, err
		}
		if programs || len(extras) > 0 {
			todo = append(todo, b)
			continue
		}
		progress.report(Event{Engine: b.Name, Version: b.Version, Phase: Cached})
	}
	return todo, nil
}

// openCaches takes the shared lock on the Go caches. Nobody else building means
// that what is in the temporary directory was left by a killed build.
func (s *Store) openCaches(ctx context.Context) (*lock, error) {
	path := s.lockPath("caches")
	if alone, err := tryAcquire(path, syscall.LOCK_EX); err != nil {
		return nil, err
	} else if alone != nil {
		err := s.prepareCaches(ctx)
		alone.release()
		if err != nil {
			return nil, err
		}
	}
	l, err := acquire(ctx, path, syscall.LOCK_SH, nil)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.goTemp(), 0o755); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// prepareCaches is for whoever builds alone.
func (s *Store) prepareCaches(ctx context.Context) error {
	if err := os.RemoveAll(s.goTemp()); err != nil {
		return err
	}
	if !s.SeedCache {
		return nil
	}
	return s.seed(ctx)
}

// removeCaches removes the Go caches unless another process is using them;
// then that one will.
func (s *Store) removeCaches() error {
	l, err := tryAcquire(s.lockPath("caches"), syscall.LOCK_EX)
	if err != nil || l == nil {
		return err
	}
	defer l.release()
	for _, dir := range []string{s.goCache(), s.modCache(), s.goTemp()} {
		if err := removeReadOnly(dir); err != nil {
			return fmt.Errorf("removing the build cache of the engines: %w", err)
		}
	}
	return nil
}

// removeReadOnly removes a tree whose directories forbid writing, as those of a
// module cache do.
func removeReadOnly(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o755)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// checkSpace refuses to start a build that the disk cannot hold.
func (s *Store) checkSpace(todo []Build) error {
	var need int64
	var names []string
	for _, b := range todo {
		need += b.Scratch
		names = append(names, b.Name)
	}
	if err := os.MkdirAll(s.enginesDir(), 0o755); err != nil {
		return fmt.Errorf("making the store of engines: %w", err)
	}
	// What an interrupted build left in the caches is not needed again.
	need -= treeSize(s.goCache()) + treeSize(s.modCache())
	var fsinfo syscall.Statfs_t
	if err := syscall.Statfs(s.Dir, &fsinfo); err != nil {
		return fmt.Errorf("looking up the free space of %s: %w", s.Dir, err)
	}
	free := int64(fsinfo.Bavail) * fsinfo.Bsize
	if free >= need {
		return nil
	}
	return &NoSpaceError{Dir: s.Dir, Engines: names, Need: need, Free: free}
}

// NoSpaceError says that a build would fill the disk.
type NoSpaceError struct {
	Dir        string
	Engines    []string
	Need, Free int64
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("building %s takes up to %.1f GB below %s, and %.1f GB are free; free some, choose another cache directory, or load packed engines with `omnivision engines load`",
		strings.Join(e.Engines, ", "), float64(e.Need)/1e9, e.Dir, float64(e.Free)/1e9)
}

func treeSize(dir string) int64 {
	var n int64
	// A tree that cannot be read is counted as empty, which errs to the safe
	// side.
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}

func (s *Store) goCache() string  { return filepath.Join(s.buildDir(), "gocache") }
func (s *Store) modCache() string { return filepath.Join(s.buildDir(), "gomod") }
func (s *Store) goTemp() string   { return filepath.Join(s.buildDir(), "tmp") }

func platform() string { return runtime.GOOS + "/" + runtime.GOARCH }
