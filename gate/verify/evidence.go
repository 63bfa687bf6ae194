// Package verify proves what a cluster's policies demand of an image: it reads what lies
// beside a digest in its registry, and says of each policy whether it is satisfied, by
// whom, and what its signers state of version and scan.
//
// What is proven are Facts: true of this digest in this repository for these policies
// whatever happens later, so they can be kept. What changes meanwhile, such as the quarantine or
// the age of a scan, is decided from facts by package judge. Nobody but the registry is
// asked (P38).
package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/gate"
)

// evidence is all that lies beside a digest, believed by nobody yet.
type evidence struct {
	image   name.Digest
	bundles [][]byte
	legacy  []referrers.Legacy
	// images are those of an index that a node may run.
	images []evidence
}

// maxImages is how many images of an index are looked at.
const maxImages = 32

// atOnce is how many requests one verification has under way.
const atOnce = 8

// collect reads an image, which proves that it is what its digest says, and what lies
// beside it and, if it is an index, beside each of its images.
func collect(ctx context.Context, image name.Digest, options []remote.Option) (evidence, error) {
	children, err := images(ctx, image, options)
	if err != nil {
		return evidence{}, err
	}
	all := make([]evidence, 1+len(children))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, of := range append([]name.Digest{image}, children...) {
		group.Go(func() (err error) {
			all[i], err = beside(ctx, of, options)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return evidence{}, err
	}
	found := all[0]
	found.images = all[1:]
	return found, nil
}

func beside(ctx context.Context, image name.Digest, options []remote.Option) (evidence, error) {
	bundles, err := referrers.Bundles(ctx, image, options...)
	if err != nil {
		return evidence{}, err
	}
	legacy, err := referrers.FindLegacy(ctx, image, options...)
	if err != nil {
		return evidence{}, err
	}
	return evidence{image: image, bundles: bundles, legacy: legacy}, nil
}

// images are those of an index that some node may run; there are none of what is no index.
// BuildKit keeps notes on a build among them, for a platform that no node has.
func images(ctx context.Context, image name.Digest, options []remote.Option) ([]name.Digest, error) {
	desc, err := remote.Get(image, append(slices.Clone(options), remote.WithContext(ctx))...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", image, err)
	}
	if !desc.MediaType.IsIndex() {
		return nil, nil
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(desc.Manifest))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", image, err)
	}
	var digests []name.Digest
	for _, m := range index.Manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" && m.Platform.Architecture == "unknown" {
			continue
		}
		if m.MediaType.IsIndex() {
			return nil, fmt.Errorf("reading %s: an index within an index is not looked into", image)
		}
		digests = append(digests, image.Context().Digest(m.Digest.String()))
	}
	if len(digests) > maxImages {
		return nil, fmt.Errorf("reading %s: it has %d images, and more than %d are not looked at", image, len(digests), maxImages)
	}
	return digests, nil
}

// Reason says what an error of the registry means for an image.
func Reason(err error) gate.Reason {
	var answer *transport.Error
	var network net.Error
	switch {
	case errors.As(err, &answer):
		return ofStatus(answer.StatusCode)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return gate.RegistryUnavailable
	case strings.Contains(err.Error(), "does not match requested digest"), strings.Contains(err.Error(), "error verifying"):
		return gate.Tampered // the library has no type for these two
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return gate.RegistryUnavailable
	}
	return gate.Unresolvable
}

func ofStatus(status int) gate.Reason {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return gate.RegistryDenied
	case status == http.StatusNotFound:
		return gate.Unresolvable
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError:
		return gate.RegistryUnavailable
	}
	return gate.Unresolvable
}
