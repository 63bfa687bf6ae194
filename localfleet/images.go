package localfleet

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet/gpu"
	"github.com/omnivision/omnivision/localfleet/image"
)

// madeImages are those that Up has made. Images of others and of this source are made and
// published by steps of their own: the latter are linked anew after each commit, and the
// clusters can start meanwhile.
type madeImages struct {
	mu       sync.Mutex
	others   []*image.Image
	own      []*image.Image
	releases map[string]fleet.Release // of this source's, by image repository
	digests  map[string]string        // by production reference
}

// imageReferences lists every image that the clusters run, by its production
// reference.
func (f *Fleet) imageReferences(tag string) ([]string, error) {
	recipes, err := image.Catalogue(f.Source)
	if err != nil {
		return nil, err
	}
	var references []string
	for _, recipe := range recipes {
		if ref, err := name.ParseReference(recipe.Reference); err == nil && strings.HasSuffix(recipe.Reference, ":"+ref.Identifier()) {
			references = append(references, recipe.Reference)
		}
	}
	references = append(references, gpu.Image+":"+tag)
	components, err := f.components()
	if err != nil {
		return nil, err
	}
	for _, component := range components {
		references = append(references, component.Name+":"+tag)
	}
	for _, cluster := range f.Tree.Clusters {
		for _, app := range f.Tree.Apps {
			references = append(references, cluster.ImageRegistry+"/"+app.Repository+":"+tag)
		}
	}
	return references, nil
}

func (f *Fleet) imageBuilder(report func(string)) *image.Builder {
	return &image.Builder{
		Cache: f.CacheDir, Source: f.Source, Binary: f.program, Asset: f.Store.Asset, Offline: f.Offline,
		Version: f.version.Tag, Commit: f.version.Commit, Report: report,
	}
}

// images makes every image of others, pulled where upstream can be reached, assembled where not.
func (f *Fleet) images(ctx context.Context, report func(string)) (err error) {
	f.made.others, err = f.makeImages(ctx, false, report)
	return err
}

// ownImages makes every image of this source.
func (f *Fleet) ownImages(ctx context.Context, report func(string)) (err error) {
	f.made.own, err = f.makeImages(ctx, true, report)
	return err
}

func (f *Fleet) makeImages(ctx context.Context, own bool, report func(string)) ([]*image.Image, error) {
	builder, tag := f.imageBuilder(report), f.version.Tag
	all, err := f.imageReferences(tag)
	if err != nil {
		return nil, err
	}
	var wanted []string
	for _, reference := range all {
		if image.Own(strings.TrimSuffix(reference, ":"+tag)) == own {
			wanted = append(wanted, reference)
		}
	}
	if err := builder.Link(ctx, wanted...); err != nil {
		return nil, err
	}
	made := make([]*image.Image, len(wanted))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i, reference := range wanted {
		group.Go(func() (err error) {
			if made[i], err = builder.Obtain(ctx, reference); err == nil {
				report(reference)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return made, f.record(tag, made)
}

// record notes the digest of each image. One of this project has the same in every registry.
func (f *Fleet) record(tag string, images []*image.Image) error {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	if f.made.digests == nil {
		f.made.releases, f.made.digests = map[string]fleet.Release{}, map[string]string{}
	}
	for _, made := range images {
		if made.Substitute != "" {
			f.substitute("image "+made.Reference, made.Substitute)
		}
		digest, err := made.Digest()
		if err != nil {
			return fmt.Errorf("digest of %s: %w", made.Reference, err)
		}
		f.made.digests[made.Reference] = digest.String()
		if repository, ok := strings.CutSuffix(made.Reference, ":"+tag); ok && image.Own(repository) {
			f.made.releases[path.Base(repository)] = fleet.Release{Tag: tag, Digest: digest.String()}
		}
	}
	return nil
}

// pushImages brings the images of others to the registry under their production names.
func (f *Fleet) pushImages(ctx context.Context, report func(string)) error {
	return publish(ctx, f.made.others, report)
}

func (f *Fleet) pushOwnImages(ctx context.Context, report func(string)) error {
	return publish(ctx, f.made.own, report)
}

func publish(ctx context.Context, images []*image.Image, report func(string)) error {
	transport := hubTransport()
	defer transport.CloseIdleConnections()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(3)
	for _, made := range images {
		group.Go(func() error {
			pushed, err := image.Push(ctx, made.Image, made.Reference, "http://"+registryAddress, transport)
			if err == nil && !pushed.Skipped {
				report(made.Reference)
			}
			return err
		})
	}
	return group.Wait()
}
