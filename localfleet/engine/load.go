package engine

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Load reads an artifact that Pack wrote and adds its engines to the store.
// Everything is verified before it is moved into place: the digests of
// manifest, config and layers, that of each file, the platform, and that no
// name leads out of the engine's directory.
func (s *Store) Load(ctx context.Context, src string, progress Progress, options ...remote.Option) ([]Manifest, error) {
	location, err := ParseLocation(src)
	if err != nil {
		return nil, err
	}
	scratch, err := s.artifactScratch("load")
	if err != nil {
		return nil, err
	}
	defer removeReadOnly(scratch)

	manifests, err := s.load(ctx, location, scratch, progress, options)
	if err != nil {
		return nil, fmt.Errorf("loading engines from %s: %w", src, err)
	}
	return manifests, nil
}

func (s *Store) load(ctx context.Context, location Location, scratch string, progress Progress, options []remote.Option) ([]Manifest, error) {
	img, err := location.read(ctx, scratch, options)
	if err != nil {
		return nil, err
	}
	config, layers, err := openArtifact(img)
	if err != nil {
		return nil, err
	}
	for i, m := range config.Engines {
		started := time.Now()
		if err := s.loadEngine(ctx, m, layers[i], filepath.Join(scratch, m.DirName())); err != nil {
			return nil, fmt.Errorf("engine %s %s: %w", m.Name, m.Version, err)
		}
		progress.report(Event{Engine: m.Name, Version: m.Version, Phase: Built, Elapsed: time.Since(started)})
	}
	return config.Engines, nil
}

// directoryName is what a manifest may make the store create.
var directoryName = regexp.MustCompile(`^[a-z][a-z0-9-]*-v[0-9][A-Za-z0-9.+-]*-[0-9a-f]{12}$`)

// openArtifact verifies the manifest and the config, and pairs engines with
// their layers.
func openArtifact(img v1.Image) (artifactConfig, []v1.Layer, error) {
	var config artifactConfig
	manifest, err := img.Manifest()
	if err != nil {
		return config, nil, err
	}
	if manifest.ArtifactType != ArtifactType {
		return config, nil, fmt.Errorf("its artifact type is %q, not %q: these are not packed engines", manifest.ArtifactType, ArtifactType)
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return config, nil, err
	}
	if got := sha256Of(raw); got != manifest.Config.Digest {
		return config, nil, fmt.Errorf("its config is corrupt: the digest is %s, and should be %s", got, manifest.Config.Digest)
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return config, nil, fmt.Errorf("reading its config: %w", err)
	}
	if got := config.OS + "/" + config.Arch; got != platform() {
		return config, nil, fmt.Errorf("they are for %s, and this machine is %s; pack engines on a machine of this kind", got, platform())
	}
	if len(config.Engines) != len(manifest.Layers) {
		return config, nil, fmt.Errorf("its config names %d engines, and it has %d layers", len(config.Engines), len(manifest.Layers))
	}
	layers, err := img.Layers()
	if err != nil {
		return config, nil, err
	}
	for i, m := range config.Engines {
		if !directoryName.MatchString(m.DirName()) {
			return config, nil, fmt.Errorf("it names an engine %q, which is not a valid name", m.DirName())
		}
		if got := manifest.Layers[i].Annotations[engineAnnotation]; got != m.DirName() {
			return config, nil, fmt.Errorf("its layer %d is of engine %q, and should be of %q", i, got, m.DirName())
		}
	}
	return config, layers, nil
}

// loadEngine unpacks one layer and moves it into the store.
func (s *Store) loadEngine(ctx context.Context, m Manifest, layer v1.Layer, dir string) error {
	l, err := acquire(ctx, s.lockPath(m.DirName()), syscall.LOCK_EX, nil)
	if err != nil {
		return err
	}
	defer l.release()
	target := filepath.Join(s.enginesDir(), m.DirName())
	if have, err := readManifest(target); err == nil && maps.Equal(have.Files, m.Files) {
		return nil
	}
	if err := unpackLayer(ctx, layer, m, dir); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, manifestName), m); err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	return os.Rename(dir, target)
}

// unpackLayer writes the files of a layer below dir, each of which must be in m.
func unpackLayer(ctx context.Context, layer v1.Layer, m Manifest, dir string) error {
	want, err := layer.Digest()
	if err != nil {
		return err
	}
	blob, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer blob.Close()
	h := sha256.New()
	body := io.TeeReader(blob, h)
	unpackErr := unpackTar(ctx, body, m, dir)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Read to the end even if the tar is bad: a wrong digest is the better
	// explanation.
	if _, err := io.Copy(io.Discard, body); err != nil && unpackErr == nil {
		return err
	}
	if got := hashOf(h); got != want {
		return fmt.Errorf("its layer is corrupt: the digest is %s, and should be %s", got, want)
	}
	return unpackErr
}

func unpackTar(ctx context.Context, r io.Reader, m Manifest, dir string) error {
	zip, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer zip.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// A root refuses names that lead out of it, through links as well.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	seen := map[string]bool{}
	for tr := tar.NewReader(zip); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpacking: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := unpackFile(root, tr, header, m); err != nil {
			return err
		}
		seen[header.Name] = true
	}
	for rel := range m.Files {
		if !seen[rel] {
			return fmt.Errorf("it lacks the file %s", rel)
		}
	}
	return nil
}

func unpackFile(root *os.Root, r io.Reader, header *tar.Header, m Manifest) error {
	rel := header.Name
	if header.Typeflag != tar.TypeReg || !filepath.IsLocal(rel) || path.Clean(rel) != rel {
		return fmt.Errorf("it holds %q, which is not a plain file inside the engine; the artifact is refused", rel)
	}
	want, ok := m.Files[rel]
	if !ok || rel == manifestName {
		return fmt.Errorf("it holds %q, which its config does not name; the artifact is refused", rel)
	}
	if err := root.MkdirAll(path.Dir(rel), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if want.Executable {
		mode = 0o755
	}
	f, err := root.OpenFile(rel, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(r, want.Size+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("unpacking %s: %w", rel, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("the file %s is corrupt: the digest is %s, and should be %s", rel, got, want.SHA256)
	}
	return nil
}
