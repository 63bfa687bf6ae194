package engine

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Pack writes the engines called names (all, if none is named) as one OCI
// artifact, a layer for each. dst is an OCI layout (a directory, or a file that
// ends in .tar) or a registry reference; see ParseLocation. The digest of the
// artifact is returned.
func (s *Store) Pack(ctx context.Context, names []string, dst string, options ...remote.Option) (v1.Hash, error) {
	location, err := ParseLocation(dst)
	if err != nil {
		return v1.Hash{}, err
	}
	builds, err := s.Resolve(names...)
	if err != nil {
		return v1.Hash{}, err
	}
	scratch, err := s.artifactScratch("pack")
	if err != nil {
		return v1.Hash{}, err
	}
	defer os.RemoveAll(scratch)

	img := &artifact{config: artifactConfig{OS: runtime.GOOS, Arch: runtime.GOARCH}}
	for _, b := range builds {
		m, err := s.Manifest(b)
		if err != nil {
			return v1.Hash{}, fmt.Errorf("packing: %w", err)
		}
		layer, err := packLayer(ctx, s.dir(b), m, filepath.Join(scratch, b.DirName()))
		if err != nil {
			return v1.Hash{}, fmt.Errorf("packing engine %s: %w", b.Name, err)
		}
		img.config.Engines = append(img.config.Engines, m)
		img.layers = append(img.layers, layer)
	}
	if err := img.seal(); err != nil {
		return v1.Hash{}, err
	}
	if err := location.write(ctx, img, scratch, options); err != nil {
		return v1.Hash{}, fmt.Errorf("writing the artifact to %s: %w", dst, err)
	}
	return img.digest, nil
}

// packLayer writes the files of m as one tar to file. Names are sorted and
// times left out, so that the same engine is the same layer.
func packLayer(ctx context.Context, dir string, m Manifest, file string) (*fileLayer, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	compressed, plain := sha256.New(), sha256.New()
	zip, err := gzip.NewWriterLevel(io.MultiWriter(f, compressed), gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(io.MultiWriter(zip, plain))
	for _, rel := range slices.Sorted(maps.Keys(m.Files)) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if err := packFile(tw, dir, rel, m.Files[rel]); err != nil {
			return nil, fmt.Errorf("%s: %w", rel, err)
		}
	}
	if err := errors.Join(tw.Close(), zip.Close()); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &fileLayer{path: file, size: info.Size(), digest: hashOf(compressed), diffID: hashOf(plain)}, nil
}

// packFile adds one file, and refuses one that is not what was built.
func packFile(tw *tar.Writer, dir, rel string, want File) error {
	mode := int64(0o644)
	if want.Executable {
		mode = 0o755
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: rel, Size: want.Size, Mode: mode, Format: tar.FormatPAX}); err != nil {
		return err
	}
	in, err := os.Open(filepath.Join(dir, filepath.FromSlash(rel)))
	if err != nil {
		return err
	}
	defer in.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tw, h), in); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("it was changed since it was built: the digest is %s, and should be %s", got, want.SHA256)
	}
	return nil
}
