package referrers

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Media types of what cosign up to version 2 signs: a payload that names the image, or an
// envelope with an in-toto statement.
const (
	SimpleSigningType = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	envelopeType      = types.MediaType("application/vnd.dsse.envelope.v1+json")
)

// Legacy is a signature or attestation of cosign up to version 2: a layer of an image with
// the tag sha256-<digest>.sig or .att.
type Legacy struct {
	Payload     []byte
	Annotations map[string]string // of the layer: the signature, its certificate and witnesses
	Attestation bool
}

// FindLegacy returns all of them beside an image.
func FindLegacy(ctx context.Context, image name.Digest, options ...remote.Option) ([]Legacy, error) {
	options = append(slices.Clone(options), remote.WithContext(ctx))
	var all []Legacy
	for suffix, mediaType := range map[string]types.MediaType{".sig": SimpleSigningType, ".att": envelopeType} {
		tag := image.Context().Tag(strings.Replace(image.DigestStr(), ":", "-", 1) + suffix)
		found, err := legacyAt(tag, mediaType, options)
		if err != nil {
			return nil, fmt.Errorf("reading what is signed at %s: %w", tag, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func legacyAt(tag name.Tag, mediaType types.MediaType, options []remote.Option) ([]Legacy, error) {
	signed, err := remote.Image(tag, options...)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	manifest, err := signed.Manifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Layers) > maxBundles {
		return nil, fmt.Errorf("there are %d, and more than %d are not looked at", len(manifest.Layers), maxBundles)
	}
	var all []Legacy
	for _, layer := range manifest.Layers {
		if layer.MediaType != mediaType {
			continue
		}
		payload, err := blob(tag.Context(), layer, options)
		if err != nil {
			return nil, err
		}
		all = append(all, Legacy{Payload: payload, Annotations: layer.Annotations, Attestation: mediaType == envelopeType})
	}
	return all, nil
}

// blob reads what a descriptor names, and checks its digest.
func blob(repository name.Repository, descriptor v1.Descriptor, options []remote.Option) ([]byte, error) {
	if descriptor.Size > maxBundle {
		return nil, fmt.Errorf("%s has %d bytes, and more than %d are not read", descriptor.Digest, descriptor.Size, maxBundle)
	}
	layer, err := remote.Layer(repository.Digest(descriptor.Digest.String()), options...)
	if err != nil {
		return nil, err
	}
	content, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer content.Close() //nolint:errcheck // read to its end, or given up
	return io.ReadAll(io.LimitReader(content, maxBundle))
}
