package image

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// blobs is a directory of content by digest, laid out as the blobs of an OCI
// layout are. There is no index: keys name the manifests, and two processes
// that store images do not meet in one file.
type blobs string

func (b blobs) path(h v1.Hash) string { return filepath.Join(string(b), "blobs", h.Algorithm, h.Hex) }

// image opens an image whose every part is there, with the size that its
// manifest says.
func (b blobs) image(digest v1.Hash) (v1.Image, error) {
	raw, err := os.ReadFile(b.path(digest))
	if err != nil {
		return nil, err
	}
	if got, _, err := v1.SHA256(bytes.NewReader(raw)); err != nil || got != digest {
		return nil, fmt.Errorf("the manifest %s is corrupt", digest)
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("the manifest %s: %w", digest, err)
	}
	parts := map[v1.Hash]v1.Descriptor{}
	for _, d := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		info, err := os.Stat(b.path(d.Digest))
		if err != nil {
			return nil, err
		}
		if info.Size() != d.Size {
			return nil, fmt.Errorf("the blob %s has %d bytes, and should have %d", d.Digest, info.Size(), d.Size)
		}
		parts[d.Digest] = d
	}
	return partial.CompressedToImage(&stored{blobs: b, raw: raw, manifest: manifest, parts: parts})
}

// stored is an image in a directory of blobs.
type stored struct {
	blobs    blobs
	raw      []byte
	manifest *v1.Manifest
	parts    map[v1.Hash]v1.Descriptor
}

func (s *stored) MediaType() (types.MediaType, error) { return s.manifest.MediaType, nil }
func (s *stored) RawManifest() ([]byte, error)        { return s.raw, nil }

func (s *stored) RawConfigFile() ([]byte, error) {
	return os.ReadFile(s.blobs.path(s.manifest.Config.Digest))
}

func (s *stored) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	d, ok := s.parts[h]
	if !ok {
		return nil, fmt.Errorf("the image has no layer %s", h)
	}
	return &storedLayer{path: s.blobs.path(h), Descriptor: d}, nil
}

// storedLayer is a blob as a layer.
type storedLayer struct {
	path string
	v1.Descriptor
}

func (l *storedLayer) Digest() (v1.Hash, error)            { return l.Descriptor.Digest, nil }
func (l *storedLayer) Size() (int64, error)                { return l.Descriptor.Size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.Descriptor.MediaType, nil }
func (l *storedLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }
