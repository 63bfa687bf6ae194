package revision

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// Tree is a directory at one revision. It never changes and may be read by several
// goroutines at once.
type Tree struct {
	Name   string // for people: the revision as it was asked for
	Commit string // empty for the working tree

	nodes map[string]*node
}

// file is what Git knows of one path.
type file struct {
	name string
	mode fs.FileMode // the type alone
	id   string
	size int64
	data []byte
}

func (f *file) readable() bool { return f.mode == 0 && f.size <= MaxFile }

// node is a file, or a directory with its entries in order.
type node struct {
	file
	entries []fs.DirEntry
}

func newTree(files []*file) *Tree {
	t := &Tree{nodes: map[string]*node{".": {file: file{name: ".", mode: fs.ModeDir}}}}
	for _, f := range files {
		n := &node{file: *f}
		t.nodes[f.name] = n
		for child := n; ; {
			dir := path.Dir(child.name)
			parent, known := t.nodes[dir]
			if !known {
				parent = &node{file: file{name: dir, mode: fs.ModeDir}}
				t.nodes[dir] = parent
			}
			parent.entries = append(parent.entries, fs.FileInfoToDirEntry(info{child}))
			if known {
				break
			}
			child = parent
		}
	}
	for _, n := range t.nodes {
		slices.SortFunc(n.entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	}
	return t
}

// Only is the tree without the files that keep refuses.
func (t *Tree) Only(keep func(name string) bool) *Tree {
	var files []*file
	for name, n := range t.nodes {
		if !n.mode.IsDir() && keep(name) {
			files = append(files, &n.file)
		}
	}
	kept := newTree(files)
	kept.Name, kept.Commit = t.Name, t.Commit
	return kept
}

// Changed lists the files that are not the same in both trees, in order.
func Changed(a, b *Tree) []string {
	var names []string
	for name, n := range a.nodes {
		if !n.mode.IsDir() && !same(n, b.nodes[name]) {
			names = append(names, name)
		}
	}
	for name, n := range b.nodes {
		if other := a.nodes[name]; !n.mode.IsDir() && (other == nil || other.mode.IsDir()) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// same compares type and content of two nodes, of which each may be missing.
func same(a, b *node) bool {
	switch {
	case a == nil || b == nil:
		return a == b
	case a.mode != b.mode:
		return false
	case a.id != "" && a.id == b.id:
		return true
	case a.id != "" && b.id != "" && !a.readable():
		return false
	}
	return a.size == b.size && bytes.Equal(a.data, b.data)
}

func (t *Tree) find(op, name string) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	n := t.nodes[name]
	if n == nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return n, nil
}

// ReadFile implements fs.ReadFileFS.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	n, err := t.find("read", name)
	if err == nil {
		err = n.refuse("read")
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(n.data), nil
}

func (n *node) refuse(op string) error {
	var reason error
	switch {
	case n.mode.IsDir():
		reason = fmt.Errorf("is a directory: %w", fs.ErrInvalid)
	case n.mode != 0:
		reason = fmt.Errorf("is no regular file: %w", fs.ErrInvalid)
	case n.size > MaxFile:
		reason = fmt.Errorf("is larger than %d MiB: %w", MaxFile>>20, fs.ErrInvalid)
	default:
		return nil
	}
	return &fs.PathError{Op: op, Path: n.name, Err: reason}
}

// Stat implements fs.StatFS.
func (t *Tree) Stat(name string) (fs.FileInfo, error) {
	n, err := t.find("stat", name)
	if err != nil {
		return nil, err
	}
	return info{n}, nil
}

// ReadDir implements fs.ReadDirFS.
func (t *Tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.mode.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fmt.Errorf("is no directory: %w", fs.ErrInvalid)}
	}
	return slices.Clone(n.entries), nil
}

// Open implements fs.FS.
func (t *Tree) Open(name string) (fs.File, error) {
	n, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	if n.mode.IsDir() {
		return &openDir{node: n}, nil
	}
	if err := n.refuse("open"); err != nil {
		return nil, err
	}
	return &openFile{node: n, Reader: bytes.NewReader(n.data)}, nil
}

type info struct{ n *node }

func (i info) Name() string       { return path.Base(i.n.name) }
func (i info) Size() int64        { return i.n.size }
func (i info) ModTime() time.Time { return time.Time{} } // a commit's files have none
func (i info) IsDir() bool        { return i.n.mode.IsDir() }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.n.mode.IsDir() {
		return i.n.mode | 0o555
	}
	return i.n.mode | 0o444
}

type openFile struct {
	*bytes.Reader
	node *node
}

func (f *openFile) Stat() (fs.FileInfo, error) { return info{f.node}, nil }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	node *node
	read int
}

func (d *openDir) Stat() (fs.FileInfo, error) { return info{d.node}, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error)   { return 0, d.node.refuse("read") }

// ReadDir implements fs.ReadDirFile.
func (d *openDir) ReadDir(count int) ([]fs.DirEntry, error) {
	rest := d.node.entries[d.read:]
	if count <= 0 {
		d.read = len(d.node.entries)
		return slices.Clone(rest), nil
	}
	if len(rest) == 0 {
		return nil, io.EOF
	}
	rest = rest[:min(count, len(rest))]
	d.read += len(rest)
	return slices.Clone(rest), nil
}
