package sign

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// reader finds out which statements are beside images, and verifies each bundle once: the same
// bytes about the same image in the same repository prove the same, whenever they are read.
type reader struct {
	policy  verify.Policy
	options []remote.Option

	mu    sync.Mutex
	known map[proof][]byte // payloads; nil of a bundle that is not to be believed
}

// proof is a bundle that was verified against an image of a repository.
type proof struct {
	image  string
	bundle [sha256.Size]byte
}

// proved takes down that a bundle, which is about to be beside the image, was verified.
func (r *reader) proved(w wanted, bundle []byte) {
	r.keep(proof{w.image.String(), sha256.Sum256(bundle)}, w.payload)
}

func (r *reader) keep(of proof, payload []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[proof][]byte{}
	}
	r.known[of] = payload
}

// missing names the first of the statements that is not there.
func (r *reader) missing(ctx context.Context, all []wanted) error {
	not, err := r.lacking(ctx, all)
	if err != nil || len(not) == 0 {
		return err
	}
	return fmt.Errorf("%s has no statement %s by %s", not[0].image, not[0].predicateType, r.policy.Identity)
}

// lacking are those of the statements that are not there, or not to be believed.
func (r *reader) lacking(ctx context.Context, all []wanted) ([]wanted, error) {
	images := byImage(all)
	lacks := make([][]wanted, len(images))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, ofOne := range images {
		group.Go(func() error {
			there, err := r.payloads(ctx, ofOne[0])
			for _, w := range ofOne {
				if !there[string(w.payload)] {
					lacks[i] = append(lacks[i], w)
				}
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var not []wanted
	for _, some := range lacks {
		not = append(not, some...)
	}
	return not, nil
}

// payloads are those beside the image of a statement that can be believed.
func (r *reader) payloads(ctx context.Context, w wanted) (map[string]bool, error) {
	bundles, err := referrers.Bundles(ctx, w.image, r.options...)
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, bundle := range bundles {
		if payload := r.payload(bundle, w); payload != nil {
			there[string(payload)] = true
		}
	}
	return there, nil
}

func (r *reader) payload(bundle []byte, w wanted) []byte {
	of := proof{w.image.String(), sha256.Sum256(bundle)}
	r.mu.Lock()
	payload, known := r.known[of]
	r.mu.Unlock()
	if known {
		return payload
	}
	if statement, err := r.policy.Bundle(bundle, w.image); err == nil {
		payload = statement.Payload
	}
	r.keep(of, payload)
	return payload
}
