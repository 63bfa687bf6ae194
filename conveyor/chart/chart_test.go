package chart

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	helmregistry "helm.sh/helm/v4/pkg/registry"
)

const platform = "../../charts/omnivision-platform"

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// copied is the project's chart in a directory of its own, with other times.
func copied(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "chart")
	check(t, os.CopyFS(dir, os.DirFS(platform)))
	check(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, time.Time{}, time.Unix(1_000_000_000, 0))
	}))
	return dir
}

func pack(t *testing.T, dir string) *Packed {
	t.Helper()
	p, err := Pack(dir)
	check(t, err)
	return p
}

func edit(t *testing.T, file, old, new string) {
	t.Helper()
	content, err := os.ReadFile(file)
	check(t, err)
	if !bytes.Contains(content, []byte(old)) {
		t.Fatalf("%s does not hold %q", file, old)
	}
	check(t, os.WriteFile(file, bytes.Replace(content, []byte(old), []byte(new), 1), 0o600))
}

// server is a registry that counts manifests that are written, and can refuse a request.
type server struct {
	*httptest.Server
	writes atomic.Int64
	refuse func(r *http.Request) bool
}

func newServer(t *testing.T) (*server, name.Repository) {
	t.Helper()
	s := &server{}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.refuse != nil && s.refuse(r) {
			w.WriteHeader(http.StatusInsufficientStorage)
			return
		}
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			s.writes.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	repository, err := name.NewRepository(strings.TrimPrefix(s.URL, "http://")+"/omnivision/charts/omnivision-platform", name.Insecure)
	check(t, err)
	return s, repository
}

func TestSameFilesAreTheSameDigestWhereverTheyAre(t *testing.T) {
	dir := copied(t)
	here, there := pack(t, platform), pack(t, dir)
	if here.Digest != there.Digest || here.Name != "omnivision-platform" || here.Version == "" {
		t.Errorf("%s is %s here and %s there", here.Name, here.Digest, there.Digest)
	}
	edit(t, filepath.Join(dir, "values.yaml"), "\n", " # a remark\n")
	if changed := pack(t, dir); changed.Digest == here.Digest {
		t.Error("another content has the same digest")
	}
}

func TestStoredIsGzip(t *testing.T) {
	for _, size := range []int{0, 1, math.MaxUint16, math.MaxUint16 + 1, 5*math.MaxUint16 + 7} {
		content := bytes.Repeat([]byte("chart"), size/5+1)[:size]
		archive := stored(content)
		r, err := gzip.NewReader(bytes.NewReader(archive))
		check(t, err)
		got, err := io.ReadAll(r) // compares size and sum
		check(t, err)
		if !bytes.Equal(got, content) || len(archive) > size+size/math.MaxUint16*5+10+5+8 {
			t.Errorf("%d bytes become %d, and %d again", size, len(archive), len(got))
		}
	}
}

// What decides the digest is written down: it must not change with a version of Go or of
// a library, or the same version would be another chart.
func TestDigestStaysWhatItWas(t *testing.T) {
	dir := t.TempDir()
	for file, content := range map[string]string{
		"Chart.yaml": "apiVersion: v2\nname: demo\nversion: 1.2.3+build\n", "values.yaml": "a: 1 # with its comment\n",
		"templates/object.yaml": "kind: ConfigMap\n", ".helmignore": "secret.txt\n", "secret.txt": "not to be published",
	} {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600))
	}
	p := pack(t, dir)
	if want := "sha256:c32eca2525a061cd6c75454a4ea1d39612a28cc34889be9ab2c4aea01bab8aef"; p.Digest != want {
		t.Errorf("the digest is %s, and was %s", p.Digest, want)
	}
	if p.Tag() != "1.2.3_build" {
		t.Errorf("the tag is %s", p.Tag())
	}
	unpacked, err := loader.LoadArchive(bytes.NewReader(p.archive))
	check(t, err)
	for _, f := range unpacked.Raw {
		if f.Name == "secret.txt" {
			t.Error("what .helmignore names was packaged")
		}
	}
}

func TestHelmPullsWhatWasPublished(t *testing.T) {
	_, repository := newServer(t)
	p := pack(t, platform)
	check(t, Publish(t.Context(), repository, p))
	client, err := helmregistry.NewClient(helmregistry.ClientOptPlainHTTP(), helmregistry.ClientOptCredentialsFile(filepath.Join(t.TempDir(), "none")))
	check(t, err)
	pulled, err := client.Pull(repository.String() + ":" + p.Version)
	check(t, err)
	if pulled.Manifest.Digest != p.Digest || pulled.Chart.Meta.Name != p.Name || pulled.Chart.Meta.Version != p.Version {
		t.Errorf("pulled is %+v", pulled)
	}
	there, err := loader.LoadArchive(bytes.NewReader(pulled.Chart.Data))
	check(t, err)
	here, err := loader.LoadDir(platform)
	check(t, err)
	if len(there.Raw) != len(here.Raw) || len(there.Templates) != len(here.Templates) || !bytes.Equal(there.Schema, here.Schema) {
		t.Errorf("pulled are %d files, packaged were %d", len(there.Raw), len(here.Raw))
	}
}

func TestVersionIsNeverReplaced(t *testing.T) {
	s, repository := newServer(t)
	dir := copied(t)
	first := pack(t, dir)
	check(t, Publish(t.Context(), repository, first))
	check(t, Publish(t.Context(), repository, first))
	if writes := s.writes.Load(); writes != 1 {
		t.Errorf("the same chart was written %d times", writes)
	}
	edit(t, filepath.Join(dir, "values.yaml"), "\n", " # a remark\n")
	if err := Publish(t.Context(), repository, pack(t, dir)); !errors.Is(err, ErrVersionTaken) || !strings.Contains(err.Error(), "Chart.yaml") {
		t.Errorf("error is %v", err)
	}
	check(t, Check(t.Context(), repository, first.Tag(), first.Digest))
	other := pack(t, dir)
	check(t, Replace(t.Context(), repository, other))
	if err := Check(t.Context(), repository, first.Tag(), first.Digest); err == nil || !strings.Contains(err.Error(), other.Digest) {
		t.Errorf("after it was replaced: %v", err)
	}
}

// A publication that stops at any request is finished by the next.
func TestPublicationThatFailedAnywhereIsFinishedByTheNext(t *testing.T) {
	p := pack(t, platform)
	for after := 1; ; after++ {
		s, repository := newServer(t)
		requests := 0
		s.refuse = func(*http.Request) bool { requests++; return requests == after }
		err := Publish(t.Context(), repository, p, remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes())
		s.refuse = nil
		if requests < after {
			check(t, err)
			if after < 5 {
				t.Errorf("a publication is %d requests", requests)
			}
			return
		}
		check(t, Publish(t.Context(), repository, p))
		check(t, Check(t.Context(), repository, p.Tag(), p.Digest))
	}
}

func TestRegistryThatIsAwayIsNamed(t *testing.T) {
	s, repository := newServer(t)
	s.Close()
	err := Publish(t.Context(), repository, pack(t, platform), remote.WithRetryPredicate(func(error) bool { return false }))
	if err == nil || !strings.Contains(err.Error(), repository.String()) {
		t.Errorf("error is %v", err)
	}
}

func TestRefusalIsNotTakenForAFreeVersion(t *testing.T) {
	s, repository := newServer(t)
	s.refuse = func(r *http.Request) bool { return r.Method == http.MethodHead }
	err := Publish(t.Context(), repository, pack(t, platform), remote.WithRetryStatusCodes())
	var answer *transport.Error
	if !errors.As(err, &answer) || s.writes.Load() != 0 {
		t.Errorf("error is %v, and %d manifests were written", err, s.writes.Load())
	}
}

func TestWhatIsNoChartIsRefused(t *testing.T) {
	for what, files := range map[string]map[string]string{
		"nothing":    {},
		"no version": {"Chart.yaml": "apiVersion: v2\nname: demo\n"},
		"no name":    {"Chart.yaml": "apiVersion: v2\nversion: 1.0.0\n"},
		"no YAML":    {"Chart.yaml": "{"},
	} {
		dir := t.TempDir()
		for file, content := range files {
			check(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600))
		}
		if _, err := Pack(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error is %v", what, err)
		}
	}
}
