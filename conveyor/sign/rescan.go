package sign

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// PublishScans makes the statement of a later scan be beside each of its images in a repository, next to
// those of the release. An image that this signer has not signed gets none: its scan would
// lend it what its origin does not give.
func PublishScans(ctx context.Context, s *Signer, repository name.Repository, result scan.Result, report func(string), options ...remote.Option) error {
	if len(result.Images) == 0 {
		return errors.New("stating a scan takes the images that were scanned")
	}
	var all []wanted
	for _, image := range result.Images {
		at := repository.Digest(image.Digest)
		if err := s.signed(ctx, at, options); err != nil {
			return err
		}
		payload, err := scanned(image.Digest, ScanOf(result, image))
		if err != nil {
			return fmt.Errorf("stating the scan of %s: %w", at, err)
		}
		all = append(all, wanted{image: at, predicateType: verify.Scan, payload: payload})
	}
	return s.publish(ctx, all, report, options)
}

// signed is an error unless the signer has signed an image for its repository.
func (s *Signer) signed(ctx context.Context, image name.Digest, options []remote.Option) error {
	believed, _, err := s.Policy().Image(ctx, image, options...)
	if err != nil {
		return err
	}
	for _, statement := range believed {
		if statement.PredicateType == verify.Signature {
			return nil
		}
	}
	return fmt.Errorf("%s is not signed by %s: only a release of its own gets a newer scan", image, s.Identity())
}
