package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/omnivision/omnivision/conveyor/source"
)

// Changed are the files of an app that differ between a version that runs and a commit.
// Only those can change its image: the Dockerfile, what its .dockerignore lets through,
// and the list of apps. It is asked of Git and not of the push that came last: a forge
// drops a waiting job for a newer one, and with it what its push changed (P42).
//
// A version that no commit of the branch has may be of any commit: then known is false.
// Versions that were not counted along the branch may be in others, with their commits.
func (a App) Changed(ctx context.Context, dir, version, commit string, others map[string]string) (files []string, known bool, err error) {
	from, named := others[version]
	if !named {
		from, err = source.At(ctx, dir, version, commit)
	}
	if errors.Is(err, source.ErrNoSuchVersion) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	all, err := source.Changed(ctx, dir, from, commit)
	if err != nil {
		return nil, false, err
	}
	ignored, err := a.ignored(dir)
	if err != nil {
		return nil, false, err
	}
	for _, file := range all {
		made, err := a.madeOf(file, ignored)
		if err != nil {
			return nil, false, err
		}
		if made || file == AppsFile {
			files = append(files, file)
		}
	}
	return files, true, nil
}

// madeOf reports whether a file reaches the builder: the Dockerfile, and what its .dockerignore
// lets through.
func (a App) madeOf(file string, ignored *patternmatcher.PatternMatcher) (bool, error) {
	if file == a.Dockerfile || file == a.ignoreFile() {
		return true, nil
	}
	skip, err := ignored.MatchesOrParentMatches(file)
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", a.ignoreFile(), err)
	}
	return !skip, nil
}

func (a App) ignoreFile() string { return a.Dockerfile + ".dockerignore" }

// ignored is what BuildKit leaves out of the context; without the file, nothing.
func (a App) ignored(dir string) (*patternmatcher.PatternMatcher, error) {
	file, err := os.Open(filepath.Join(dir, filepath.FromSlash(a.ignoreFile())))
	if errors.Is(err, os.ErrNotExist) {
		return patternmatcher.New(nil)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // only read
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", a.ignoreFile(), err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", a.ignoreFile(), err)
	}
	return matcher, nil
}
