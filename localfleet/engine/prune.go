package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Prune removes the engines that the source checkout does not ask for, and what
// killed builds of them left, and returns the names of what it removed. Engines
// that another process is building, and files that are not of this catalogue,
// are left alone.
func (s *Store) Prune(ctx context.Context) ([]string, error) {
	builds, err := s.Resolve()
	if err != nil {
		return nil, err
	}
	wanted := func(name string) bool {
		return slices.ContainsFunc(builds, func(b Build) bool { return b.DirName() == name })
	}
	var removed []string
	for _, parent := range []string{s.enginesDir(), filepath.Join(s.enginesDir(), partialDir)} {
		entries, err := os.ReadDir(parent)
		if err != nil && !os.IsNotExist(err) {
			return removed, fmt.Errorf("pruning the store of engines: %w", err)
		}
		for _, entry := range entries {
			name := entry.Name()
			if ctx.Err() != nil {
				return removed, context.Cause(ctx)
			}
			if wanted(name) || !directoryName.MatchString(name) || !s.names(name) {
				continue
			}
			gone, err := s.pruneOne(name, filepath.Join(parent, name))
			if err != nil {
				return removed, fmt.Errorf("pruning the store of engines: %w", err)
			}
			if gone {
				removed = append(removed, name)
			}
		}
	}
	return removed, nil
}

// names tells whether a directory is of an engine of the catalogue.
func (s *Store) names(dir string) bool {
	return slices.ContainsFunc(s.catalogue(), func(e Engine) bool { return strings.HasPrefix(dir, e.Name+"-v") })
}

func (s *Store) pruneOne(name, path string) (bool, error) {
	l, err := tryAcquire(s.lockPath(name), syscall.LOCK_EX)
	if err != nil || l == nil {
		return false, err
	}
	defer l.release()
	return true, removeReadOnly(path)
}
