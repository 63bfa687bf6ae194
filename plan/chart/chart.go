// Package chart gets a chart at the version that a cluster pins: from the OCI registry
// that the cluster itself asks, through a cache on disk, or from a checkout that has just
// that version.
package chart

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/omnivision/omnivision/plan/render"
)

// Reference names a version of a chart as an Application does.
type Reference struct {
	Registry string // without scheme
	Name     string
	Version  string
}

func (r Reference) String() string { return r.Registry + "/" + r.Name + ":" + r.Version }

// Loaded is a chart and where it came from.
type Loaded struct {
	*render.Chart
	// Origin is for people, such as "registry" or the directory of a checkout.
	Origin string
	// Digest of the manifest in the registry; empty for a checkout.
	Digest string
	// Warning is what the reader of a plan should know, such as that a tag has moved.
	Warning string
}

// ErrOtherVersion says that a source has the chart in other versions only.
var ErrOtherVersion = errors.New("another version")

// Source gets charts.
type Source interface {
	Chart(ctx context.Context, ref Reference) (*Loaded, error)
}

// First asks sources in their order until one has the version.
type First []Source

// Chart implements Source.
func (f First) Chart(ctx context.Context, ref Reference) (*Loaded, error) {
	for _, source := range f {
		loaded, err := source.Chart(ctx, ref)
		if err == nil || !errors.Is(err, ErrOtherVersion) {
			return loaded, err
		}
	}
	return nil, fmt.Errorf("getting chart %s: no source of charts has it: %w", ref, ErrOtherVersion)
}

// Checkout is a directory that holds a chart, in one version.
type Checkout struct {
	dir  string
	load func() (*render.Chart, error)
}

// NewCheckout names the directory; it is read when it is first needed.
func NewCheckout(dir string) *Checkout {
	return &Checkout{dir: dir, load: sync.OnceValues(func() (*render.Chart, error) { return render.Load(dir) })}
}

// Chart implements Source.
func (c *Checkout) Chart(_ context.Context, ref Reference) (*Loaded, error) {
	chart, err := c.load()
	if err != nil {
		return nil, err
	}
	if chart.Name() != ref.Name || chart.Version() != ref.Version {
		return nil, fmt.Errorf("%s has %s %s, not %s %s: %w", c.dir, chart.Name(), chart.Version(), ref.Name, ref.Version, ErrOtherVersion)
	}
	return &Loaded{Chart: chart, Origin: c.dir}, nil
}

// Once loads each version once, however many clusters ask for it, and at the same time.
type Once struct {
	source Source
	mu     sync.Mutex
	loads  map[Reference]func() (*Loaded, error)
}

// NewOnce wraps a source.
func NewOnce(source Source) *Once {
	return &Once{source: source, loads: map[Reference]func() (*Loaded, error){}}
}

// Chart implements Source. The first caller's context counts for all.
func (o *Once) Chart(ctx context.Context, ref Reference) (*Loaded, error) {
	o.mu.Lock()
	load := o.loads[ref]
	if load == nil {
		load = sync.OnceValues(func() (*Loaded, error) { return o.source.Chart(ctx, ref) })
		o.loads[ref] = load
	}
	o.mu.Unlock()
	return load()
}
