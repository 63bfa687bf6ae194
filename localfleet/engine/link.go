package engine

import (
	"fmt"
	"os"
	"path/filepath"
)

// LinkPrograms makes one folder with a link to every built program of this
// checkout's engines, for tests and people, and returns it. Programs of engines
// that are not built are left out.
func (s *Store) LinkPrograms() (string, error) {
	dir := filepath.Join(s.enginesDir(), "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	builds, err := s.Resolve()
	if err != nil {
		return "", err
	}
	for _, build := range builds {
		if _, err := s.Manifest(build); err != nil {
			continue
		}
		for _, program := range build.Programs() {
			target := filepath.Join("..", build.DirName(), program)
			if err := replaceLink(target, filepath.Join(dir, program)); err != nil {
				return "", fmt.Errorf("link %s: %w", program, err)
			}
		}
	}
	return dir, nil
}

// replaceLink leaves a link that is right alone: somebody may be running it.
func replaceLink(target, link string) error {
	if have, err := os.Readlink(link); err == nil && have == target {
		return nil
	}
	temporary := fmt.Sprintf("%s.%d", link, os.Getpid())
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, link)
}
