package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// seed starts an empty Go cache with hard links to the user's own. This program
// was compiled there a moment ago, of much the same libraries at the same
// versions with the same toolchain, and what is in a Go cache is named for all
// that it was made of: what does not fit is never looked at. Removing the links
// later leaves the user's cache as it was.
func (s *Store) seed(ctx context.Context) error {
	if _, err := os.Stat(s.goCache()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := exec.CommandContext(ctx, s.goCommand(), "env", "GOCACHE").Output()
	if err != nil {
		return fmt.Errorf("asking go for its cache: %w", err)
	}
	users := strings.TrimSpace(string(out))
	if !filepath.IsAbs(users) { // "off"
		return nil
	}
	// Under another name until it is whole: a killed copy is not taken for a cache.
	partial := s.goCache() + ".seed"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := linkCache(users, partial); err != nil {
		// A cache on another file system, or none yet: the build starts from nothing.
		return os.RemoveAll(partial)
	}
	return os.Rename(partial, s.goCache())
}

// linkCache links the entries of a Go cache: two hexadecimal digits, then a
// file that ends in -a (what an action made) or -d (its content).
func linkCache(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir() && (rel == "." || len(rel) == 2):
			return os.MkdirAll(target, 0o755)
		case d.IsDir():
			return fs.SkipDir
		case !strings.HasSuffix(rel, "-a") && !strings.HasSuffix(rel, "-d"):
			return nil
		}
		err = os.Link(path, target)
		if errors.Is(err, fs.ErrNotExist) { // trimmed by a go command meanwhile
			return nil
		}
		if errors.Is(err, syscall.EXDEV) {
			return fmt.Errorf("%s is on another file system: %w", from, err)
		}
		return err
	})
}
