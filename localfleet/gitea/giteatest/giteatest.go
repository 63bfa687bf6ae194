// Package giteatest starts a real Gitea for tests: one for all tests of a
// package, on loopback or in a network namespace of its own.
package giteatest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
)

// UID and GID are whom Gitea and its runner run as: no account has them.
const (
	UID = 61500
	GID = 61500
)

// Engines are the programs under test and Gitea's assets.
type Engines struct {
	Gitea, Runner, Assets string
}

// binDirs are where the engines may be: where OMNIVISION_ENGINES says, or the
// places of the fleet's cache.
func binDirs() []string {
	if dir := os.Getenv("OMNIVISION_ENGINES"); dir != "" {
		return []string{dir}
	}
	return []string{"/var/cache/omnivision/engines/bin", "/var/cache/omnivision/build/bin"}
}

// Find looks for the engines.
func Find() (Engines, error) {
	for _, dir := range binDirs() {
		program, err := filepath.EvalSymlinks(filepath.Join(dir, "gitea"))
		if err != nil {
			continue
		}
		e := Engines{Gitea: program, Runner: filepath.Join(dir, "runner")}
		for _, assets := range []string{
			filepath.Join(filepath.Dir(program), "share", "gitea-web"),
			filepath.Join(dir, "..", "gitea-web"),
			filepath.Join(dir, "..", "gomod", "code.gitea.io", "gitea@v1.26.0"), // no page, and all else
		} {
			if _, err := os.Stat(filepath.Join(assets, "templates")); err == nil {
				e.Assets = assets
				return e, nil
			}
		}
		return Engines{}, fmt.Errorf("no assets beside %s", program)
	}
	return Engines{}, fmt.Errorf("no gitea in %v: run `omnivision engines build gitea`, or name the directory with OMNIVISION_ENGINES", binDirs())
}

// Instance is one Gitea for the tests of a package. Close it in TestMain.
type Instance struct {
	NetNS string // empty is loopback of the machine

	once       sync.Once
	err        error
	dir        string
	release    func() error // of the port
	server     *gitea.Server
	config     gitea.Config
	engines    Engines
	supervisor *process.Supervisor
}

// Server returns the running Gitea with its administrator. The test is skipped
// where the engine is not built, except in CI, where it fails.
func (i *Instance) Server(t testing.TB) *gitea.Server {
	t.Helper()
	i.once.Do(func() { i.err = i.start() })
	if i.err != nil {
		var missing *missingError
		if errors.As(i.err, &missing) && os.Getenv("CI") == "" {
			t.Skip(i.err)
		}
		t.Fatal(i.err)
	}
	return i.server
}

type missingError struct{ error }

func (i *Instance) start() (err error) {
	if os.Geteuid() != 0 {
		return &missingError{errors.New("starting a gitea as its own user needs root")}
	}
	if i.engines, err = Find(); err != nil {
		return &missingError{err}
	}
	// Not t.TempDir, which Gitea's user could not enter.
	if i.dir, err = os.MkdirTemp("", "gitea-test-"); err != nil {
		return err
	}
	if err := os.Chmod(i.dir, 0o755); err != nil {
		return err
	}
	address := "127.0.0.1:3000"
	if i.NetNS == "" {
		port, release, err := freeport.Reserve()
		if err != nil {
			return err
		}
		i.release, address = release, fmt.Sprintf("127.0.0.1:%d", port)
	} else if err := netns.Ensure(i.NetNS); err != nil {
		return err
	}
	i.supervisor = &process.Supervisor{Dir: filepath.Join(i.dir, "state")}
	i.config = gitea.Config{
		Supervisor: i.supervisor, Program: i.engines.Gitea, Assets: i.engines.Assets, DataDir: filepath.Join(i.dir, "gitea"),
		NetNS: i.NetNS, Address: address, UID: UID, GID: GID,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := i.Restart(ctx); err != nil {
		return err
	}
	return i.server.EnsureAdmin(ctx)
}

// Restart starts Gitea unless it runs.
func (i *Instance) Restart(ctx context.Context) error {
	server, err := gitea.Start(ctx, i.config)
	if err == nil {
		i.server = server
	}
	return err
}

// Config is what Gitea was started with.
func (i *Instance) Config() gitea.Config { return i.config }

// Engines are the programs in use.
func (i *Instance) Engines() Engines { return i.engines }

// Dir is a directory for further daemons of the tests.
func (i *Instance) Dir() string { return i.dir }

// Close ends all daemons of the instance and removes what they left.
func (i *Instance) Close() {
	if i.dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if i.supervisor != nil {
		names, _ := i.supervisor.Names()
		for _, name := range names {
			_ = i.supervisor.Stop(ctx, name)
		}
	}
	if i.NetNS != "" {
		_ = netns.Delete(i.NetNS)
	}
	if i.release != nil {
		_ = i.release()
	}
	_ = os.RemoveAll(i.dir)
}
