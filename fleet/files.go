package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// checkoutFiles shows kustomize a tree as a read-only file system with the tree at its
// root. It remembers what was read, and can show other content for a file.
type checkoutFiles struct {
	tree     fs.FS
	replaced map[string][]byte
	read     map[string]bool
}

var _ filesys.FileSystem = (*checkoutFiles)(nil)

// name is a path of kustomize's as one of the tree.
func (c *checkoutFiles) name(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

func (c *checkoutFiles) ReadFile(p string) ([]byte, error) {
	name := c.name(p)
	content, ok := c.replaced[name]
	if !ok {
		var err error
		if content, err = fs.ReadFile(c.tree, name); err != nil {
			return nil, err
		}
	}
	c.read[name] = true
	return content, nil
}

func (c *checkoutFiles) Open(p string) (filesys.File, error) {
	return nil, fmt.Errorf("opening %s: %w", p, errors.ErrUnsupported)
}

func (c *checkoutFiles) IsDir(p string) bool {
	info, err := fs.Stat(c.tree, c.name(p))
	return err == nil && info.IsDir()
}

func (c *checkoutFiles) Exists(p string) bool {
	_, err := fs.Stat(c.tree, c.name(p))
	return err == nil
}

func (c *checkoutFiles) ReadDir(p string) ([]string, error) {
	entries, err := fs.ReadDir(c.tree, c.name(p))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (c *checkoutFiles) CleanedAbs(p string) (filesys.ConfirmedDir, string, error) {
	name := c.name(p)
	info, err := fs.Stat(c.tree, name)
	if err != nil {
		return "", "", err
	}
	full := path.Join("/", name)
	if info.IsDir() {
		return filesys.ConfirmedDir(full), "", nil
	}
	return filesys.ConfirmedDir(path.Dir(full)), path.Base(full), nil
}

func (c *checkoutFiles) Glob(pattern string) ([]string, error) {
	matches, err := fs.Glob(c.tree, c.name(pattern))
	for i := range matches {
		matches[i] = path.Join("/", matches[i])
	}
	return matches, err
}

func (c *checkoutFiles) Walk(p string, walk filepath.WalkFunc) error {
	return fs.WalkDir(c.tree, c.name(p), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return walk(path.Join("/", name), nil, err)
		}
		info, err := d.Info()
		return walk(path.Join("/", name), info, err)
	})
}

// What follows would change the tree; kustomize does so only for remote resources, which
// a tree that is read at one revision must not have.

func (c *checkoutFiles) Create(p string) (filesys.File, error) { return nil, readOnly(p) }
func (c *checkoutFiles) Mkdir(p string) error                  { return readOnly(p) }
func (c *checkoutFiles) MkdirAll(p string) error               { return readOnly(p) }
func (c *checkoutFiles) RemoveAll(p string) error              { return readOnly(p) }
func (c *checkoutFiles) WriteFile(p string, _ []byte) error    { return readOnly(p) }

func readOnly(p string) error {
	return fmt.Errorf("changing %s: %w", p, errors.ErrUnsupported)
}
