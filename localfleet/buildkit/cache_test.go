package buildkit

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/registry"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// engine finds a program that `make engines` builds.
func engine(t *testing.T, name string) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	program := filepath.Join(dir, name)
	if _, err := os.Stat(program); err != nil {
		if named {
			t.Fatalf("%s is not in OMNIVISION_ENGINES: %v", name, err)
		}
		t.Skipf("%s is not built: run 'make engines' and set OMNIVISION_ENGINES to the folder of programs", name)
	}
	return program
}

// cgroup is the parent of the containers' groups. BuildKit leaves it.
const cgroup = "/omnivision-buildkit-test"

func removeCgroups() {
	for _, group := range []string{cgroup + "/buildkit", cgroup} {
		left, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
		for _, dir := range append(left, "/sys/fs/cgroup"+group) {
			_ = os.Remove(dir)
		}
	}
}

// machines are daemons that have nothing in common but the registry.
type machines struct {
	t          *testing.T
	supervisor *process.Supervisor
	repository name.Repository
}

func newMachines(t *testing.T) machines {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a daemon that makes containers takes root")
	}
	address := freeport.Address(t)
	m := machines{t: t, supervisor: &process.Supervisor{Dir: filepath.Join(t.TempDir(), "supervisor")}}
	server := registry.Server{Binary: engine(t, "registry"), Dir: filepath.Join(t.TempDir(), "registry"), Address: address}
	t.Cleanup(removeCgroups)
	t.Cleanup(func() { check(t, m.supervisor.Stop(context.Background(), registry.Name)) })
	check(t, server.Start(t.Context(), m.supervisor))
	repository, err := name.NewRepository(address+"/omnivision/omnivision-worker", name.Insecure)
	check(t, err)
	m.repository = repository
	return m
}

// request is to build a Dockerfile for two platforms.
func (m machines) request(dockerfile string) build.Request {
	m.t.Helper()
	dir := m.t.TempDir()
	check(m.t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600))
	return build.Request{
		Context: dir, Dockerfile: "Dockerfile", Commit: strings.Repeat("0123456789", 4), Version: "0.1.0-57", Time: time.Unix(1_793_000_000, 0),
		Platforms: []string{"linux/amd64", "linux/arm64"}, Repositories: []name.Repository{m.repository},
	}
}

// build builds by a daemon that has nothing, and is gone afterwards.
func (m machines) build(r build.Request) build.Result {
	m.t.Helper()
	dir, err := os.MkdirTemp("", "omnivision-machine-") // a socket's name must be short
	check(m.t, err)
	defer func() { check(m.t, os.RemoveAll(dir)) }()
	server := Server{Binary: engine(m.t, "buildkitd"), Dir: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), Cgroup: cgroup, CacheBytes: 1e9}
	defer func() { check(m.t, m.supervisor.Stop(context.Background(), Name)) }()
	check(m.t, server.Start(m.t.Context(), m.supervisor))
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Minute)
	defer cancel()
	result, err := build.Builder{Address: server.Address()}.Build(ctx, r, func(step string) { m.t.Log(step) })
	if err != nil {
		m.t.Fatalf("%v\n%s", err, m.supervisor.LogTail(Name, 20))
	}
	return result
}

// dice is a program that never makes the same file twice.
const dice = `package main

import (
	"crypto/rand"
	"os"
)

func main() {
	if err := os.WriteFile(os.Args[1], []byte(rand.Text()), 0o644); err != nil {
		panic(err)
	}
}
`

// diceImage is an OCI layout with one image that holds the program.
func diceImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "dice.go"), []byte(dice), 0o600))
	compile := exec.CommandContext(t.Context(), "go", "build", "-o", "dice", "dice.go")
	compile.Dir, compile.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "dice"))
	check(t, err)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	check(t, w.WriteHeader(&tar.Header{Name: "dice", Mode: 0o755, Size: int64(len(program))}))
	_, err = w.Write(program)
	check(t, err)
	check(t, w.Close())
	layer := static.NewLayer(archive.Bytes(), types.OCIUncompressedLayer)
	image, err := mutate.AppendLayers(empty.Image, layer)
	check(t, err)
	config, err := image.ConfigFile()
	check(t, err)
	config.OS, config.Architecture = "linux", runtime.GOARCH
	image, err = mutate.ConfigFile(image, config)
	check(t, err)
	at := filepath.Join(dir, "layout")
	path, err := layout.Write(at, empty.Index)
	check(t, err)
	check(t, path.AppendImage(image))
	return at
}

// A step that is run again makes another file, so an image with the same digest holds the
// file that the first daemon made: the second one found it in the cache of the registry. The
// step sees the context and a cache as those of our images do.
func TestRegistryCacheSparesAMachineThatHasNothing(t *testing.T) {
	const base = "docker.io/library/dice:1"
	m := newMachines(t)
	r := m.request("FROM --platform=${BUILDPLATFORM} " + base + "@sha256:" + strings.Repeat("0", 64) + " AS made\n" +
		"RUN --mount=type=bind,target=/src --mount=type=cache,target=/cache [\"/dice\", \"/made\"]\nFROM scratch\nCOPY --from=made /made /made\n")
	r.BaseImages = map[string]string{base: diceImage(t)}
	r.Cache = m.repository.Registry.Name() + "/omnivision/build-cache:omnivision-worker"
	ran := func(result build.Result) bool { return strings.Contains(strings.Join(result.Steps.Run, "\n"), "RUN ") }
	first := m.build(r)
	if !ran(first) || first.Steps.Cached != 0 {
		t.Errorf("with nothing in the cache: %+v", first.Steps)
	}
	later := time.Now().Add(time.Hour)
	check(t, os.Chtimes(filepath.Join(r.Context, "Dockerfile"), later, later))
	second := m.build(r)
	if second.Digest != first.Digest || ran(second) || second.Steps.Cached == 0 {
		t.Errorf("with the cache of another machine it is %s, not %s: %+v", second.Digest, first.Digest, second.Steps)
	}
	// Without it the step is run, and cannot make the same.
	r.Cache, r.Version = "", "0.1.0-58"
	if third := m.build(r); third.Digest == first.Digest || !ran(third) {
		t.Errorf("without the cache: %+v", third)
	}
}

func TestMachinesThatHaveNothingMakeTheSameImageOfTheSameFiles(t *testing.T) {
	m := newMachines(t)
	r := m.request("FROM scratch\nARG VERSION\nLABEL version=\"${VERSION}\"\nCOPY hello /there/hello\n")
	hello := filepath.Join(r.Context, "hello")
	check(t, os.WriteFile(hello, []byte("hello\n"), 0o644))
	first := m.build(r)
	later := time.Now().Add(time.Hour)
	check(t, os.Chtimes(hello, later, later))
	// A cache that is away is said, and nothing else.
	r.Cache = "127.0.0.1:1/omnivision/build-cache:omnivision-worker"
	second := m.build(r)
	if second.Digest != first.Digest || len(second.Steps.Run) != 1 {
		t.Errorf("the same files are %s, then %s by %v", first.Digest, second.Digest, second.Steps)
	}
	if said := strings.Join(second.Steps.Failed, "\n"); !strings.Contains(said, "exporting cache to registry: ") || len(first.Steps.Failed) != 0 {
		t.Errorf("what did not work is %q, and first was %q", said, first.Steps.Failed)
	}
}
