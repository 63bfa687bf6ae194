package registry

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/process"
)

// registryProgram finds the engine. Where its folder is named, as `make test` does, it must be there.
func registryProgram(t *testing.T) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	path := filepath.Join(dir, "registry")
	if _, err := os.Stat(path); err != nil {
		if named {
			t.Fatalf("the registry is not in OMNIVISION_ENGINES: %v", err)
		}
		t.Skip("the registry is not built: run 'make engines'")
	}
	return path
}

// program is a file that only looks like one, for what never starts it.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registry")
	if err := os.WriteFile(path, []byte("#!/bin/false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPreparingAgainChangesNothing(t *testing.T) {
	s := Server{Binary: program(t), Dir: filepath.Join(t.TempDir(), "registry")}
	first, err := s.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	// The supervisor restarts a daemon whose inputs differ; a new secret each time would end all uploads.
	if first.Inputs[0] != second.Inputs[0] {
		t.Errorf("the configuration differs:\n%s\n%s", first.Inputs[0], second.Inputs[0])
	}
	config, err := os.ReadFile(s.configFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"version: 0.1\n", "addr: 127.0.0.1:5000", "relativeurls: true", "enabled: true", "rootdirectory: " + s.DataDir()} {
		if !strings.Contains(string(config), want) {
			t.Errorf("the configuration lacks %q:\n%s", want, config)
		}
	}
	for _, path := range []string{s.configFile(), s.secretFile()} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
}

func TestPrepareNamesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		server Server
		want   string
	}{
		"no program":      {Server{Binary: filepath.Join(dir, "none"), Dir: dir}, "no such file"},
		"no executable":   {Server{Binary: plain, Dir: dir}, "not executable"},
		"relative folder": {Server{Binary: program(t), Dir: "registry"}, "absolute path"},
		"host name":       {Server{Binary: program(t), Dir: dir, Address: "localhost:5000"}, "literal IP"},
	} {
		if _, err := tc.server.Prepare(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func TestReadyIsNotFooledByAnotherServer(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	s := Server{Address: strings.TrimPrefix(other.URL, "http://")}
	if err := s.Ready(context.Background()); err == nil || !strings.Contains(err.Error(), "is not a registry") {
		t.Errorf("got %v", err)
	}
}

// The real registry: as a user without rights, killed, and started again over what it stored.
func TestRegistryKeepsWhatWasPushedOverAKill(t *testing.T) {
	dir, err := os.MkdirTemp("", "registry")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := Server{Binary: registryProgram(t), Dir: filepath.Join(dir, "registry"), Address: freeport.Address(t)}
	if os.Getuid() == 0 {
		s.UID, s.GID = 65534, 65534
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	sup := &process.Supervisor{Dir: filepath.Join(dir, "sup")}
	t.Cleanup(func() {
		if err := sup.Stop(ctx, Name); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(ctx, sup); err != nil {
		t.Fatal(err)
	}
	pid, _ := sup.Running(Name)
	if err := s.Start(ctx, sup); err != nil {
		t.Fatal(err)
	}
	if again, _ := sup.Running(Name); again != pid {
		t.Errorf("a second start replaced process %d by %d", pid, again)
	}
	ref, err := name.ParseReference(s.Address+"/ghcr.io/omnivision/worker:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	if err := sup.Kill(ctx, Name); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx, sup); err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	got, err := remote.Head(ref)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := img.Digest(); err != nil || got.Digest != want {
		t.Errorf("after a kill the digest is %s, want %s", got.Digest, want)
	}
	if err := remote.Delete(ref.Context().Digest(got.Digest.String())); err != nil {
		t.Errorf("delete: %v", err)
	}
	if log := sup.LogTail(Name, 100); strings.Contains(log, "4318") || strings.Contains(log, "traces export") {
		t.Errorf("it tries to send traces:\n%s", log)
	}
}

func TestRegistryIsEmptiedAboveItsLimitAlone(t *testing.T) {
	s := Server{Dir: t.TempDir()}
	if err := s.Shrink(0); err != nil {
		t.Errorf("a registry that never stored anything: %v", err)
	}
	blob := filepath.Join(s.DataDir(), "docker", "registry", "v2", "blobs", "data")
	if err := os.MkdirAll(filepath.Dir(blob), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blob, make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Shrink(1000); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(blob); err != nil {
		t.Errorf("at its limit: %v", err)
	}
	if err := s.Shrink(999); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.DataDir()); !os.IsNotExist(err) {
		t.Errorf("above its limit it still stores something: %v", err)
	}
}
