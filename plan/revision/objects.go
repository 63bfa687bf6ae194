package revision

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Tree reads the directory as it is at a commit. Name is for people.
func (r *Repository) Tree(ctx context.Context, commit, name string) (*Tree, error) {
	out, err := r.git(ctx, nil, "ls-tree", "-r", "-l", "-z", "--full-tree", commit+":"+r.prefix)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("reading %s at %s: there is no such directory in that revision (%w)", cmp.Or(r.prefix, "the tree"), name, err)
	}
	files, err := parseListing(out)
	if err == nil {
		err = r.load(ctx, files)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the tree at %s: %w", name, err)
	}
	t := newTree(files)
	t.Name, t.Commit = name, commit
	return t, nil
}

// parseListing reads `git ls-tree -r -l -z`: mode, type, object, size, a tab, the path.
func parseListing(out []byte) ([]*file, error) {
	var files []*file
	for line := range strings.SplitSeq(string(out), "\x00") {
		if line == "" {
			continue
		}
		meta, name, ok := strings.Cut(line, "\t")
		fields := strings.Fields(meta)
		if !ok || len(fields) != 4 || !fs.ValidPath(name) || name == "." {
			return nil, fmt.Errorf("git listed something unexpected: %q", line)
		}
		f := &file{name: name, id: fields[2]}
		switch fields[0] {
		case "100644", "100755", "100664":
			size, err := strconv.ParseInt(fields[3], 10, 64)
			if err != nil || size < 0 {
				return nil, fmt.Errorf("git listed %s with the size %q", name, fields[3])
			}
			f.size = size
		case "120000":
			f.mode = fs.ModeSymlink
		default: // a submodule
			f.mode = fs.ModeIrregular
		}
		files = append(files, f)
	}
	return files, nil
}

// load fetches the content of files that no other tree has fetched, with one git
// process for all.
func (r *Repository) load(ctx context.Context, files []*file) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var wanted bytes.Buffer
	asked := map[string]bool{}
	for _, f := range files {
		if _, have := r.blobs[f.id]; !have && !asked[f.id] && f.readable() {
			asked[f.id] = true
			wanted.WriteString(f.id + "\n")
		}
	}
	if wanted.Len() > 0 {
		out, err := r.git(ctx, wanted.Bytes(), "cat-file", "--batch")
		if err != nil {
			return err
		}
		if err := parseBatch(out, r.blobs); err != nil {
			return err
		}
	}
	for _, f := range files {
		if !f.readable() {
			continue
		}
		content, ok := r.blobs[f.id]
		if !ok {
			return fmt.Errorf("git has no content for %s", f.name)
		}
		f.data = content
	}
	return nil
}

// parseBatch reads `git cat-file --batch`: object, type, size, a newline, the content,
// a newline.
func parseBatch(out []byte, into map[string][]byte) error {
	in := bufio.NewReader(bytes.NewReader(out))
	for {
		header, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) && header == "" {
			return nil
		}
		fields := strings.Fields(header)
		if err != nil || len(fields) != 3 || fields[1] != "blob" {
			return fmt.Errorf("git answered %q: the repository lacks an object, run `git fetch`", strings.TrimSpace(header))
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || size < 0 || size > int64(len(out)) {
			return fmt.Errorf("git answered %q", strings.TrimSpace(header))
		}
		content := make([]byte, size+1)
		if _, err := io.ReadFull(in, content); err != nil || content[size] != '\n' {
			return fmt.Errorf("git answered less than the %d bytes of object %s", size, fields[0])
		}
		into[fields[0]] = content[:size:size]
	}
}

// WorkingTreeName is what a working tree is called where a revision is named.
const WorkingTreeName = "the working tree"

// WorkingTree reads the directory as it lies on disk: what a commit of everything would
// hold. Files that Git ignores are not of it.
func (r *Repository) WorkingTree(ctx context.Context) (*Tree, error) {
	const name = WorkingTreeName
	out, err := r.git(ctx, nil, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer root.Close() //nolint:errcheck // only read from
	var files []*file
	seen := map[string]bool{}
	for path := range strings.SplitSeq(string(out), "\x00") {
		if path == "" || seen[path] || !fs.ValidPath(path) { // "dir/" is a repository of its own
			continue
		}
		seen[path] = true
		f, err := onDisk(root, path)
		if errors.Is(err, fs.ErrNotExist) { // deleted, and not yet staged
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		files = append(files, f)
	}
	t := newTree(files)
	t.Name = name
	return t, nil
}

func onDisk(root *os.Root, name string) (*file, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	f := &file{name: name, size: info.Size()}
	switch {
	case info.IsDir(): // a submodule
		f.mode = fs.ModeIrregular
	case !info.Mode().IsRegular():
		f.mode = info.Mode().Type()
	case f.readable():
		f.data, err = root.ReadFile(name)
		f.size = int64(len(f.data))
	}
	return f, err
}
