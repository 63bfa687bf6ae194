package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	helmchart "helm.sh/helm/v4/pkg/chart/v2"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	helmregistry "helm.sh/helm/v4/pkg/registry"
)

// server is a registry that counts what is asked of it and can be made to fail.
type server struct {
	*httptest.Server
	requests atomic.Int64
	blobs    atomic.Int64
	down     atomic.Bool
	slow     atomic.Bool
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			s.blobs.Add(1)
		}
		switch {
		case s.slow.Load():
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Second):
			}
		case s.down.Load():
			w.WriteHeader(http.StatusForbidden)
		default:
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) reference(version string) Reference {
	return Reference{Registry: strings.TrimPrefix(s.URL, "http://") + "/charts", Name: "demo", Version: version}
}

// push publishes a chart; the note makes two charts of one version differ.
func (s *server) push(t testing.TB, version, note string) {
	t.Helper()
	s.pushAs(t, s.reference(version), version, note)
}

func (s *server) pushAs(t testing.TB, ref Reference, version, note string) {
	t.Helper()
	archive, err := chartutil.Save(&helmchart.Chart{
		Metadata: &helmchart.Metadata{APIVersion: "v2", Name: "demo", Version: version, Description: note},
	}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	client, err := helmregistry.NewClient(helmregistry.ClientOptPlainHTTP(), helmregistry.ClientOptCredentialsFile(filepath.Join(t.TempDir(), "none")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Push(data, ref.String(), helmregistry.PushOptStrictMode(false)); err != nil {
		t.Fatal(err)
	}
}

func source(cache string) *Registry {
	return &Registry{Cache: cache, PlainHTTP: true, Transport: http.DefaultTransport}
}

func get(t *testing.T, r Source, ref Reference) *Loaded {
	t.Helper()
	loaded, err := r.Chart(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestAChartIsPulledOnceAndItsTagAskedForEachTime(t *testing.T) {
	s, cache := newServer(t), t.TempDir()
	s.push(t, "0.1.0+build", "")
	ref := s.reference("0.1.0+build")
	first := get(t, source(cache), ref)
	if first.Origin != "registry" || first.Version() != ref.Version || !strings.HasPrefix(first.Digest, "sha256:") {
		t.Errorf("got %+v", first)
	}
	before := s.requests.Load()
	again := get(t, source(cache), ref)
	if again.Origin != "cache" || again.Digest != first.Digest || again.Warning != "" {
		t.Errorf("got %+v", again)
	}
	if asked := s.requests.Load() - before; asked != 1 {
		t.Errorf("a chart in the cache costs %d requests, want 1", asked)
	}
}

func TestATagThatMovedIsFollowedAndSaid(t *testing.T) {
	s, cache := newServer(t), t.TempDir()
	s.push(t, "0.1.0", "one")
	first := get(t, source(cache), s.reference("0.1.0"))
	s.push(t, "0.1.0", "two")
	moved := get(t, source(cache), s.reference("0.1.0"))
	if moved.Digest == first.Digest || !strings.Contains(moved.Warning, "has moved (P3)") {
		t.Errorf("got %+v", moved)
	}
	if calm := get(t, source(cache), s.reference("0.1.0")); calm.Warning != "" {
		t.Errorf("it warns twice: %s", calm.Warning)
	}
}

func TestWithoutTheRegistryTheCacheServes(t *testing.T) {
	s, cache := newServer(t), t.TempDir()
	s.push(t, "0.1.0", "")
	get(t, source(cache), s.reference("0.1.0"))
	s.down.Store(true)
	if stale := get(t, source(cache), s.reference("0.1.0")); !strings.Contains(stale.Warning, "did not answer") {
		t.Errorf("got %+v", stale)
	}
	before := s.requests.Load()
	offline := source(cache)
	offline.Offline = true
	if got := get(t, offline, s.reference("0.1.0")); got.Warning != "" || s.requests.Load() != before {
		t.Errorf("offline asks the registry, or warns: %+v", got)
	}
	if _, err := offline.Chart(t.Context(), s.reference("0.2.0")); err == nil || !strings.Contains(err.Error(), "--offline") {
		t.Errorf("got %v", err)
	}
	if _, err := source(t.TempDir()).Chart(t.Context(), s.reference("0.1.0")); err == nil || !strings.Contains(err.Error(), "login") {
		t.Errorf("got %v", err)
	}
}

func TestAVersionThatIsNotPublishedIsAnError(t *testing.T) {
	s, cache := newServer(t), t.TempDir()
	s.push(t, "0.1.0", "")
	if _, err := source(cache).Chart(t.Context(), s.reference("0.2.0")); err == nil || !strings.Contains(err.Error(), "publish it") {
		t.Errorf("got %v", err)
	}
	s.pushAs(t, s.reference("0.3.0"), "0.1.0", "")
	if _, err := source(cache).Chart(t.Context(), s.reference("0.3.0")); err == nil || !strings.Contains(err.Error(), "demo 0.1.0 under that name") {
		t.Errorf("another version under the tag: %v", err)
	}
	for _, version := range []string{"", "a b", "../x", ">=0.1.0"} {
		if _, err := source(cache).Chart(t.Context(), s.reference(version)); err == nil {
			t.Errorf("version %q was found", version)
		}
	}
}

func TestADamagedCacheIsRepaired(t *testing.T) {
	s, cache := newServer(t), t.TempDir()
	s.push(t, "0.1.0", "")
	get(t, source(cache), s.reference("0.1.0"))
	files, err := filepath.Glob(filepath.Join(cache, "archives", "*.tgz"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the cache has %v, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := get(t, source(cache), s.reference("0.1.0")); got.Origin != "registry" || got.Warning != "" {
		t.Errorf("got %+v", got)
	}
	if got := get(t, source(cache), s.reference("0.1.0")); got.Origin != "cache" {
		t.Errorf("it was not repaired: %+v", got)
	}
}

func TestASlowRegistryEndsWithTheContextAndTheTimeout(t *testing.T) {
	s := newServer(t)
	s.slow.Store(true)
	begun := time.Now()
	r := source(t.TempDir())
	r.Timeout = 100 * time.Millisecond
	if _, err := r.Chart(t.Context(), s.reference("0.1.0")); err == nil {
		t.Error("it answered")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := source("").Chart(ctx, s.reference("0.1.0")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestACacheThatCannotBeWrittenOnlyWarns(t *testing.T) {
	s := newServer(t)
	s.push(t, "0.1.0", "")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := get(t, source(file), s.reference("0.1.0")); !strings.Contains(got.Warning, "could not be kept") {
		t.Errorf("got %+v", got)
	}
}

func TestACheckoutServesItsOwnVersionAlone(t *testing.T) {
	checkout := NewCheckout("../../charts/omnivision-platform")
	ref := Reference{Registry: "example.com", Name: "omnivision-platform", Version: "0.1.0"}
	if got := get(t, First{checkout}, ref); got.Origin != "../../charts/omnivision-platform" {
		t.Errorf("got %+v", got)
	}
	ref.Version = "9.9.9"
	if _, err := checkout.Chart(t.Context(), ref); !errors.Is(err, ErrOtherVersion) || !strings.Contains(err.Error(), "0.1.0") {
		t.Errorf("got %v", err)
	}
	if _, err := (First{checkout, checkout}).Chart(t.Context(), ref); !errors.Is(err, ErrOtherVersion) {
		t.Errorf("got %v", err)
	}
	if _, err := (First{NewCheckout(t.TempDir()), checkout}).Chart(t.Context(), ref); err == nil || errors.Is(err, ErrOtherVersion) {
		t.Errorf("a checkout that cannot be read is passed over: %v", err)
	}
}

func FuzzParseTag(f *testing.F) {
	ref := Reference{"example.com", "demo", "1"}
	f.Add([]byte(`{"reference": "example.com/demo:1", "manifest": "sha256:00", "layer": "../../x"}`))
	f.Add([]byte(`{`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		known, ok := parseTag(data, ref)
		if !ok {
			return
		}
		file, err := cache{dir}.archiveFile(known.Layer)
		if err == nil && filepath.Dir(file) != filepath.Join(dir, "archives") {
			t.Errorf("layer %q leads to %s", known.Layer, file)
		}
	})
}

func TestFilesOfTheCacheAppearWhole(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a", "b")
	for _, content := range []string{"one", "two"} {
		if err := write(file, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, []byte(content)) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v", fmt.Sprint(entries))
	}
}
