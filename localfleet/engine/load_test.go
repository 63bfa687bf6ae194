package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

type tarEntry struct {
	name, content string
	kind          byte
}

func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o755}
		if e.kind == tar.TypeReg {
			header.Size = int64(len(e.content))
		} else {
			header.Linkname = e.content
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzUnpackTar looks for a layer that writes something else than the files that
// the config names, or writes it elsewhere. It is zipped here: a checksum stops
// what is changed behind it.
func FuzzUnpackTar(f *testing.F) {
	content := "#!/bin/sh\n"
	good := []tarEntry{{"one", content, tar.TypeReg}, {"share/asset", content, tar.TypeReg}}
	for _, seed := range [][]byte{
		tarOf(f, good...), tarOf(f, good[0]), tarOf(f, append(good, good[0])...), nil, []byte("no tar"),
		tarOf(f, append(good, tarEntry{"../one", content, tar.TypeReg})...), tarOf(f, append(good, tarEntry{"/one", content, tar.TypeReg})...),
		tarOf(f, tarEntry{"share", "/tmp", tar.TypeSymlink}, good[0], good[1]), tarOf(f, tarEntry{"one", "/etc/passwd", tar.TypeLink}),
		tarOf(f, tarEntry{"one", "other\n", tar.TypeReg}), tarOf(f, append(good, tarEntry{manifestName, "{}", tar.TypeReg})...), tarOf(f, tarEntry{"./one", content, tar.TypeReg}),
	} {
		f.Add(seed)
	}
	want := File{SHA256: sha256Of([]byte(content)).Hex, Size: int64(len(content)), Executable: true}
	m := Manifest{Name: "tiny", Files: map[string]File{"one": want, "share/asset": want}}
	f.Fuzz(func(t *testing.T, layer []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "engine")
		err := unpackTar(t.Context(), bytes.NewReader(zipped(t, layer)), m, dir)
		found := 0
		walkErr := filepath.WalkDir(outside, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, relErr := filepath.Rel(dir, path)
			if _, named := m.Files[filepath.ToSlash(rel)]; relErr != nil || !named || !d.Type().IsRegular() {
				t.Errorf("%s was written", path)
			}
			found++
			return nil
		})
		if walkErr != nil {
			t.Fatal(walkErr)
		}
		if err != nil {
			return
		}
		if found != len(m.Files) {
			t.Fatalf("taken with %d of %d files", found, len(m.Files))
		}
		for name := range m.Files {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != content {
				t.Fatalf("%s holds %q, %v", name, got, err)
			}
		}
	})
}

// FuzzOpenArtifact looks for a config with an engine whose folder would be
// elsewhere than in the store.
func FuzzOpenArtifact(f *testing.F) {
	const key = "0123456789ab"
	engine := func(name, version, key string) Manifest {
		return Manifest{Name: name, Version: version, Key: key, Files: map[string]File{"one": {SHA256: strings.Repeat("0", 64), Size: 1}}}
	}
	for _, c := range []artifactConfig{
		{runtime.GOOS, runtime.GOARCH, []Manifest{engine("tiny", "v1.2.3", key)}},
		{runtime.GOOS, runtime.GOARCH, []Manifest{engine("../tiny", "v1.2.3", key)}},
		{runtime.GOOS, runtime.GOARCH, []Manifest{engine("tiny", "v1/../..", key)}},
		{"plan9", "mips", []Manifest{engine("tiny", "v1.2.3", key)}},
		{runtime.GOOS, runtime.GOARCH, nil},
	} {
		raw, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "tiny-v1.2.3-"+key)
	}
	f.Add([]byte(`{"engines":[{"name":1e99}]}`), "")
	f.Add([]byte(`{"engines":[{"duration":1e300,"files":{"a":{"size":-1}}}]}`), "..")
	f.Fuzz(func(t *testing.T, config []byte, annotation string) {
		a := &artifact{layers: []*fileLayer{{path: "none"}}, config: artifactConfig{Engines: []Manifest{{}}}}
		if err := a.seal(); err != nil {
			t.Fatal(err)
		}
		a.rawConfig, a.manifest.Config.Digest = config, sha256Of(config)
		a.manifest.Layers[0].Annotations[engineAnnotation] = annotation
		got, layers, err := openArtifact(v1.Image(a))
		if err != nil {
			return
		}
		if len(got.Engines) != len(layers) || len(layers) != 1 {
			t.Fatalf("taken with %d engines and %d layers", len(got.Engines), len(layers))
		}
		name := got.Engines[0].DirName()
		if name != annotation || name != filepath.Base(name) || !filepath.IsLocal(name) || strings.HasPrefix(name, ".") {
			t.Fatalf("taken with the folder %q", name)
		}
	})
}
