// Package referrers keeps Sigstore bundles beside the image that they are about, as OCI
// referrers, where every client of the registry that knows the image finds them:
// https://github.com/sigstore/cosign/blob/v3.1.3/specs/BUNDLE_SPEC.md.
//
// A registry without the referrers API gets the index under the fallback tag
// sha256-<digest>. Reading looks at both, since some registries answer the API with an
// empty list and have the tag (P38).
//
// What is read here is what anybody may have written who can push to the repository.
// Whether to believe it is package verify's.
package referrers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// BundleType is the media type of a bundle, and of the artifact that holds it.
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

const (
	bundlePrefix = "application/vnd.dev.sigstore.bundle"
	emptyConfig  = types.MediaType("application/vnd.oci.empty.v1+json")

	// Annotations by which cosign finds what it looks for without reading it.
	contentAnnotation   = "dev.sigstore.bundle.content"
	predicateAnnotation = "dev.sigstore.bundle.predicateType"
)

// Limits of what is read: a bundle holds an SBOM or a report at most, and an image has a
// handful of them.
const (
	maxBundle  = 64 << 20
	maxBundles = 200
)

// Attach writes a bundle beside an image. The same bundle written twice is one.
func Attach(ctx context.Context, image name.Digest, bundle []byte, predicateType string, options ...remote.Option) error {
	options = append(slices.Clone(options), remote.WithContext(ctx))
	subject, err := remote.Head(image, options...)
	if err != nil {
		return fmt.Errorf("attaching %s to %s: %w", predicateType, image, err)
	}
	config, layer := static.NewLayer([]byte("{}"), emptyConfig), static.NewLayer(bundle, BundleType)
	for _, blob := range []v1.Layer{config, layer} {
		if err := remote.WriteLayer(image.Context(), blob, options...); err != nil {
			return fmt.Errorf("attaching %s to %s: %w", predicateType, image, err)
		}
	}
	artifact, err := newArtifact(subject, config, layer, predicateType)
	if err != nil {
		return fmt.Errorf("attaching %s to %s: %w", predicateType, image, err)
	}
	if err := remote.Put(image.Context().Digest(artifact.digest), artifact, options...); err != nil {
		return fmt.Errorf("attaching %s to %s: %w", predicateType, image, err)
	}
	return nil
}

// artifact is a manifest that refers to an image.
type artifact struct {
	raw    []byte
	digest string
}

// RawManifest implements remote.Taggable.
func (a artifact) RawManifest() ([]byte, error) { return a.raw, nil }

// MediaType tells the registry what it is.
func (a artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func newArtifact(subject *v1.Descriptor, config, layer v1.Layer, predicateType string) (artifact, error) {
	configDescriptor, err := describe(config)
	if err != nil {
		return artifact{}, err
	}
	layerDescriptor, err := describe(layer)
	if err != nil {
		return artifact{}, err
	}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: BundleType,
		Config: configDescriptor, Layers: []v1.Descriptor{layerDescriptor},
		Subject:     &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{contentAnnotation: "dsse-envelope", predicateAnnotation: predicateType},
	})
	if err != nil {
		return artifact{}, err
	}
	digest, _, err := v1.SHA256(strings.NewReader(string(raw)))
	return artifact{raw: raw, digest: digest.String()}, err
}

func describe(layer v1.Layer) (v1.Descriptor, error) {
	digest, err := layer.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := layer.Size()
	if err != nil {
		return v1.Descriptor{}, err
	}
	mediaType, err := layer.MediaType()
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}, err
}

// Bundles returns all bundles beside an image.
func Bundles(ctx context.Context, image name.Digest, options ...remote.Option) ([][]byte, error) {
	options = append(slices.Clone(options), remote.WithContext(ctx))
	found, err := list(image, options)
	if err != nil {
		return nil, fmt.Errorf("listing what is attached to %s: %w", image, err)
	}
	var bundles [][]byte
	for _, descriptor := range found {
		bundle, err := read(image.Context().Digest(descriptor.Digest.String()), options)
		if err != nil {
			return nil, fmt.Errorf("reading what is attached to %s: %w", image, err)
		}
		if bundle != nil {
			bundles = append(bundles, bundle)
		}
	}
	return bundles, nil
}

// list asks the referrers API and looks at the fallback tag, each digest once.
func list(image name.Digest, options []remote.Option) ([]v1.Descriptor, error) {
	index, err := remote.Referrers(image, options...)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	found := slices.Clone(manifest.Manifests)
	tagged, err := remote.Index(image.Context().Tag(strings.Replace(image.DigestStr(), ":", "-", 1)), options...)
	switch {
	case missing(err):
	case err != nil:
		return nil, err
	default:
		manifest, err := tagged.IndexManifest()
		if err != nil {
			return nil, err
		}
		found = append(found, manifest.Manifests...)
	}
	seen := map[v1.Hash]bool{}
	found = slices.DeleteFunc(found, func(d v1.Descriptor) bool {
		double := seen[d.Digest]
		seen[d.Digest] = true
		return double || d.ArtifactType != "" && !strings.HasPrefix(d.ArtifactType, bundlePrefix) && d.ArtifactType != string(emptyConfig)
	})
	if len(found) > maxBundles {
		return nil, fmt.Errorf("there are %d, and more than %d are not looked at", len(found), maxBundles)
	}
	return found, nil
}

func missing(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}

// read returns the bundle of an artifact, or nothing if it is an artifact of another kind
// or was removed meanwhile.
func read(ref name.Digest, options []remote.Option) ([]byte, error) {
	image, err := remote.Image(ref, options...)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Layers) != 1 || !strings.HasPrefix(string(manifest.Layers[0].MediaType), bundlePrefix) {
		return nil, nil
	}
	return blob(ref.Context(), manifest.Layers[0], options)
}
