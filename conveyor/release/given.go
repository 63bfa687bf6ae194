package release

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
)

// GivenBelt is the belt for an image that somebody else has built and pushed: it is
// scanned and signed as a release is, and proposed to nobody. That the image comes of
// r.Revision cannot be known here; whoever gives it answers for it.
func (r Release) GivenBelt(image build.Result, subject conveyor.Subject, store conveyor.Store, watcher conveyor.Watcher) conveyor.Belt {
	return conveyor.Belt{
		Subject: subject, Store: store, Watcher: watcher,
		Stages: []conveyor.Stage{
			{
				Name: Build,
				Check: func(ctx context.Context, _ conveyor.Results, raw json.RawMessage) error {
					return r.checkGiven(ctx, image, raw)
				},
				Run: func(ctx context.Context, _ conveyor.Results, _ func(string)) (any, error) {
					return Built{Result: image, Invocation: r.Invocation}, r.there(ctx, image)
				},
			},
			{Name: Scan, Check: r.checkScan, Run: r.scan},
			{Name: Sign, Check: r.checkSign, Run: r.sign},
		},
	}
}

// checkGiven reports whether the image is another than the one of an earlier run, or gone.
func (r Release) checkGiven(ctx context.Context, image build.Result, raw json.RawMessage) error {
	var have Built
	if err := json.Unmarshal(raw, &have); err != nil {
		return err
	}
	if have.Digest != image.Digest || !slices.Equal(have.Platforms, image.Platforms) {
		return fmt.Errorf("the image is %s now, and was %s", image.Digest, have.Digest)
	}
	return r.there(ctx, image)
}

// there looks for the image in every repository.
func (r Release) there(ctx context.Context, image build.Result) error {
	for _, repository := range r.Repositories {
		digest := repository.Digest(image.Digest)
		if _, err := remote.Head(digest, append(slices.Clone(r.Registry), remote.WithContext(ctx))...); err != nil {
			return fmt.Errorf("looking for %s: %w", digest, err)
		}
	}
	return nil
}

// CommitOf is the full commit of a source that may have changes, or no Git at all: evidence
// is kept by commit.
func CommitOf(described string) string {
	commit, _, _ := strings.Cut(described, "-")
	if len(commit) == 40 {
		return commit
	}
	return strings.Repeat("0", 40)
}
