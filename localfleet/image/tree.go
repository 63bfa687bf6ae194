package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// epoch is the time of every file and image: when it was assembled is not part
// of what it is.
var epoch = time.Unix(0, 0).UTC()

// tree is the file system of a layer, by path without a leading slash.
type tree map[string]node

// node is one entry of a tree.
type node struct {
	// kind is tar.TypeReg, tar.TypeDir or tar.TypeSymlink.
	kind     byte
	mode     fs.FileMode
	uid, gid int
	link     string
	size     int64
	// id stands for the content when trees are compared, so that a large file
	// need not be read for it.
	id   string
	open func() (io.ReadCloser, error)
	// xattrs are extended attributes, by name.
	xattrs map[string]string
}

func (t tree) dir(name string, mode fs.FileMode, uid, gid int) {
	t[name] = node{kind: tar.TypeDir, mode: mode, uid: uid, gid: gid}
}

func (t tree) file(name, content string, mode fs.FileMode) {
	t.bytes(name, []byte(content), mode)
}

func (t tree) bytes(name string, content []byte, mode fs.FileMode) {
	sum := sha256.Sum256(content)
	t[name] = node{kind: tar.TypeReg, mode: mode, size: int64(len(content)), id: hex.EncodeToString(sum[:]), open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}}
}

// host adds a file of this machine.
func (t tree) host(name, source string, mode fs.FileMode) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	t[name] = node{
		kind: tar.TypeReg, mode: mode, size: info.Size(),
		id:   fmt.Sprintf("%s %d %d", source, info.Size(), info.ModTime().UnixNano()),
		open: func() (io.ReadCloser, error) { return os.Open(source) },
	}
	return nil
}

func (t tree) symlink(name, target string) {
	t[name] = node{kind: tar.TypeSymlink, mode: 0o777, link: target}
}

// read returns the content of a file, links followed.
func (t tree) read(name string) ([]byte, error) {
	resolved, ok := t.resolve(name)
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	r, err := t[resolved].open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// maxLinks is where following links is given up, as the kernel does.
const maxLinks = 40

// resolve follows links in every part of name to a file or directory of t.
func (t tree) resolve(name string) (string, bool) {
	rest := strings.Split(path.Clean(name), "/")
	at := ""
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		n, ok := t[next]
		if ok && n.kind == tar.TypeSymlink {
			if links++; links > maxLinks {
				return "", false
			}
			target := n.link
			if !path.IsAbs(target) {
				target = path.Join("/", at, target)
			}
			rest = append(strings.Split(strings.TrimPrefix(path.Clean(target), "/"), "/"), rest...)
			at = ""
			continue
		}
		if !ok && !t.implied(next) {
			return "", false
		}
		at = next
	}
	return at, true
}

// implied tells whether name is a directory for which there is no entry.
func (t tree) implied(name string) bool {
	for p := range t {
		if strings.HasPrefix(p, name+"/") {
			return true
		}
	}
	return false
}

// remove drops everything for which drop answers true.
func (t tree) remove(drop func(name string) bool) {
	maps.DeleteFunc(t, func(name string, _ node) bool { return drop(name) })
}

// write writes t as a tar. Directories that a path implies are written before
// it, so that no unpacker has to guess their mode.
func (t tree) write(w io.Writer) error {
	all := maps.Clone(t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all.dir(dir, 0o755, 0, 0)
			}
		}
	}
	tw := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := writeNode(tw, name, all[name]); err != nil {
			return fmt.Errorf("writing /%s: %w", name, err)
		}
	}
	return tw.Close()
}

func writeNode(tw *tar.Writer, name string, n node) error {
	header := &tar.Header{
		Typeflag: n.kind, Name: name, Linkname: n.link, Size: n.size,
		Mode: unixMode(n.mode), Uid: n.uid, Gid: n.gid, ModTime: epoch, Format: tar.FormatPAX,
	}
	if n.kind == tar.TypeDir {
		header.Name += "/"
	}
	for attr, value := range n.xattrs {
		if header.PAXRecords == nil {
			header.PAXRecords = map[string]string{}
		}
		header.PAXRecords["SCHILY.xattr."+attr] = value
	}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	if n.kind != tar.TypeReg {
		return nil
	}
	r, err := n.open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(tw, r)
	return err
}

// identity hashes what t is.
func (t tree) identity(w io.Writer) {
	for _, name := range slices.Sorted(maps.Keys(t)) {
		n := t[name]
		fmt.Fprintf(w, "%q %c %o %d %d %q %d %q %q\n", name, n.kind, unixMode(n.mode), n.uid, n.gid, n.link, n.size, n.id, fmt.Sprint(n.xattrs))
	}
}

// unixMode keeps the bits that fs.FileMode has elsewhere.
func unixMode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	if m&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if m&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	return bits
}
