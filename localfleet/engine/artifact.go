package engine

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The media types of an artifact of packed engines.
const (
	ArtifactType    = "application/vnd.omnivision.engines.v1"
	configMediaType = types.MediaType("application/vnd.omnivision.engines.config.v1+json")
	layerMediaType  = types.MediaType("application/vnd.omnivision.engine.v1.tar+gzip")
	// engineAnnotation on a layer is the directory name of its engine.
	engineAnnotation = "com.omnivision.engine"
)

// artifactConfig is the config blob: what is inside, and for which machine.
type artifactConfig struct {
	OS      string     `json:"os"`
	Arch    string     `json:"arch"`
	Engines []Manifest `json:"engines"`
}

func (s *Store) artifactScratch(purpose string) (string, error) {
	parent := filepath.Join(s.enginesDir(), partialDir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("making the store of engines: %w", err)
	}
	return os.MkdirTemp(parent, "."+purpose+"-*")
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

func sha256Of(raw []byte) v1.Hash {
	sum := sha256.Sum256(raw)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// fileLayer is a layer whose compressed form is a file.
type fileLayer struct {
	path           string
	size           int64
	digest, diffID v1.Hash
}

func (l *fileLayer) Digest() (v1.Hash, error) { return l.digest, nil }

func (l *fileLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func (l *fileLayer) Size() (int64, error) { return l.size, nil }

func (l *fileLayer) MediaType() (types.MediaType, error) { return layerMediaType, nil }

func (l *fileLayer) Compressed() (io.ReadCloser, error) { return os.Open(l.path) }

func (l *fileLayer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{zip, f}, nil
}

// artifact is an OCI manifest whose config is not that of a container image,
// which go-containerregistry's own images cannot carry.
type artifact struct {
	config                 artifactConfig
	layers                 []*fileLayer
	rawConfig, rawManifest []byte
	digest                 v1.Hash
	manifest               *v1.Manifest
}

// seal computes the manifest.
func (a *artifact) seal() error {
	var err error
	if a.rawConfig, err = json.Marshal(a.config); err != nil {
		return err
	}
	a.manifest = &v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  ArtifactType,
		Config:        v1.Descriptor{MediaType: configMediaType, Size: int64(len(a.rawConfig)), Digest: sha256Of(a.rawConfig)},
		Layers:        []v1.Descriptor{},
	}
	for i, l := range a.layers {
		a.manifest.Layers = append(a.manifest.Layers, v1.Descriptor{
			MediaType: layerMediaType, Size: l.size, Digest: l.digest,
			Annotations: map[string]string{engineAnnotation: a.config.Engines[i].DirName()},
		})
	}
	if a.rawManifest, err = json.Marshal(a.manifest); err != nil {
		return err
	}
	a.digest = sha256Of(a.rawManifest)
	return nil
}

func (a *artifact) Layers() ([]v1.Layer, error) {
	layers := make([]v1.Layer, len(a.layers))
	for i, l := range a.layers {
		layers[i] = l
	}
	return layers, nil
}

func (a *artifact) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for _, l := range a.layers {
		if l.digest == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the artifact has no layer %s", h)
}

func (a *artifact) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	for _, l := range a.layers {
		if l.diffID == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the artifact has no layer with the content %s", h)
}

func (a *artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (a *artifact) Size() (int64, error) { return int64(len(a.rawManifest)), nil }

func (a *artifact) ConfigName() (v1.Hash, error) { return a.manifest.Config.Digest, nil }

func (a *artifact) RawConfigFile() ([]byte, error) { return bytes.Clone(a.rawConfig), nil }

func (a *artifact) Digest() (v1.Hash, error) { return a.digest, nil }

func (a *artifact) Manifest() (*v1.Manifest, error) { return a.manifest.DeepCopy(), nil }

func (a *artifact) RawManifest() ([]byte, error) { return bytes.Clone(a.rawManifest), nil }

// ConfigFile is asked for by go-containerregistry when it derives things from
// a container image's config; there are none to derive.
func (a *artifact) ConfigFile() (*v1.ConfigFile, error) { return &v1.ConfigFile{}, nil }
