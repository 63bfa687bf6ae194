package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// daemon answers as BuildKit's control service does, as far as a build goes: its image
// is made of what it is asked for, and pushed by digest.
type daemon struct {
	controlapi.UnimplementedControlServer

	address  string
	requests []*controlapi.SolveRequest
	fail     error
	// index changes what is pushed; nil pushes what was asked for.
	index func(v1.ImageIndex) v1.ImageIndex
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "buildkitd.sock")
	listener, err := net.Listen("unix", socket)
	check(t, err)
	d := &daemon{address: "unix://" + socket}
	server := grpc.NewServer()
	controlapi.RegisterControlServer(server, d)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return d
}

func (d *daemon) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: &apitypes.BuildkitVersion{Version: "v0.34.2"}}, nil
}

// Session holds the stream that the client serves its files and credentials on.
func (d *daemon) Session(stream controlapi.Control_SessionServer) error {
	for { // the client says when it is done, and then waits for the end
		if _, err := stream.Recv(); err != nil {
			return nil
		}
	}
}

func (d *daemon) Status(_ *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	vertex := func(id int, name string) *controlapi.Vertex {
		return &controlapi.Vertex{Digest: fmt.Sprintf("sha256:%064x", id), Name: name, Started: timestamppb.Now()}
	}
	compile, copied := vertex(1, "[linux/arm64 build 2/3] RUN go build"), vertex(2, "[stage-1 1/2] COPY --from=build /out /out")
	copied.Cached = true
	if d.fail != nil {
		compile.Error = d.fail.Error()
	}
	for _, told := range []*controlapi.StatusResponse{
		{Vertexes: []*controlapi.Vertex{vertex(3, "[internal] load build context"), vertex(4, "[build 1/3] FROM docker.io/library/golang"), {Digest: fmt.Sprintf("sha256:%064x", 5), Name: "[build 3/3] RUN never"}}},
		{Vertexes: []*controlapi.Vertex{vertex(1, compile.Name), copied}},
		{Logs: []*controlapi.VertexLog{
			{Vertex: compile.Digest, Msg: []byte(strings.Repeat("go: downloading a module\n", 1000))},
			{Vertex: compile.Digest, Msg: []byte("main.go:3: unde")}, {Vertex: compile.Digest, Msg: []byte("fined: \x1b[31mx\r\n")},
			{Vertex: copied.Digest, Msg: []byte("nothing of interest\n")},
		}},
		{Vertexes: []*controlapi.Vertex{compile, copied}}, // steps are told of more than once
	} {
		if err := stream.Send(told); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) Solve(_ context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	d.requests = append(d.requests, req)
	if d.fail != nil {
		return nil, d.fail
	}
	attrs := req.Exporters[0].Attrs
	index, err := made(req.FrontendAttrs, attrs)
	if err != nil {
		return nil, err
	}
	if d.index != nil {
		index = d.index(index)
	}
	digest, err := index.Digest()
	if err != nil {
		return nil, err
	}
	repository, err := name.NewRepository(attrs["name"], name.Insecure)
	if err != nil {
		return nil, err
	}
	if err := remote.WriteIndex(repository.Digest(digest.String()), index); err != nil {
		return nil, err
	}
	return &controlapi.SolveResponse{ExporterResponse: map[string]string{"containerimage.digest": digest.String()}}, nil
}

func made(frontend, exporter map[string]string) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	annotations := map[string]string{}
	for key, value := range exporter {
		if key, ok := strings.CutPrefix(key, "annotation-index."); ok {
			annotations[key] = value
		}
	}
	index = mutate.Annotations(index, annotations).(v1.ImageIndex)
	for _, name := range strings.Split(frontend["platform"], ",") {
		platform, err := v1.ParsePlatform(name)
		if err != nil {
			return nil, err
		}
		image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
			OS: platform.OS, Architecture: platform.Architecture, RootFS: v1.RootFS{Type: "layers"},
			Config: v1.Config{Labels: map[string]string{"version": frontend["build-arg:VERSION"], "epoch": frontend["build-arg:SOURCE_DATE_EPOCH"]}},
		})
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	return index, nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newRepositories are on registries of their own.
func newRepositories(t *testing.T, count int) (repositories []name.Repository) {
	t.Helper()
	for range count {
		server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(server.Close)
		r, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/omnivision-worker", name.Insecure)
		check(t, err)
		repositories = append(repositories, r)
	}
	return repositories
}

const (
	commit = "0123456789abcdef0123456789abcdef01234567"
	golang = "docker.io/library/golang:1.26.8-bookworm"
	pinned = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func request(t *testing.T, repositories []name.Repository) Request {
	t.Helper()
	dir := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(dir, "cmd/worker"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "cmd/worker/Dockerfile"), []byte("FROM "+golang+"@"+pinned+" AS build\nFROM scratch\n"), 0o644))
	return Request{
		Context: dir, Dockerfile: "cmd/worker/Dockerfile", Title: "omnivision-worker", Source: "https://github.com/omnivision/omnivision",
		Commit: commit, Version: "0.1.0-57", Time: time.Unix(1_793_000_000, 0), Platforms: []string{"linux/amd64", "linux/arm64"},
		Repositories: repositories,
	}
}

func nothing(string) {}

func TestImageIsInEveryRepositoryUnderItsVersion(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 3)
	var steps []string
	b := Builder{Address: d.address}
	result, err := b.Build(t.Context(), request(t, repositories), func(step string) { steps = append(steps, step) })
	check(t, err)
	if result.Tag != "0.1.0-57" || len(result.Platforms) != 2 || result.Platforms[1].Platform != "linux/arm64" || len(result.Repositories) != 3 {
		t.Errorf("result is %+v", result)
	}
	for _, repository := range repositories {
		desc, err := remote.Get(repository.Tag("0.1.0-57"))
		check(t, err)
		index, err := desc.ImageIndex()
		check(t, err)
		manifest, err := index.IndexManifest()
		check(t, err)
		if desc.Digest.String() != result.Digest || manifest.Annotations["org.opencontainers.image.revision"] != commit || manifest.Annotations["org.opencontainers.image.version"] != "0.1.0-57" {
			t.Errorf("%s has %s with %v", repository, desc.Digest, manifest.Annotations)
		}
	}
	check(t, b.Check(t.Context(), repositories, result))
	if len(steps) != 4+2 || steps[2] != "[linux/arm64 build 2/3] RUN go build" {
		t.Errorf("reported %q", steps)
	}
	if len(result.Steps.Run) != 1 || result.Steps.Run[0] != steps[2] || result.Steps.String() != "1 of 2 steps from the cache" {
		t.Errorf("steps are %+v", result.Steps)
	}
	if written, err := json.Marshal(result); err != nil || strings.Contains(strings.ToLower(string(written)), "steps") {
		t.Errorf("the evidence would differ from build to build: %s, %v", written, err)
	}
}

func TestDaemonIsToldWhatMakesABuildRepeatable(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 1)
	r := request(t, repositories)
	r.Args = map[string]string{"GO_DIGEST": "sha256:1"}
	r.Cache = repositories[0].String() + ":cache"
	_, err := Builder{Address: d.address}.Build(t.Context(), r, nothing)
	check(t, err)
	got := d.requests[0]
	for key, want := range map[string]string{
		"filename": "cmd/worker/Dockerfile", "platform": "linux/amd64,linux/arm64", "multi-platform": "true",
		"build-arg:VERSION": "0.1.0-57", "build-arg:COMMIT": commit, "build-arg:SOURCE_DATE_EPOCH": "1793000000", "build-arg:GO_DIGEST": "sha256:1",
		"label:org.opencontainers.image.source": "https://github.com/omnivision/omnivision",
	} {
		if got.FrontendAttrs[key] != want {
			t.Errorf("frontend attribute %s is %q, want %q", key, got.FrontendAttrs[key], want)
		}
	}
	for key, want := range map[string]string{
		"push": "true", "push-by-digest": "true", "rewrite-timestamp": "true", "oci-mediatypes": "true", "registry.insecure": "true",
		"annotation.org.opencontainers.image.revision": commit, "annotation-index.org.opencontainers.image.revision": commit,
	} {
		if got.Exporters[0].Attrs[key] != want {
			t.Errorf("exporter attribute %s is %q, want %q", key, got.Exporters[0].Attrs[key], want)
		}
	}
	if got.Frontend != "dockerfile.v0" || len(got.Cache.Exports) != 1 || got.Cache.Exports[0].Attrs["mode"] != "max" || got.Cache.Exports[0].Attrs["ignore-error"] != "true" || len(got.Cache.Imports) != 1 || got.Cache.Imports[0].Attrs["ref"] != r.Cache {
		t.Errorf("frontend %s, cache %+v", got.Frontend, got.Cache)
	}
	// Attestations tell the time, and no two builds would be equal.
	for key := range got.FrontendAttrs {
		if strings.HasPrefix(key, "attest:") {
			t.Errorf("the index would hold %s", key)
		}
	}
}

func TestRepeatedBuildEndsInTheSameImage(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 2)
	b := Builder{Address: d.address}
	first, err := b.Build(t.Context(), request(t, repositories), nothing)
	check(t, err)
	second, err := b.Build(t.Context(), request(t, repositories), nothing)
	check(t, err)
	if fmt.Sprint(first) != fmt.Sprint(second) {
		t.Errorf("first %+v, then %+v", first, second)
	}
}

func TestTagOfAnotherImageIsNotMoved(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 2)
	foreign, err := random.Image(100, 1)
	check(t, err)
	tag := repositories[1].Tag("0.1.0-57")
	check(t, remote.Write(tag, foreign))
	_, err = Builder{Address: d.address}.Build(t.Context(), request(t, repositories), nothing)
	if !errors.Is(err, ErrTagTaken) || !strings.Contains(err.Error(), tag.String()) {
		t.Errorf("error is %v", err)
	}
	want, err := foreign.Digest()
	check(t, err)
	if have, err := remote.Head(tag); err != nil || have.Digest != want {
		t.Errorf("the tag is at %v, %v", have, err)
	}
	// The other repository was free, and got no name either.
	if _, err := remote.Head(repositories[0].Tag("0.1.0-57")); err == nil {
		t.Error("half of the tags were written")
	}
}

func TestIndexForOtherPlatformsIsRefused(t *testing.T) {
	repositories := newRepositories(t, 1)
	for name, change := range map[string]func(v1.ImageIndex) v1.ImageIndex{
		"one is missing": func(index v1.ImageIndex) v1.ImageIndex {
			manifest, _ := index.IndexManifest()
			return mutate.RemoveManifests(index, func(d v1.Descriptor) bool { return d.Digest == manifest.Manifests[0].Digest })
		},
		"one is for none": func(index v1.ImageIndex) v1.ImageIndex {
			image, _ := random.Image(10, 1)
			return mutate.AppendManifests(index, mutate.IndexAddendum{Add: image})
		},
	} {
		d := newDaemon(t)
		d.index = change
		if _, err := (Builder{Address: d.address}).Build(t.Context(), request(t, repositories), nothing); err == nil || !strings.Contains(err.Error(), "platform") && !strings.Contains(err.Error(), "the index is for") {
			t.Errorf("%s: error is %v", name, err)
		}
		if _, err := remote.Head(repositories[0].Tag("0.1.0-57")); err == nil {
			t.Errorf("%s: it was named", name)
		}
	}
}

func TestLostImageIsNoticed(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 2)
	b := Builder{Address: d.address}
	result, err := b.Build(t.Context(), request(t, repositories), nothing)
	check(t, err)
	if err := b.Check(t.Context(), repositories[:1], result); err == nil || !strings.Contains(err.Error(), "it was built for") {
		t.Errorf("with other repositories: %v", err)
	}
	check(t, remote.Delete(repositories[1].Digest(result.Platforms[0].Digest)))
	if err := b.Check(t.Context(), repositories, result); err == nil || !strings.Contains(err.Error(), result.Platforms[0].Platform) {
		t.Errorf("without one platform's image: %v", err)
	}
	other, err := random.Index(10, 1, 1)
	check(t, err)
	check(t, remote.WriteIndex(repositories[0].Tag("0.1.0-57"), other))
	if err := b.Check(t.Context(), repositories, result); err == nil || !strings.Contains(err.Error(), "not "+result.Digest) {
		t.Errorf("with a moved tag: %v", err)
	}
	check(t, remote.Delete(repositories[0].Tag("0.1.0-57")))
	if err := b.Check(t.Context(), repositories, result); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Errorf("without the tag: %v", err)
	}
}

func TestBaseImageFromThisMachineTakesThePlaceOfTheNamedOne(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 1)
	dir := t.TempDir()
	base, err := random.Image(10, 1)
	check(t, err)
	path, err := layout.Write(dir, empty.Index)
	check(t, err)
	check(t, path.AppendImage(base))
	r := request(t, repositories)
	r.BaseImages = map[string]string{golang: dir, "gcr.io/other:1": "docker-image://is-not-asked-for"}
	_, err = Builder{Address: d.address}.Build(t.Context(), r, nothing)
	check(t, err)
	digest, err := base.Digest()
	check(t, err)
	// BuildKit looks for the short name, as `docker` shows it.
	const asked = "context:golang:1.26.8-bookworm@" + pinned
	if got := d.requests[0].FrontendAttrs[asked]; got != "oci-layout://layout-0@"+digest.String() {
		t.Errorf("the context is %q among %v", got, d.requests[0].FrontendAttrs)
	}
	r.BaseImages[golang] = "docker-image://docker.io/library/golang:1.26.8-bookworm"
	_, err = Builder{Address: d.address}.Build(t.Context(), r, nothing)
	check(t, err)
	if got := d.requests[1].FrontendAttrs; got[asked] != r.BaseImages[golang] || len(got) != len(d.requests[0].FrontendAttrs) {
		t.Errorf("the frontend is told %v", got)
	}
	r.BaseImages[golang] = dir
	check(t, path.AppendImage(empty.Image))
	if _, err := (Builder{Address: d.address}).Build(t.Context(), r, nothing); err == nil || !strings.Contains(err.Error(), "holds 2 images") {
		t.Errorf("with two images in the layout: %v", err)
	}
}

func TestFailureSaysWhatWasBuiltAndWhere(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 1)
	d.fail = errors.New("process \"go build\" did not complete successfully: exit code: 1")
	_, err := Builder{Address: d.address}.Build(t.Context(), request(t, repositories), nothing)
	if err == nil || !strings.Contains(err.Error(), "building cmd/worker/Dockerfile from "+commit) || !strings.Contains(err.Error(), "exit code: 1") {
		t.Errorf("error is %v", err)
	}
	if end := "\n[linux/arm64 build 2/3] RUN go build ended with:\n  go: downloading a module\n"; !strings.Contains(err.Error(), end) || !strings.HasSuffix(err.Error(), "\n  main.go:3: undefined:  [31mx") || strings.Count(err.Error(), "\n") != 1+shownLines {
		t.Errorf("error is %q", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Builder{Address: "unix://" + filepath.Join(t.TempDir(), "none.sock")}.Build(ctx, request(t, repositories), nothing)
	if err == nil || !strings.Contains(err.Error(), "start buildkitd, or name its socket") {
		t.Errorf("without a daemon: %v", err)
	}
}

// A registry that is away says nothing about a tag: it is not free.
func TestUnreachableRegistryTagsNothing(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 2)
	nowhere, err := name.NewRepository("127.0.0.1:1/omnivision-worker", name.Insecure)
	check(t, err)
	b := Builder{Address: d.address, Registry: []remote.Option{remote.WithRetryPredicate(func(error) bool { return false })}}
	r := request(t, []name.Repository{repositories[0], nowhere})
	if _, err := b.Build(t.Context(), r, nothing); err == nil || !strings.Contains(err.Error(), "looking whether "+nowhere.Tag(r.Version).String()+" is free") {
		t.Errorf("error is %v", err)
	}
	if _, err := remote.Head(repositories[0].Tag(r.Version)); err == nil {
		t.Error("the registry that was there has the tag already")
	}
	r = request(t, repositories)
	result, err := b.Build(t.Context(), r, nothing)
	check(t, err)
	check(t, b.Check(t.Context(), repositories, result))
	if err := b.Check(t.Context(), []name.Repository{nowhere}, elsewhere(result, nowhere)); err == nil {
		t.Error("what cannot be asked for holds")
	}
}

// elsewhere is a result as if it were in another repository.
func elsewhere(r Result, repository name.Repository) Result {
	r.Repositories = []string{repository.String()}
	return r
}

func TestWhatTheSourceDecidesCannotBeGiven(t *testing.T) {
	repositories := newRepositories(t, 1)
	for name, change := range map[string]func(*Request){
		"the version":    func(r *Request) { r.Args = map[string]string{"VERSION": "9"} },
		"the time":       func(r *Request) { r.Args = map[string]string{"SOURCE_DATE_EPOCH": "0"} },
		"no repository":  func(r *Request) { r.Repositories = nil },
		"no platform":    func(r *Request) { r.Platforms = nil },
		"no commit":      func(r *Request) { r.Commit = "" },
		"no commit time": func(r *Request) { r.Time = time.Time{} },
	} {
		r := request(t, repositories)
		change(&r)
		if _, err := (Builder{Address: "unix:///nonexistent"}).Build(t.Context(), r, nothing); err == nil || strings.Contains(err.Error(), "BuildKit") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

type keychain map[string]authn.AuthConfig

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if config, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(config), nil
	}
	return authn.Anonymous, nil
}

func TestCredentialsAreThoseOfTheRegistry(t *testing.T) {
	keys := keychain{"ghcr.io": {Username: "u", Password: "p"}}
	if config, err := credentials(keys, "ghcr.io"); err != nil || config.Username != "u" || config.Password != "p" {
		t.Errorf("credentials are %+v, %v", config, err)
	}
	if config, err := credentials(keys, "example.com"); err != nil || *config != (authn.AuthConfig{}) {
		t.Errorf("credentials of another registry are %+v, %v", config, err)
	}
}

func TestAnnotationsLeaveOutWhatIsNotKnown(t *testing.T) {
	r := request(t, nil)
	all := maps.Clone(r.annotations())
	r.Source = ""
	if rest := r.annotations(); len(rest) != len(all)-1 || rest["org.opencontainers.image.source"] != "" {
		t.Errorf("annotations are %v", rest)
	}
}
