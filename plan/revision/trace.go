package revision

import (
	"io/fs"
	"slices"
	"sync"
)

// Trace is a tree that remembers what was asked of it, also in vain. Whoever read through
// it would have got the same from every tree in which all those answers are the same:
// that is how unchanged inputs are told without rendering them twice.
type Trace struct {
	tree *Tree

	mu    sync.Mutex
	asked map[string]question
}

type question uint8

const (
	looked question = 1 << iota // whether it is there, and what it is
	read                        // what it holds
	listed                      // which entries it has
)

// Trace begins to remember.
func (t *Tree) Trace() *Trace { return &Trace{tree: t, asked: map[string]question{}} }

func (t *Trace) note(name string, q question) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[name] |= q
}

// Same says whether the other tree would have given the same answers.
func (t *Trace) Same(other *Tree) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, q := range t.asked {
		a, b := t.tree.nodes[name], other.nodes[name]
		switch {
		case a == nil || b == nil:
			if a != b {
				return false
			}
		case a.mode != b.mode:
			return false
		case q&read != 0 && !same(a, b):
			return false
		case q&listed != 0 && !slices.EqualFunc(a.entries, b.entries, sameEntry):
			return false
		}
	}
	return true
}

func sameEntry(a, b fs.DirEntry) bool { return a.Name() == b.Name() && a.Type() == b.Type() }

// Open implements fs.FS.
func (t *Trace) Open(name string) (fs.File, error) {
	t.note(name, read|listed)
	return t.tree.Open(name)
}

// ReadFile implements fs.ReadFileFS.
func (t *Trace) ReadFile(name string) ([]byte, error) {
	t.note(name, read)
	return t.tree.ReadFile(name)
}

// Stat implements fs.StatFS.
func (t *Trace) Stat(name string) (fs.FileInfo, error) {
	t.note(name, looked)
	return t.tree.Stat(name)
}

// ReadDir implements fs.ReadDirFS.
func (t *Trace) ReadDir(name string) ([]fs.DirEntry, error) {
	t.note(name, listed)
	return t.tree.ReadDir(name)
}
