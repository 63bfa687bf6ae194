package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// probeTimeout is how long a registry may take to say that it has an image. It
// is short: on a machine without internet access `up` waits for it, once for
// each registry.
const probeTimeout = 3 * time.Second

// probes remember which registries answer.
type probes struct {
	mu          sync.Mutex
	unreachable map[string]bool
}

func (p *probes) failed(host string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unreachable[host]
}

func (p *probes) fail(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unreachable == nil {
		p.unreachable = map[string]bool{}
	}
	p.unreachable[host] = true
}

// Upstream pulls the image of a production reference from its own registry and
// keeps it. It returns nil without an error when that cannot be reached, does
// not have the image, or is this project's own, which upstream nobody has.
func (b *Builder) Upstream(ctx context.Context, reference string) (*Image, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, fmt.Errorf("reading the image reference %q: %w", reference, err)
	}
	if b.isOwn(reference) {
		return nil, nil
	}
	key := upstreamKey(ref)
	made := "pulled from " + canonicalHost(ref)
	if img, ok := b.cached(key); ok {
		return b.describe(img, reference, made, "")
	}
	host := ref.Context().RegistryStr()
	if b.Offline || b.probes.failed(host) {
		return nil, nil
	}
	if err := b.probe(ctx, ref); err != nil {
		// A registry that answers, but not with this image, may have others.
		if refused := new(transport.Error); !errors.As(err, &refused) {
			b.probes.fail(host)
		}
		return nil, context.Cause(ctx)
	}
	b.report("pulling %s", reference)
	img, err := remote.Image(ref, b.remoteOptions(ctx)...)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w; set the fleet offline to use what can be assembled here", reference, err)
	}
	if err := b.remember(key, img); err != nil {
		return nil, fmt.Errorf("pulling %s: %w", reference, err)
	}
	img, ok := b.cached(key)
	if !ok {
		return nil, fmt.Errorf("pulling %s: it arrived incomplete; try again", reference)
	}
	return b.describe(img, reference, made, "")
}

func (b *Builder) isOwn(reference string) bool {
	r, err := b.recipe(reference)
	return err == nil && (r.Reference == workerImage || r.Reference == uiImage || r.Reference == gpuSubstituteImage)
}

// probe asks whether the image can be had.
func (b *Builder) probe(ctx context.Context, ref name.Reference) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err := remote.Head(ref, append(b.remoteOptions(ctx), remote.WithRetryBackoff(remote.Backoff{Steps: 1}))...)
	return err
}

func (b *Builder) remoteOptions(ctx context.Context) []remote.Option {
	options := []remote.Option{remote.WithContext(ctx), remote.WithPlatform(platform())}
	if b.Transport != nil {
		options = append(options, remote.WithTransport(b.Transport))
	}
	return options
}

func upstreamKey(ref name.Reference) string {
	sum := sha256.Sum256([]byte(ref.Name() + " " + platform().String()))
	return "upstream-" + hex.EncodeToString(sum[:])
}

// Pushed says what Push did.
type Pushed struct {
	// Reference is where the image is in the fleet's registry.
	Reference string
	Digest    v1.Hash
	// Skipped: the registry had it already.
	Skipped bool
}

// Push writes an image to the registry at base (http://host:port), under the
// host of its production reference as the first part of the repository:
// quay.io/argoproj/argocd:v3.6.1 becomes host:port/quay.io/argoproj/argocd:v3.6.1.
func Push(ctx context.Context, img v1.Image, reference, base string, rt http.RoundTripper) (Pushed, error) {
	return push(ctx, img, reference, base, rt, func(target name.Reference, options ...remote.Option) error {
		return remote.Write(target, img, options...)
	})
}

// push writes what has a digest, unless the registry has it under this reference.
func push(ctx context.Context, what interface{ Digest() (v1.Hash, error) }, reference, base string, rt http.RoundTripper, write func(name.Reference, ...remote.Option) error) (Pushed, error) {
	target, err := pushTarget(reference, base)
	if err != nil {
		return Pushed{}, err
	}
	digest, err := what.Digest()
	if err != nil {
		return Pushed{}, err
	}
	pushed := Pushed{Reference: target.Name(), Digest: digest}
	options := []remote.Option{remote.WithContext(ctx)}
	if rt != nil {
		options = append(options, remote.WithTransport(rt))
	}
	head, err := remote.Head(target, options...)
	if err == nil && head.Digest == digest {
		pushed.Skipped = true
		return pushed, nil
	}
	if refused := new(transport.Error); err != nil && !(errors.As(err, &refused) && refused.StatusCode == http.StatusNotFound) {
		return Pushed{}, fmt.Errorf("asking the registry at %s for %s: %w", base, reference, err)
	}
	if err := write(target, options...); err != nil {
		return Pushed{}, fmt.Errorf("pushing %s to the registry at %s: %w", reference, base, err)
	}
	return pushed, nil
}
