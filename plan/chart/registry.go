package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/registry"
	"oras.land/oras-go/v2/errdef"

	"github.com/omnivision/omnivision/internal/tooltime"
	"github.com/omnivision/omnivision/plan/render"
)

// Registry gets charts from OCI registries. A tag is asked for its digest each time,
// because a tag can move (P3); the chart behind a digest is kept on disk. When the
// registry does not answer, what the tag was last time is taken, with a warning.
//
// Credentials are those of `helm registry login` and of Docker, helpers included.
type Registry struct {
	// Cache is the directory of charts; empty keeps none.
	Cache string
	// Offline takes what the cache has and asks no registry.
	Offline bool
	// Timeout of one request; 0 means 20 s.
	Timeout time.Duration
	// Transport is used instead of Helm's own, which tries again when a registry is busy.
	Transport http.RoundTripper
	// PlainHTTP speaks HTTP, for a registry on this machine.
	PlainHTTP bool
}

// Chart implements Source.
func (r *Registry) Chart(ctx context.Context, ref Reference) (*Loaded, error) {
	loaded, err := r.get(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("getting chart %s: %w", ref, err)
	}
	if loaded.Name() != ref.Name || loaded.Version() != ref.Version {
		return nil, fmt.Errorf("getting chart %s: the registry has %s %s under that name: publish it again", ref, loaded.Name(), loaded.Version())
	}
	return loaded, nil
}

func (r *Registry) get(ctx context.Context, ref Reference) (*Loaded, error) {
	store := cache{r.Cache}
	known, found := store.tag(ref)
	if r.Offline {
		return r.fromCache(store, known, found, "")
	}
	digest, err := r.resolve(ctx, ref)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errdef.ErrNotFound):
		return nil, fmt.Errorf("the registry has no such version: publish it before a cluster pins it (%w)", err)
	case err != nil && found:
		return r.fromCache(store, known, found, fmt.Sprintf("the registry did not answer, so chart %s is what it was on %s: %v", ref, known.Seen.Format(time.DateOnly), err))
	case err != nil:
		return nil, fmt.Errorf("%w; log in with `helm registry login` or `docker login`, or give a checkout of this version with --chart-dir", err)
	}
	if found && known.Manifest == digest {
		if loaded, err := r.fromCache(store, known, found, ""); err == nil {
			return loaded, nil
		} // else the file was lost or damaged: get it again
	}
	loaded, err := r.pull(ctx, store, ref)
	if err == nil && found && known.Manifest != loaded.Digest {
		loaded.Warning = fmt.Sprintf("chart %s was %s and is %s now: its tag has moved (P3)", ref, known.Manifest, loaded.Digest)
	}
	return loaded, err
}

func (r *Registry) fromCache(store cache, known tag, found bool, warning string) (*Loaded, error) {
	if !found {
		return nil, errors.New("it is not in the cache: run once without --offline")
	}
	archive, err := store.archive(known.Layer)
	if err != nil {
		return nil, err
	}
	chart, err := render.LoadArchive(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	return &Loaded{Chart: chart, Origin: "cache", Digest: known.Manifest, Warning: warning}, nil
}

// resolve asks for the digest of the manifest, which is one small request.
func (r *Registry) resolve(ctx context.Context, ref Reference) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	client, err := r.client(ctx)
	if err != nil {
		return "", err
	}
	// A tag has no plus sign; Helm writes an underscore, and does so itself only when it pulls.
	descriptor, err := client.Resolve(strings.ReplaceAll(ref.String(), "+", "_"))
	if err != nil {
		return "", fmt.Errorf("asking the registry: %w", err)
	}
	return descriptor.Digest.String(), nil
}

func (r *Registry) pull(ctx context.Context, store cache, ref Reference) (*Loaded, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*r.timeout())
	defer cancel()
	client, err := r.client(ctx)
	if err != nil {
		return nil, err
	}
	pulled, err := client.Pull(ref.String())
	if err != nil {
		return nil, fmt.Errorf("pulling it: %w", err)
	}
	chart, err := render.LoadArchive(bytes.NewReader(pulled.Chart.Data))
	if err != nil {
		return nil, err
	}
	loaded := &Loaded{Chart: chart, Origin: "registry", Digest: pulled.Manifest.Digest}
	err = store.keep(ref, tag{Manifest: pulled.Manifest.Digest, Layer: pulled.Chart.Digest}, pulled.Chart.Data)
	if err != nil { // the plan is right all the same
		loaded.Warning = fmt.Sprintf("chart %s could not be kept: %v", ref, err)
	}
	return loaded, nil
}

func (r *Registry) timeout() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return 20 * time.Second
}

// client makes a client whose requests end with the context: Helm's takes none.
func (r *Registry) client(ctx context.Context) (*registry.Client, error) {
	next := r.Transport
	if next == nil {
		next = registry.NewTransport(false)
	}
	options := []registry.ClientOption{registry.ClientOptHTTPClient(&http.Client{Transport: bound{ctx, tooltime.Transport("registry", next)}})}
	if r.PlainHTTP {
		options = append(options, registry.ClientOptPlainHTTP())
	}
	client, err := registry.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("making a registry client: %w", err)
	}
	return client, nil
}

// bound sends requests under a context of its own.
type bound struct {
	ctx  context.Context //nolint:containedctx // the client lives as long as one request
	next http.RoundTripper
}

func (b bound) RoundTrip(request *http.Request) (*http.Response, error) {
	return b.next.RoundTrip(request.WithContext(b.ctx))
}
