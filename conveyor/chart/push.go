package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrVersionTaken says that a version is there with another content.
var ErrVersionTaken = errors.New("the version names another chart already")

// Publish makes a version be in a repository, unless it is there with another content.
// Registries cannot write a tag only if it is free: make tags immutable, too.
func Publish(ctx context.Context, repository name.Repository, p *Packed, options ...remote.Option) error {
	tag := repository.Tag(p.Tag())
	have, err := digestOf(ctx, tag, options)
	switch {
	case err != nil:
		return fmt.Errorf("looking whether %s is free: %w", tag, err)
	case have != "" && have != p.Digest:
		return fmt.Errorf("%w: %s is %s, and the source makes %s; raise the version in Chart.yaml", ErrVersionTaken, tag, have, p.Digest)
	}
	if err := Replace(ctx, repository, p, options...); err != nil {
		return err
	}
	if err := Check(ctx, repository, p.Tag(), p.Digest, options...); err != nil {
		return fmt.Errorf("reading back what was published: %w", err)
	}
	return nil
}

// Replace makes a version be a chart, whatever it was before. It is for a registry that
// nobody else relies on; what clusters pin is published.
func Replace(ctx context.Context, repository name.Repository, p *Packed, options ...remote.Option) error {
	tag := repository.Tag(p.Tag())
	if have, err := digestOf(ctx, tag, options); err == nil && have == p.Digest {
		return nil
	}
	with := append(slices.Clone(options), remote.WithContext(ctx))
	for _, blob := range []v1.Layer{static.NewLayer(p.config, ConfigType), static.NewLayer(p.archive, ContentType)} {
		if err := remote.WriteLayer(repository, blob, with...); err != nil {
			return fmt.Errorf("pushing %s: %w", tag, err)
		}
	}
	if err := remote.Put(tag, manifest(p.manifest), with...); err != nil {
		return fmt.Errorf("pushing %s: %w", tag, err)
	}
	return nil
}

// Check asks a registry whether a version is still there, whole and with its digest.
func Check(ctx context.Context, repository name.Repository, tag, digest string, options ...remote.Option) error {
	named := repository.Tag(tag)
	with := append(slices.Clone(options), remote.WithContext(ctx))
	found, err := remote.Get(named, with...)
	if err != nil {
		return fmt.Errorf("%s is not there: %w", named, err)
	}
	if found.Digest.String() != digest {
		return fmt.Errorf("%s is %s, not %s", named, found.Digest, digest)
	}
	parsed, err := v1.ParseManifest(bytes.NewReader(found.Manifest))
	if err != nil {
		return fmt.Errorf("reading %s: %w", named, err)
	}
	for _, blob := range append([]v1.Descriptor{parsed.Config}, parsed.Layers...) {
		if err := exists(repository.Digest(blob.Digest.String()), with); err != nil {
			return fmt.Errorf("%s is not whole: %w", named, err)
		}
	}
	return nil
}

func exists(blob name.Digest, options []remote.Option) error {
	layer, err := remote.Layer(blob, options...)
	if err != nil {
		return err
	}
	_, err = layer.Size() // which is the question
	return err
}

// digestOf asks for a tag's digest; it is empty if there is no such tag.
func digestOf(ctx context.Context, tag name.Tag, options []remote.Option) (string, error) {
	have, err := remote.Head(tag, append(slices.Clone(options), remote.WithContext(ctx))...)
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return "", nil
	case err != nil:
		return "", err
	}
	return have.Digest.String(), nil
}

// manifest is a remote.Taggable.
type manifest []byte

// RawManifest implements remote.Taggable.
func (m manifest) RawManifest() ([]byte, error) { return m, nil }

// MediaType tells the registry what it is.
func (m manifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
