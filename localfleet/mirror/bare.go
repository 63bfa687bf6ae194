package mirror

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// mainBranch is what HEAD points at.
const mainBranch = plumbing.ReferenceName("refs/heads/main")

// signature is the author of every mirrored commit: the same files give the same hash.
var signature = object.Signature{
	Name:  "OmniVision mirror",
	Email: "mirror@omnivision.invalid",
	When:  time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
}

// bare is a repository that is being written.
type bare struct {
	store *filesystem.Storage
}

func newBare(dir string) (*bare, error) {
	store := filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRUDefault())
	if _, err := git.InitWithOptions(store, nil, git.InitOptions{DefaultBranch: mainBranch}); err != nil {
		return nil, fmt.Errorf("making a bare repository in %s: %w", dir, err)
	}
	return &bare{store}, nil
}

// commit adds a revision: a commit without parents, its tag, and main at the last of them.
func (b *bare) commit(checkout string, rev Revision, message string) error {
	files, err := collect(checkout, rev.Paths)
	if err != nil {
		return err
	}
	root, err := b.tree(os.DirFS(checkout), files)
	if err != nil {
		return err
	}
	commit := &object.Commit{Author: signature, Committer: signature, Message: message, TreeHash: root}
	hash, err := b.write(commit)
	if err != nil {
		return err
	}
	for _, name := range []plumbing.ReferenceName{plumbing.NewTagReferenceName(rev.Tag), mainBranch} {
		if err := b.store.SetReference(plumbing.NewHashReference(name, hash)); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	return nil
}

// collect lists the files below the paths, and the licence, which goes with any copy.
func collect(checkout string, paths []string) ([]string, error) {
	tree := os.DirFS(checkout)
	var files []string
	for _, p := range paths {
		err := fs.WalkDir(tree, p, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, name)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", p, err)
		}
	}
	top, err := fs.ReadDir(tree, ".")
	if err != nil {
		return nil, err
	}
	for _, e := range top {
		name := strings.ToUpper(e.Name())
		if e.Type().IsRegular() && (strings.HasPrefix(name, "LICENSE") || strings.HasPrefix(name, "NOTICE") || strings.HasPrefix(name, "COPYING")) {
			files = append(files, e.Name())
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// tree writes a directory of the given files, whose names are relative to the file system.
// All are plain files: module archives do not keep the executable bit, and manifests need
// none.
func (b *bare) tree(files fs.FS, names []string) (plumbing.Hash, error) {
	below := map[string][]string{}
	t := &object.Tree{}
	for _, name := range names {
		first, rest, nested := strings.Cut(name, "/")
		if nested {
			below[first] = append(below[first], rest)
			continue
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		hash, err := b.blob(content)
		if err != nil {
			return plumbing.ZeroHash, fmt.Errorf("writing %s: %w", name, err)
		}
		t.Entries = append(t.Entries, object.TreeEntry{Name: name, Mode: filemode.Regular, Hash: hash})
	}
	for dir, names := range below {
		sub, err := fs.Sub(files, dir)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		hash, err := b.tree(sub, names)
		if err != nil {
			return plumbing.ZeroHash, fmt.Errorf("%s: %w", path.Base(dir), err)
		}
		t.Entries = append(t.Entries, object.TreeEntry{Name: dir, Mode: filemode.Dir, Hash: hash})
	}
	// Git orders a directory as if its name ended in a slash.
	key := func(e object.TreeEntry) string {
		if e.Mode == filemode.Dir {
			return e.Name + "/"
		}
		return e.Name
	}
	slices.SortFunc(t.Entries, func(a, c object.TreeEntry) int { return strings.Compare(key(a), key(c)) })
	return b.write(t)
}

func (b *bare) blob(content []byte) (plumbing.Hash, error) {
	o := b.store.NewEncodedObject()
	o.SetType(plumbing.BlobObject)
	w, err := o.Writer()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if _, err := w.Write(content); err != nil {
		return plumbing.ZeroHash, err
	}
	if err := w.Close(); err != nil {
		return plumbing.ZeroHash, err
	}
	return b.store.SetEncodedObject(o)
}

func (b *bare) write(content interface {
	Encode(plumbing.EncodedObject) error
}) (plumbing.Hash, error) {
	o := b.store.NewEncodedObject()
	if err := content.Encode(o); err != nil {
		return plumbing.ZeroHash, err
	}
	return b.store.SetEncodedObject(o)
}
