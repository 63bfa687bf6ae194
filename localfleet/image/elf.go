package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"strings"
)

// libraryDirs are where the dynamic linker looks without a cache or a
// configuration, in its order.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib", "usr/lib"}

// reach returns the part of t that the given paths need: what is at or below
// them, what their links point to, and the shared libraries of their programs.
func (t tree) reach(paths ...string) (tree, error) {
	out := tree{}
	for _, p := range paths {
		found := false
		for name := range t {
			if name == p || strings.HasPrefix(name, p+"/") {
				found = true
				if err := t.take(out, name); err != nil {
					return nil, err
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("/%s is not in the packages", p)
		}
	}
	return out, nil
}

// take copies name and everything that it leads to into out.
func (t tree) take(out tree, name string) error {
	if _, ok := out[name]; ok {
		return nil
	}
	// A link in a directory of the path must come along, or the path does not
	// exist in out.
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		n, ok := t[dir]
		if !ok {
			continue
		}
		out[dir] = n
		if n.kind == tar.TypeSymlink {
			if real, ok := t.resolve(dir); ok {
				return t.take(out, real+strings.TrimPrefix(name, dir))
			}
			return nil
		}
	}
	n, ok := t[name]
	if !ok {
		return nil
	}
	out[name] = n
	switch n.kind {
	case tar.TypeSymlink:
		return t.takeTarget(out, name, n)
	case tar.TypeReg:
		if n.mode&0o111 != 0 || strings.Contains(path.Base(name), ".so") {
			return t.takeLibraries(out, name)
		}
	}
	return nil
}

// takeTarget follows a link one step, and takes all of a directory.
func (t tree) takeTarget(out tree, name string, n node) error {
	target := n.link
	if !path.IsAbs(target) {
		target = path.Join("/", path.Dir(name), target)
	}
	target = strings.TrimPrefix(path.Clean(target), "/")
	if err := t.take(out, target); err != nil {
		return err
	}
	resolved, ok := t.resolve(target)
	if !ok {
		return nil
	}
	for below := range t {
		if below == resolved || strings.HasPrefix(below, resolved+"/") {
			if err := t.take(out, below); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeLibraries takes what the dynamic linker will load for a program.
func (t tree) takeLibraries(out tree, name string) error {
	content, err := t.read(name)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		// A script, whose interpreter is the caller's to name.
		return nil
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interpreter := make([]byte, p.Filesz)
		if _, err := p.ReadAt(interpreter, 0); err != nil {
			return fmt.Errorf("reading the interpreter of /%s: %w", name, err)
		}
		if err := t.take(out, strings.Trim(string(interpreter), "/\x00")); err != nil {
			return err
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading the libraries of /%s: %w", name, err)
	}
	for _, library := range libraries {
		if err := t.takeLibrary(out, library); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
	return nil
}

func (t tree) takeLibrary(out tree, library string) error {
	for _, dir := range libraryDirs {
		if resolved, ok := t.resolve(path.Join(dir, library)); ok {
			if err := t.take(out, resolved); err != nil {
				return err
			}
			return t.take(out, path.Join(path.Dir(resolved), library))
		}
	}
	return fmt.Errorf("the library %s is not in the packages", library)
}
