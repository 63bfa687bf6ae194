// Package sign says of an image who built it, from what, and what a scan found, in
// signed statements that are kept beside it.
//
// The index and each platform's image are signed: admission sees the digest that a Pod
// names, which may be either (P35). A signature names its repository and version (P33);
// provenance, SBOM and scan are about the digest alone, and are copied to each
// repository as they are.
//
// A statement that is there already, by the same signer and with the same content, is
// not made again, so a run that was killed goes on where it was. Nothing counts as done
// before it was read back from the registry and verified.
package sign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// Request is what to sign.
type Request struct {
	Digest       string // of the index, of a chart, or of the only platform's image
	Version      string
	Platforms    []Platform // none of a chart: nothing in it runs, so nothing is scanned
	Repositories []name.Repository
	Origin       Origin
}

// Platform is one image of the index, with what is known of it.
type Platform struct {
	Platform string
	Digest   string
	SBOM     json.RawMessage
	Scan     ScanResult
}

// Result is what was signed.
type Result struct {
	Signer     verify.Identity `json:"signer"`
	Statements int             `json:"statements"` // in each repository
}

// wanted is a statement that must be beside an image.
type wanted struct {
	image         name.Digest
	predicateType string
	payload       []byte
}

// Publish makes every statement of a release be in every repository.
func Publish(ctx context.Context, s *Signer, r Request, report func(string), options ...remote.Option) (Result, error) {
	all, err := r.wanted(s.Identity())
	if err != nil {
		return Result{}, err
	}
	if err := s.publish(ctx, all, report, options); err != nil {
		return Result{}, err
	}
	return Result{Signer: s.Identity(), Statements: len(all) / len(r.Repositories)}, nil
}

// publish makes each statement that is not there yet, and reads all of them back.
func (s *Signer) publish(ctx context.Context, all []wanted, report func(string), options []remote.Option) error {
	beside := &reader{policy: s.Policy(), options: options}
	lacking, err := beside.lacking(ctx, all)
	if err != nil {
		return err
	}
	bundles, err := s.signAll(ctx, lacking, report)
	if err != nil {
		return err
	}
	for _, w := range lacking {
		beside.proved(w, bundles[string(w.payload)])
	}
	if err := attachAll(ctx, lacking, bundles, report, options); err != nil {
		return err
	}
	if err := beside.missing(ctx, all); err != nil {
		return fmt.Errorf("reading back what was signed: %w", err)
	}
	return nil
}

// Check reports what is missing of what a signer of the policy's identity signs.
func Check(ctx context.Context, policy verify.Policy, r Request, options ...remote.Option) error {
	all, err := r.wanted(policy.Identity)
	if err != nil {
		return err
	}
	return (&reader{policy: policy, options: options}).missing(ctx, all)
}

// atOnce is how many statements are signed, or images looked after, at the same time. A log
// answers when its next checkpoint is out, which takes a second or more however many wait for it.
const atOnce = 8

// signAll signs each payload once: what is about the digest alone is the same in every
// repository. What comes back verifies, or nothing is published.
func (s *Signer) signAll(ctx context.Context, statements []wanted, report func(string)) (map[string][]byte, error) {
	first := map[string]wanted{}
	for _, w := range statements {
		if _, ok := first[string(w.payload)]; !ok {
			first[string(w.payload)] = w
		}
	}
	var mu sync.Mutex
	bundles := map[string][]byte{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for payload, w := range first {
		group.Go(func() error {
			bundle, err := s.signAndVerify(ctx, w)
			if err != nil {
				return fmt.Errorf("signing %s of %s: %w", w.predicateType, w.image, err)
			}
			mu.Lock()
			defer mu.Unlock()
			bundles[payload] = bundle
			report(fmt.Sprintf("signed %d of %d", len(bundles), len(first)))
			return nil
		})
	}
	return bundles, group.Wait()
}

// signAndVerify signs one statement, and verifies what came of it while others wait for the log.
func (s *Signer) signAndVerify(ctx context.Context, w wanted) ([]byte, error) {
	bundle, err := s.sign(ctx, w.payload)
	if err != nil {
		return nil, err
	}
	if _, err := s.Policy().Bundle(bundle, w.image); err != nil {
		return nil, fmt.Errorf("what was just signed does not verify, so it is not published; check that trusted root and signing config belong together: %w", err)
	}
	return bundle, nil
}

// attachAll puts bundles beside their images. Those of one image go one after the other: where
// the registry keeps a list under a tag, two at once would lose one.
func attachAll(ctx context.Context, statements []wanted, bundles map[string][]byte, report func(string), options []remote.Option) error {
	var mu sync.Mutex
	begun := 0
	begin := func(w wanted) {
		mu.Lock()
		defer mu.Unlock()
		begun++
		report(fmt.Sprintf("attaching %d of %d: %s of %s", begun, len(statements), w.predicateType, w.image.Context()))
	}
	var group errgroup.Group // of which one's failure cuts no other off between manifest and list
	group.SetLimit(atOnce)
	for _, ofOne := range byImage(statements) {
		group.Go(func() error {
			for _, w := range ofOne {
				begin(w)
				if err := referrers.Attach(ctx, w.image, bundles[string(w.payload)], w.predicateType, options...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// byImage are the statements of each image, all in the order in which they came.
func byImage(statements []wanted) [][]wanted {
	var all [][]wanted
	at := map[string]int{}
	for _, w := range statements {
		i, known := at[w.image.String()]
		if !known {
			i = len(all)
			at[w.image.String()] = i
			all = append(all, nil)
		}
		all[i] = append(all[i], w)
	}
	return all
}

// wanted lists the statements of a release, repository by repository.
func (r Request) wanted(signer verify.Identity) ([]wanted, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	var all []wanted
	for _, repository := range r.Repositories {
		add := func(digest, predicateType string, payload []byte, err error) error {
			if err != nil {
				return fmt.Errorf("stating %s of %s: %w", predicateType, digest, err)
			}
			all = append(all, wanted{image: repository.Digest(digest), predicateType: predicateType, payload: payload})
			return nil
		}
		if err := r.each(repository, signer, add); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (r Request) check() error {
	switch chart := r.Origin.Chart != ""; {
	case len(r.Repositories) == 0, !chart && len(r.Platforms) == 0:
		return errors.New("signing takes a repository and the images of the index")
	case chart && (len(r.Platforms) > 0 || r.Origin.Dockerfile != ""):
		return errors.New("what is signed is a chart or an image, not both")
	}
	return nil
}

func (r Request) each(repository name.Repository, signer verify.Identity, add func(digest, predicateType string, payload []byte, err error) error) error {
	digests, platforms := []string{r.Digest}, []string(nil)
	for _, p := range r.Platforms {
		if p.Digest != r.Digest { // an image of one platform may come without an index
			digests = append(digests, p.Digest)
		}
		platforms = append(platforms, p.Platform)
	}
	for _, digest := range digests {
		payload, err := signature(repository, digest, r.Version)
		if err := add(digest, verify.Signature, payload, err); err != nil {
			return err
		}
		payload, err = provenance(digest, platforms, r.Origin, signer)
		if err := add(digest, verify.Provenance, payload, err); err != nil {
			return err
		}
	}
	for _, p := range r.Platforms {
		if len(p.SBOM) == 0 || len(p.Scan.Result) == 0 {
			return fmt.Errorf("the image for %s has no scan: nothing unscanned is signed", p.Platform)
		}
		payload, err := sbom(p.Digest, p.SBOM)
		if err := add(p.Digest, verify.SBOM, payload, err); err != nil {
			return err
		}
		payload, err = scanned(p.Digest, p.Scan)
		if err := add(p.Digest, verify.Scan, payload, err); err != nil {
			return err
		}
	}
	return nil
}
