package advisories

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// What Trivy downloads: https://github.com/aquasecurity/trivy/blob/v0.68.0/pkg/db/db.go.
const (
	configType = "application/vnd.aquasec.trivy.config.v1+json"
	layerType  = "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"
)

// References are where Trivy looks for its database, in this order.
var References = []string{"mirror.gcr.io/aquasec/trivy-db:2", "ghcr.io/aquasecurity/trivy-db:2"}

// Artifact is the database below cacheDir, as Write left it, in the form in which Trivy
// downloads one.
func Artifact(cacheDir string) (v1.Image, error) {
	artifact, err := pack(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("packing the vulnerability database: %w", err)
	}
	return artifact, nil
}

func pack(cacheDir string) (v1.Image, error) {
	var archive bytes.Buffer
	compressed := gzip.NewWriter(&archive)
	files := tar.NewWriter(compressed)
	for _, name := range []string{"trivy.db", "metadata.json"} {
		content, err := os.ReadFile(filepath.Join(cacheDir, "db", name))
		if err != nil {
			return nil, err
		}
		header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
		if err := files.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := files.Write(content); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(files.Close(), compressed.Close()); err != nil {
		return nil, err
	}
	artifact := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), configType)
	return mutate.Append(artifact, mutate.Addendum{
		Layer:       static.NewLayer(archive.Bytes(), layerType),
		MediaType:   layerType,
		Annotations: map[string]string{"org.opencontainers.image.title": "db.tar.gz"},
	})
}
