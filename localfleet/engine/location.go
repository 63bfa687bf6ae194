package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Location is where an artifact is: exactly one field is set.
type Location struct {
	Layout    string
	Tar       string
	Reference name.Reference
}

// ParseLocation tells the three kinds of location apart: a name that ends in
// .tar is a file; one that begins with /, ./ or ../ or with "oci:" is a layout
// directory; anything else is a registry reference with a tag or a digest.
func ParseLocation(s string) (Location, error) {
	if strings.HasSuffix(s, ".tar") {
		return Location{Tar: strings.TrimPrefix(s, "oci:")}, nil
	}
	if dir, ok := strings.CutPrefix(s, "oci:"); ok {
		return Location{Layout: dir}, nil
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return Location{Layout: s}, nil
	}
	ref, err := name.ParseReference(s, name.StrictValidation)
	if err != nil {
		return Location{}, fmt.Errorf("%q is neither a path (/…, ./…, oci:…, ….tar) nor a registry reference (host/name:tag): %w", s, err)
	}
	return Location{Reference: ref}, nil
}

func (l Location) write(ctx context.Context, img v1.Image, scratch string, options []remote.Option) error {
	switch {
	case l.Reference != nil:
		return remote.Write(l.Reference, img, append(slices.Clone(options), remote.WithContext(ctx))...)
	case l.Layout != "":
		return writeLayout(l.Layout, img)
	}
	dir := filepath.Join(scratch, "layout")
	if err := writeLayout(dir, img); err != nil {
		return err
	}
	return writeTar(ctx, dir, l.Tar)
}

// writeLayout replaces the index, so that packing twice leaves one artifact.
func writeLayout(dir string, img v1.Image) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "engines"})); err != nil {
		return err
	}
	unused, err := p.GarbageCollect()
	if err != nil {
		return err
	}
	for _, h := range unused {
		if err := p.RemoveBlob(h); err != nil {
			return err
		}
	}
	return nil
}

// writeTar writes the layout in dir as one file, in one step.
func writeTar(ctx context.Context, dir, file string) error {
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	tw := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(rel), Size: info.Size(), Mode: 0o644, Format: tar.FormatPAX}); err != nil {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(tw, in)
		return err
	})
	if err := errors.Join(err, tw.Close(), out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}

func (l Location) read(ctx context.Context, scratch string, options []remote.Option) (v1.Image, error) {
	if l.Reference != nil {
		return remote.Image(l.Reference, append(slices.Clone(options), remote.WithContext(ctx))...)
	}
	dir := l.Layout
	if l.Tar != "" {
		dir = filepath.Join(scratch, "layout")
		if err := readTar(ctx, l.Tar, dir); err != nil {
			return nil, err
		}
	}
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("it is not an OCI layout: %w", err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(list.Manifests) != 1 {
		return nil, fmt.Errorf("the layout holds %d artifacts, and should hold one", len(list.Manifests))
	}
	img, err := p.Image(list.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	if got := sha256Of(raw); got != list.Manifests[0].Digest {
		return nil, fmt.Errorf("its manifest is corrupt: the digest is %s, and should be %s", got, list.Manifests[0].Digest)
	}
	return img, nil
}

var layoutFile = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

// readTar unpacks a layout. Only the names that a layout has are accepted.
func readTar(ctx context.Context, file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is not a tar of an OCI layout: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel := strings.TrimPrefix(header.Name, "./")
		if header.Typeflag == tar.TypeDir {
			continue
		}
		if header.Typeflag != tar.TypeReg || !layoutFile.MatchString(rel) {
			return fmt.Errorf("it holds %q, which an OCI layout does not have; the artifact is refused", header.Name)
		}
		target := filepath.Join(dir, filepath.FromSlash(rel))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		out, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, tr)
		if err := errors.Join(err, out.Close()); err != nil {
			return fmt.Errorf("unpacking %s: %w", rel, err)
		}
	}
}
