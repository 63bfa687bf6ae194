package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// builder makes images of programs that are one line long, and of a base that
// was made before.
func builder(t *testing.T) *Builder {
	t.Helper()
	programs := t.TempDir()
	b := &Builder{Cache: t.TempDir(), Source: checkout, Offline: true}
	b.Binary = func(name string) (string, error) {
		path := filepath.Join(programs, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		return path, os.WriteFile(path, []byte("program "+name), 0o755)
	}
	b.Asset = func(_, path string) (string, error) { return b.Binary(filepath.Base(path)) }
	layers := packageLayers{}
	for _, set := range packageSets {
		base := tree{}
		base.file("etc/base", set.Name, 0o644)
		layer, err := b.writeLayer(base)
		if err != nil {
			t.Fatal(err)
		}
		layers[set.Name] = packageLayer{Digest: layer.digest}
	}
	if err := b.rememberPackages(packageSets, layers); err != nil {
		t.Fatal(err)
	}
	return b
}

func build(t *testing.T, b *Builder, reference string) *Image {
	t.Helper()
	img, err := b.Build(t.Context(), reference)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// entries are the headers of an image's top layer.
func entries(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[len(layers)-1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	headers := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name] = h
	}
}

func TestSameInputGivesTheSameDigestOnEveryMachine(t *testing.T) {
	for _, reference := range []string{
		mustReference(t, "quay.io/argoproj/argocd"), mustReference(t, "quay.io/argoproj/argo-rollouts"), mustReference(t, "docker.io/library/traefik"),
		mustReference(t, "registry.k8s.io/coredns/coredns"), redisReference, mustReference(t, "quay.io/prometheus/prometheus"),
	} {
		first, second := build(t, builder(t), reference), build(t, builder(t), reference)
		if digest(t, first) != digest(t, second) {
			t.Errorf("%s: %s and %s", reference, digest(t, first), digest(t, second))
		}
		if first.Substitute == "" || first.Made == "" || first.Bytes == 0 {
			t.Errorf("%s: its story is missing: %+v", reference, first)
		}
	}
}

func TestImageIsMadeAgainOnlyWhenItsInputChanges(t *testing.T) {
	b := builder(t)
	reference := mustReference(t, "registry.k8s.io/coredns/coredns")
	before := digest(t, build(t, b, reference))
	keys := func() int { return len(keyFiles(t, b)) }
	written := func() time.Time {
		layers, err := build(t, b, reference).Layers()
		if err != nil {
			t.Fatal(err)
		}
		h, err := layers[1].Digest()
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(b.blobs().path(h))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	first := written()
	if again := digest(t, build(t, b, reference)); again != before || keys() != 1 {
		t.Errorf("%s, then %s, %d keys", before, again, keys())
	}
	if !written().Equal(first) {
		t.Error("the image was assembled again, although nothing had changed")
	}
	path, _ := b.Binary("coredns")
	if err := os.WriteFile(path, []byte("another program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if after := digest(t, build(t, b, reference)); after == before || keys() != 2 {
		t.Errorf("a changed program gave %s again, %d keys", after, keys())
	}
}

func keyFiles(t *testing.T, b *Builder) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(b.dir(), "keys", "image-*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCacheThatLostALayerIsNotServed(t *testing.T) {
	b := builder(t)
	reference := mustReference(t, "registry.k8s.io/coredns/coredns")
	img := build(t, b, reference)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(b.blobs().path(h), 10); err != nil {
		t.Fatal(err)
	}
	again := build(t, b, reference)
	if err := validate(again); err != nil {
		t.Error(err)
	}
}

// validate reads every layer and compares its digest.
func validate(img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		got, _, err := v1.SHA256(r)
		r.Close()
		if want, _ := l.Digest(); err != nil || got != want {
			return errors.Join(err, errors.New("layer "+want.String()+" has the content "+got.String()))
		}
	}
	return nil
}

func TestArgoCDImageHasUpstreamsPaths(t *testing.T) {
	img := build(t, builder(t), mustReference(t, "quay.io/argoproj/argocd"))
	got := entries(t, img)
	for name, want := range map[string]tar.Header{
		"usr/local/bin/argocd":                        {Typeflag: tar.TypeReg, Mode: 0o755},
		"usr/local/bin/helm":                          {Typeflag: tar.TypeReg, Mode: 0o755},
		"usr/local/bin/kustomize":                     {Typeflag: tar.TypeReg, Mode: 0o755},
		"usr/local/bin/argocd-server":                 {Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "/usr/local/bin/argocd"},
		"usr/local/bin/argocd-repo-server":            {Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "/usr/local/bin/argocd"},
		"usr/local/bin/argocd-application-controller": {Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "/usr/local/bin/argocd"},
		"usr/local/bin/gpg-wrapper.sh":                {Typeflag: tar.TypeReg, Mode: 0o755},
		"home/argocd/":                                {Typeflag: tar.TypeDir, Mode: 0o775, Uid: 999},
		"app/config/gpg/keys/":                        {Typeflag: tar.TypeDir, Mode: 0o700, Uid: 999},
		"etc/ssh/ssh_known_hosts":                     {Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "/app/config/ssh/ssh_known_hosts"},
	} {
		h := got[name]
		if h == nil || h.Typeflag != want.Typeflag || h.Mode != want.Mode || h.Linkname != want.Linkname || h.Uid != want.Uid {
			t.Errorf("/%s is %+v, want %+v", name, h, want)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "999" || !slices.Equal(config.Config.Entrypoint, []string{"/usr/bin/tini", "--"}) || !config.Created.Equal(epoch) {
		t.Errorf("config %+v, created %v", config.Config, config.Created)
	}
}

func TestCoreDNSMayListenOnPort53AsAnOrdinaryUser(t *testing.T) {
	img := build(t, builder(t), mustReference(t, "registry.k8s.io/coredns/coredns"))
	if got := entries(t, img)["coredns"].PAXRecords["SCHILY.xattr.security.capability"]; got != capNetBindService {
		t.Errorf("its capability is %q", got)
	}
}

func TestLayersAreNotCompressed(t *testing.T) {
	img := build(t, builder(t), redisReference)
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range manifest.Layers {
		if l.MediaType != types.OCIUncompressedLayer || l.Digest != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %s, %s, with the content %s", i, l.MediaType, l.Digest, config.RootFS.DiffIDs[i])
		}
	}
	if err := validate(img); err != nil {
		t.Error(err)
	}
}

func TestOwnImagesAreRecognisedInEveryRegistry(t *testing.T) {
	b := builder(t)
	for reference, want := range map[string]string{
		"123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:v0.1.0": workerImage,
		"europe-west1-docker.pkg.dev/omnivision/images/omnivision-ui:v0.1.0":               uiImage,
		"ghcr.io/omnivision/gpu-substitute:v1":                                             gpuSubstituteImage,
		"redis:8.10.1-alpine":                                                              "",
		"quay.io/argoproj/argocd:v1.0.0":                                                   "",
		"index.docker.io/library/traefik:" + strings.SplitN(mustReference(t, "docker.io/library/traefik"), ":", 2)[1]: mustReference(t, "docker.io/library/traefik"),
	} {
		r, err := b.recipe(reference)
		if r.Reference != want || (err == nil) != (want != "") {
			t.Errorf("%s is made by the recipe of %q: %v, want %q", reference, r.Reference, err, want)
		}
	}
}

func TestOwnProgramIsStampedAndStatic(t *testing.T) {
	b := builder(t)
	b.Version, b.Commit = "1.2.3", "abc"
	b.Report = func(s string) { t.Log(s) }
	img := build(t, b, pauseReference)
	if h := entries(t, img)["pause"]; h == nil || h.Mode != 0o755 {
		t.Fatalf("/pause is %+v", h)
	}
	if img.Bytes > 3<<20 {
		t.Errorf("the pause image has %d bytes", img.Bytes)
	}
	path, err := b.ownProgram(t.Context(), "pause")
	if err != nil {
		t.Fatal(err)
	}
	lookup := tree{}
	if err := lookup.host("pause", path, 0o755); err != nil {
		t.Fatal(err)
	}
	// A static program leads to nothing else.
	reached, err := lookup.reach("pause")
	if err != nil || len(reached) != 1 {
		t.Errorf("%v, %d entries", err, len(reached))
	}
	if digest(t, build(t, b, pauseReference)) != digest(t, img) {
		t.Error("building it again gave another image")
	}
}

func TestReachFollowsLinksOfFilesAndDirectories(t *testing.T) {
	all := tree{}
	all.symlink("bin", "usr/bin")
	all.file("usr/bin/tool", "#!/bin/sh\n", 0o755)
	all.symlink("usr/share/app/js/lib.js", "../../javascript/lib/lib.min.js")
	all.symlink("usr/share/javascript/lib", "/usr/share/nodejs/lib/dist")
	all.file("usr/share/nodejs/lib/dist/lib.min.js", "x", 0o644)
	all.file("usr/share/nodejs/lib/dist/other.js", "x", 0o644)
	all.file("usr/share/nodejs/unused.js", "x", 0o644)
	all.symlink("usr/share/app/loop", "loop")
	if _, err := all.reach("bin", "bin/tool", "usr/share/app"); err == nil {
		t.Fatal("a path through a link is not a path of the packages, and was accepted")
	}
	out, err := all.reach("bin", "usr/share/app")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := out["usr/share/nodejs/unused.js"]; ok {
		t.Error("what nothing leads to was taken")
	}
	for _, name := range []string{"usr/share/app/js/lib.js", "bin/tool"} {
		if resolved, ok := out.resolve(name); !ok {
			t.Errorf("/%s leads nowhere (%s)", name, resolved)
		}
	}
	if _, err := all.reach("usr/bin/missing"); err == nil {
		t.Error("a missing path was not noticed")
	}
}

func TestTreeIsWrittenSortedWithParentsAndFixedTimes(t *testing.T) {
	all := tree{}
	all.file("b/c/file", "x", 0o600)
	all.file("a", "y", 0o644)
	all.dir("b/c", fs.ModeSticky|0o777, 1, 2)
	var out bytes.Buffer
	if err := all.write(&out); err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if !h.ModTime.Equal(epoch) || h.Uname != "" {
			t.Errorf("%+v", h)
		}
		if h.Name == "b/c/" && (h.Mode != 0o1777 || h.Uid != 1 || h.Gid != 2) {
			t.Errorf("%+v", h)
		}
	}
	if !slices.Equal(names, []string{"a", "b/", "b/c/", "b/c/file"}) {
		t.Error(names)
	}
}

func TestPushMapsTheProductionNameAndSkipsWhatIsThere(t *testing.T) {
	var uploads atomic.Int64
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			uploads.Add(1)
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	checkPush(t, server.URL)
	before := uploads.Load()
	reference := mustReference(t, "quay.io/prometheus/prometheus")
	img := build(t, builder(t), reference)
	for i, skipped := range []bool{false, true} {
		pushed, err := Push(t.Context(), img, reference, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if pushed.Skipped != skipped || (uploads.Load() == before) != skipped {
			t.Errorf("push %d: skipped %v, %d uploads", i, pushed.Skipped, uploads.Load()-before)
		}
		before = uploads.Load()
	}
}

// checkPush pushes to a registry and pulls again by the mapped name.
func checkPush(t *testing.T, base string) {
	t.Helper()
	b := builder(t)
	for reference, repository := range map[string]string{
		mustReference(t, "quay.io/argoproj/argocd"):   "quay.io/argoproj/argocd",
		mustReference(t, "docker.io/library/traefik"): "docker.io/library/traefik",
		redisReference: "public.ecr.aws/docker/library/redis",
	} {
		img := build(t, b, reference)
		pushed, err := Push(t.Context(), img, reference, base, nil)
		if err != nil {
			t.Fatal(err)
		}
		host := strings.TrimPrefix(base, "http://")
		if !strings.HasPrefix(pushed.Reference, host+"/"+repository+":") {
			t.Errorf("%s was pushed to %s", reference, pushed.Reference)
		}
		ref, err := name.ParseReference(pushed.Reference, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		back, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		if digest(t, back) != digest(t, img) {
			t.Errorf("%s: pushed %s, pulled %s", reference, digest(t, img), digest(t, back))
		}
		if err := validate(back); err != nil {
			t.Error(err)
		}
	}
}

func TestPushNamesTheRegistryThatFails(t *testing.T) {
	img, err := random.Image(10, 1)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := Push(ctx, img, redisReference, server.URL, nil); err == nil || !strings.Contains(err.Error(), server.URL) || !strings.Contains(err.Error(), redisReference) {
		t.Error(err)
	}
	if _, err := Push(ctx, img, redisReference, "127.0.0.1:5000", nil); err == nil || !strings.Contains(err.Error(), "http://host:port") {
		t.Error(err)
	}
}

// redirected sends requests for any registry to one server.
type redirected struct{ host string }

func (r redirected) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme, req.URL.Host = "http", r.host
	return http.DefaultTransport.RoundTrip(req)
}

func TestUpstreamImageIsUsedWhereItCanBePulled(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	host := strings.TrimPrefix(server.URL, "http://")
	upstream, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.Replace(redisReference, "public.ecr.aws", host, 1), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, upstream); err != nil {
		t.Fatal(err)
	}
	b := builder(t)
	b.Offline, b.Transport = false, redirected{host}

	img, err := b.Obtain(t.Context(), redisReference)
	if err != nil {
		t.Fatal(err)
	}
	if img.Substitute != "" || digest(t, img) != digest(t, upstream) || !strings.Contains(img.Made, "public.ecr.aws") {
		t.Errorf("%+v is not upstream's image", img)
	}
	// An image that the registry lacks is assembled; the next one is asked for.
	other, err := b.Obtain(t.Context(), mustReference(t, "quay.io/prometheus/prometheus"))
	if err != nil || other.Substitute == "" {
		t.Errorf("%v %+v", err, other)
	}
	// Once pulled, it needs no network.
	server.Close()
	if img, err = b.Obtain(t.Context(), redisReference); err != nil || img.Substitute != "" {
		t.Errorf("%v %+v", err, img)
	}
}

func TestUnreachableUpstreamIsAskedOnceAndQuickly(t *testing.T) {
	// Accepts and never answers, as a firewall may.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b := builder(t)
	b.Offline, b.Transport = false, redirected{listener.Addr().String()}
	started := time.Now()
	for range 2 {
		img, err := b.Obtain(t.Context(), mustReference(t, "quay.io/argoproj/argocd"))
		if err != nil || img.Substitute == "" {
			t.Fatalf("%v %+v", err, img)
		}
	}
	if took := time.Since(started); took > probeTimeout+5*time.Second {
		t.Errorf("two images took %v", took)
	}
}

func TestUnknownReferenceIsAnErrorThatNamesTheKnown(t *testing.T) {
	_, err := builder(t).Build(t.Context(), "quay.io/argoproj/argocd:v0.0.1")
	if err == nil || !strings.Contains(err.Error(), mustReference(t, "quay.io/argoproj/argocd")) {
		t.Error(err)
	}
}
