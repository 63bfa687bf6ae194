package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// built makes a store that holds the tiny engine without compiling it.
func built(t *testing.T) *Store {
	t.Helper()
	s := newStore(t, t.TempDir())
	b, err := s.Resolve("tiny")
	if err != nil {
		t.Fatal(err)
	}
	dir := s.dir(b[0])
	if err := os.MkdirAll(filepath.Join(dir, "share"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"one": 0o755, "two": 0o755, "share/asset.txt": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+name+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	m := Manifest{Name: "tiny", Version: b[0].Version, Key: b[0].Key, OS: runtime.GOOS, Arch: runtime.GOARCH, Go: "go1.26"}
	if err := m.hashTree(dir); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(dir, manifestName), m); err != nil {
		t.Fatal(err)
	}
	return s
}

// empty is another machine's store over the same source.
func emptyStore(t *testing.T, like *Store) *Store {
	return &Store{Dir: t.TempDir(), Source: like.Source, Engines: like.Engines, Go: "/nonexistent/go"}
}

func TestPackedEnginesRunOnAMachineWithoutGo(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	s := built(t)
	dir := t.TempDir()
	var first v1.Hash
	for name, location := range map[string]string{
		"layout":   filepath.Join(dir, "layout"),
		"tar":      filepath.Join(dir, "engines.tar"),
		"registry": strings.TrimPrefix(server.URL, "http://") + "/omnivision/engines:v1",
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				digest, err := s.Pack(deadline(t), nil, location)
				if err != nil {
					t.Fatal(err)
				}
				if first == (v1.Hash{}) {
					first = digest
				}
				if digest != first {
					t.Errorf("the same engines gave %s and %s", first, digest)
				}
			}
			other := emptyStore(t, s)
			for range 2 {
				loaded, err := other.Load(deadline(t), location, nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(loaded) != 1 || loaded[0].Name != "tiny" {
					t.Fatalf("loaded %v", loaded)
				}
			}
			// Nothing is missing, so Ensure needs no Go.
			if err := other.Ensure(deadline(t), nil, nil); err != nil {
				t.Fatal(err)
			}
			path, err := other.Path("two")
			if err != nil {
				t.Fatal(err)
			}
			if got := run(t, path); got != "two" {
				t.Errorf("it says %q", got)
			}
			if _, err := other.Asset("tiny", "asset.txt"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoadRefusesACorruptLayer(t *testing.T) {
	s := built(t)
	dir := filepath.Join(t.TempDir(), "layout")
	if _, err := s.Pack(deadline(t), nil, dir); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		raw, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(raw); at += 1 + len(raw)/7 {
			bad := bytes.Clone(raw)
			bad[at] ^= 0x20
			if err := os.WriteFile(blob, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			other := emptyStore(t, s)
			if _, err := other.Load(deadline(t), dir, nil); err == nil {
				t.Errorf("byte %d of %s was changed, and the engines were loaded", at, blob)
			}
			if _, err := other.Path("one"); err == nil {
				t.Errorf("a program of a corrupt artifact is in the store")
			}
		}
		if err := os.WriteFile(blob, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPackRefusesAChangedProgram(t *testing.T) {
	s := built(t)
	path, err := s.Path("one")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-2] ^= 1
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pack(deadline(t), nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), "changed since it was built") {
		t.Error(err)
	}
}

// forged writes an artifact that holds one layer with the given entries, every
// digest of it right.
func forged(t *testing.T, s *Store, headers []tar.Header, change func(*artifact)) string {
	t.Helper()
	b, err := s.Resolve("tiny")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(b[0])
	if err != nil {
		t.Fatal(err)
	}
	var blob bytes.Buffer
	zip := gzip.NewWriter(&blob)
	tw := tar.NewWriter(zip)
	for _, h := range headers {
		content := []byte("content")
		if h.Typeflag != tar.TypeReg {
			content = nil
		}
		h.Size = int64(len(content))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(content); err != nil {
			t.Fatal(err)
		}
		m.Files[h.Name] = File{SHA256: sha256Of(content).Hex, Size: h.Size}
	}
	tw.Close()
	zip.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "layer")
	if err := os.WriteFile(file, blob.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	img := &artifact{
		config: artifactConfig{OS: runtime.GOOS, Arch: runtime.GOARCH, Engines: []Manifest{m}},
		layers: []*fileLayer{{path: file, size: int64(blob.Len()), digest: sha256Of(blob.Bytes()), diffID: sha256Of(blob.Bytes())}},
	}
	if change != nil {
		change(img)
	}
	if err := img.seal(); err != nil {
		t.Fatal(err)
	}
	if err := writeLayout(filepath.Join(dir, "layout"), img); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "layout")
}

func TestLoadRefusesNamesThatLeadOutOfTheEngine(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"parent":        {{Typeflag: tar.TypeReg, Name: "../escaped"}},
		"deep parent":   {{Typeflag: tar.TypeReg, Name: "share/../../escaped"}},
		"absolute":      {{Typeflag: tar.TypeReg, Name: "/escaped"}},
		"not clean":     {{Typeflag: tar.TypeReg, Name: "./one"}},
		"symbolic link": {{Typeflag: tar.TypeSymlink, Name: "share", Linkname: "/tmp"}, {Typeflag: tar.TypeReg, Name: "share/escaped"}},
		"hard link":     {{Typeflag: tar.TypeLink, Name: "one", Linkname: "/etc/passwd"}},
		"device":        {{Typeflag: tar.TypeChar, Name: "one"}},
		"its manifest":  {{Typeflag: tar.TypeReg, Name: manifestName}},
		"twice":         {{Typeflag: tar.TypeReg, Name: "one"}, {Typeflag: tar.TypeReg, Name: "one"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := built(t)
			src := forged(t, s, entries, nil)
			other := emptyStore(t, s)
			_, err := other.Load(deadline(t), src, nil)
			if err == nil {
				t.Fatal("it was loaded")
			}
			err = filepath.WalkDir(other.Dir, func(path string, _ os.DirEntry, err error) error {
				if strings.Contains(path, "escaped") {
					t.Errorf("it wrote %s", path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestLoadRefusesWhatIsNotForThisMachineOrNotEngines(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*artifact)
		want   string
	}{
		"another platform":  {func(a *artifact) { a.config.Arch = "mips" }, "they are for linux/mips"},
		"a name with a dot": {func(a *artifact) { a.config.Engines[0].Name = "../x" }, "not a valid name"},
		"a missing layer": {func(a *artifact) {
			a.config.Engines = append(a.config.Engines, a.config.Engines[0])
			a.layers = append(a.layers, a.layers[0])
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := built(t)
			_, err := emptyStore(t, s).Load(deadline(t), forged(t, s, nil, c.change), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestLocationsAreToldApart(t *testing.T) {
	for s, want := range map[string]string{
		"/a/b": "layout", "./b": "layout", "../b": "layout", "oci:b": "layout",
		"b.tar": "tar", "/a/b.tar": "tar",
		"ghcr.io/omnivision/engines:v1": "reference",
		"engines":                       "error",
	} {
		l, err := ParseLocation(s)
		got := map[bool]string{true: "layout"}[l.Layout != ""] + map[bool]string{true: "tar"}[l.Tar != ""] +
			map[bool]string{true: "reference"}[l.Reference != nil] + map[bool]string{true: "error"}[err != nil]
		if got != want {
			t.Errorf("%s is taken for %s, want %s", s, got, want)
		}
	}
}
