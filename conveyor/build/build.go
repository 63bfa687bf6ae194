// Package build makes an app's image by BuildKit and brings it to the registries.
//
// What is built is a commit, not a working tree, and nothing in the image says when or
// where it was built: its times are the commit's, its labels and annotations are made of
// the request. So the same commit has the same digest on every machine, and a build that
// is repeated ends in the image that is there. A tag that names another image already is
// never moved (P3).
//
// The index holds images and nothing else. BuildKit could put provenance and an SBOM
// into it, but those tell the time of the build, and with them no two builds would be
// equal; they are attached to the digest as signed attestations instead (package sign).
//
// The daemon pushes to the first repository by digest; the image is copied from there to
// the others, and tagged last. Until then nobody finds it by name.
package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Request is what to build.
type Request struct {
	Context    string // directory with the files of the commit
	Dockerfile string // in the context
	Title      string
	Source     string // URL of the source repository
	Commit     string
	Version    string // becomes the tag
	Time       time.Time
	Platforms  []string // linux/amd64
	// Args are further build arguments. VERSION, COMMIT and SOURCE_DATE_EPOCH are set.
	Args map[string]string
	// BaseImages replace base images that cannot be pulled: the image's name as in the
	// Dockerfile, its digest apart, and the directory of an OCI layout that holds one
	// image, or docker-image:// and the name of another image.
	BaseImages map[string]string
	// Repositories get the image, the first one from the daemon.
	Repositories []name.Repository
	// Cache is an image that keeps layers between builds on fresh machines; empty keeps none.
	Cache string
}

// Result is the image, the same for every build of the commit.
type Result struct {
	Digest       string     `json:"digest"` // of the index
	Tag          string     `json:"tag"`
	Repositories []string   `json:"repositories"`
	Platforms    []Platform `json:"platforms"`

	// Steps are how this build came to it. They are no part of what was built.
	Steps Steps `json:"-"`
}

// Platform is one image of the index.
type Platform struct {
	Platform string `json:"platform"`
	Digest   string `json:"digest"`
}

// ErrTagTaken says that a tag names another image already.
var ErrTagTaken = errors.New("the tag names another image already")

// Builder builds by a BuildKit daemon.
type Builder struct {
	Address string // of the daemon, such as unix:///run/buildkit/buildkitd.sock
	// Registry carries credentials and transport to the registries.
	Registry []remote.Option
	// Credentials are those that the daemon pulls and pushes with; nil means none.
	Credentials Credentials
}

// Build is the story: refuse what cannot be, build, look at what came, spread, name it.
func (b Builder) Build(ctx context.Context, r Request, report func(string)) (Result, error) {
	if err := r.check(); err != nil {
		return Result{}, err
	}
	digest, steps, err := b.solve(ctx, r, report)
	if err != nil {
		return Result{}, fmt.Errorf("building %s from %s: %w", r.Dockerfile, r.Commit, err)
	}
	index, err := b.index(ctx, r.Repositories[0].Digest(digest))
	if err != nil {
		return Result{}, fmt.Errorf("looking at what was built: %w", err)
	}
	platforms, err := platformsOf(index, r.Platforms)
	if err != nil {
		return Result{}, fmt.Errorf("looking at what was built, %s: %w", r.Repositories[0].Digest(digest), err)
	}
	// All tags are looked at before the first is written.
	for _, repository := range r.Repositories {
		if err := b.free(ctx, repository.Tag(r.Version), digest); err != nil {
			return Result{}, err
		}
	}
	for _, repository := range r.Repositories[1:] {
		report("copying to " + repository.String())
		if err := remote.WriteIndex(repository.Digest(digest), index, b.with(ctx)...); err != nil {
			return Result{}, fmt.Errorf("copying %s to %s: %w", digest, repository, err)
		}
	}
	result := Result{Digest: digest, Tag: r.Version, Platforms: platforms, Steps: steps}
	for _, repository := range r.Repositories {
		if err := remote.Tag(repository.Tag(r.Version), index, b.with(ctx)...); err != nil {
			return Result{}, fmt.Errorf("naming %s: %w", repository.Tag(r.Version), err)
		}
		result.Repositories = append(result.Repositories, repository.String())
	}
	return result, nil
}

// Check asks the registries whether an image that was built is still there and named.
func (b Builder) Check(ctx context.Context, repositories []name.Repository, have Result) error {
	names := make([]string, len(repositories))
	for i, repository := range repositories {
		names[i] = repository.String()
	}
	if !slices.Equal(names, have.Repositories) {
		return fmt.Errorf("it was built for %s", strings.Join(have.Repositories, ", "))
	}
	for _, repository := range repositories {
		tag := repository.Tag(have.Tag)
		found, err := remote.Head(tag, b.with(ctx)...)
		if err != nil {
			return fmt.Errorf("%s is not there: %w", tag, err)
		}
		if found.Digest.String() != have.Digest {
			return fmt.Errorf("%s is %s, not %s", tag, found.Digest, have.Digest)
		}
		for _, p := range have.Platforms {
			if _, err := remote.Head(repository.Digest(p.Digest), b.with(ctx)...); err != nil {
				return fmt.Errorf("the image for %s is not in %s: %w", p.Platform, repository, err)
			}
		}
	}
	return nil
}

func (b Builder) with(ctx context.Context) []remote.Option {
	return append(slices.Clone(b.Registry), remote.WithContext(ctx))
}

func (r Request) check() error {
	switch {
	case len(r.Repositories) == 0:
		return errors.New("building takes a repository to push to")
	case len(r.Platforms) == 0:
		return errors.New("building takes a platform such as linux/amd64")
	case r.Commit == "" || r.Version == "" || r.Time.IsZero():
		return errors.New("building takes commit, version and time of the source")
	}
	for _, key := range []string{"VERSION", "COMMIT", "SOURCE_DATE_EPOCH"} {
		if _, ok := r.Args[key]; ok {
			return fmt.Errorf("the build argument %s is the source's, and not to be given", key)
		}
	}
	return nil
}

// args are all build arguments.
func (r Request) args() map[string]string {
	args := map[string]string{"VERSION": r.Version, "COMMIT": r.Commit, "SOURCE_DATE_EPOCH": strconv.FormatInt(r.Time.Unix(), 10)}
	maps.Copy(args, r.Args)
	return args
}

// annotations say of the image what its labels say, where a registry shows it without
// pulling: https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md.
func (r Request) annotations() map[string]string {
	all := map[string]string{
		"org.opencontainers.image.title":    r.Title,
		"org.opencontainers.image.source":   r.Source,
		"org.opencontainers.image.revision": r.Commit,
		"org.opencontainers.image.version":  r.Version,
		"org.opencontainers.image.created":  r.Time.UTC().Format(time.RFC3339),
	}
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	return all
}

func (b Builder) index(ctx context.Context, ref name.Digest) (v1.ImageIndex, error) {
	desc, err := remote.Get(ref, b.with(ctx)...)
	if err != nil {
		return nil, err
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("%s is no index of several platforms: %w", ref, err)
	}
	return index, nil
}

// platformsOf lists the images of an index, which must be those that were asked for.
func platformsOf(index v1.ImageIndex, want []string) ([]Platform, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var (
		found []Platform
		have  []string
	)
	for _, m := range manifest.Manifests {
		if m.Platform == nil {
			return nil, fmt.Errorf("the index holds %s, which is for no platform", m.Digest)
		}
		found = append(found, Platform{Platform: m.Platform.String(), Digest: m.Digest.String()})
		have = append(have, m.Platform.String())
	}
	if !slices.Equal(slices.Sorted(slices.Values(have)), slices.Sorted(slices.Values(want))) {
		return nil, fmt.Errorf("the index is for %s, not for %s", strings.Join(have, ", "), strings.Join(want, ", "))
	}
	return found, nil
}

// free reports ErrTagTaken if the tag names another image.
func (b Builder) free(ctx context.Context, tag name.Tag, digest string) error {
	have, err := remote.Head(tag, b.with(ctx)...)
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return nil
	case err != nil:
		return fmt.Errorf("looking whether %s is free: %w", tag, err)
	case have.Digest.String() != digest:
		return fmt.Errorf("%w: %s is %s, and this commit builds %s; find out who pushed it, or build the next commit", ErrTagTaken, tag, have.Digest, digest)
	}
	return nil
}
