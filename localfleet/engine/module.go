package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/mod/modfile"
)

// Build is one engine at the versions of one source checkout.
type Build struct {
	Engine
	Version string
	// Key is the first twelve digits of the hash over all input of the build.
	Key      string
	Versions Versions
	// Source is the engine's module directory.
	Source string
}

// DirName is the name of the build's directory in the store.
func (b Build) DirName() string { return b.Name + "-" + b.Version + "-" + b.Key }

// resolve reads the engine's module below source.
func resolve(source string, e Engine) (Build, error) {
	dir := filepath.Join(source, "engines", e.Name)
	raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return Build{}, fmt.Errorf("reading engine %s: %s is missing; point --source at a checkout of OmniVision", e.Name, filepath.Join(dir, "go.mod"))
	}
	if err != nil {
		return Build{}, fmt.Errorf("reading engine %s: %w", e.Name, err)
	}
	mod, err := modfile.Parse(filepath.Join(dir, "go.mod"), raw, nil)
	if err != nil {
		return Build{}, fmt.Errorf("reading engine %s: %w", e.Name, err)
	}
	versions := Versions{}
	for _, r := range mod.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	for _, r := range mod.Replace {
		if r.New.Version != "" && (r.Old.Version == "" || r.Old.Version == versions[r.Old.Path]) {
			versions[r.Old.Path] = r.New.Version
		}
	}
	b := Build{Engine: e, Version: versions[e.Module], Versions: versions, Source: dir}
	if e.Release != nil {
		b.Version = e.Release(b.Version)
	}
	if b.Version == "" {
		return Build{}, fmt.Errorf("reading engine %s: %s does not require %s", e.Name, filepath.Join(dir, "go.mod"), e.Module)
	}
	if b.Key, err = key(b); err != nil {
		return Build{}, fmt.Errorf("reading engine %s: %w", e.Name, err)
	}
	return b, nil
}

// key hashes everything that decides what the programs are.
//
// The Go version goes in as it is demanded (the toolchain by name, or the go
// line that go.mod holds), not as it happens to be installed: a machine without
// Go must come to the same key as the one that packed the engines for it. Which
// Go it was is in the manifest.
func key(b Build) (string, error) {
	h := sha256.New()
	part := func(name string, content []byte) {
		fmt.Fprintf(h, "%s %d\n", name, len(content))
		h.Write(content)
	}
	settings, err := json.Marshal(struct {
		Toolchain, OS, Arch string
		CGO                 bool
		Flags               []string
		Steps               [][]Program
		Assets              []Asset
		Experiment          string `json:",omitempty"`
	}{b.Toolchain, runtime.GOOS, runtime.GOARCH, b.CGO, b.buildFlags(b.Versions), b.Steps, b.Assets, b.Experiment})
	if err != nil {
		return "", err
	}
	part("settings", settings)

	// WalkDir goes in lexical order, so the hash does not depend on the disk.
	err = filepath.WalkDir(b.Source, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(b.Source, file)
		if err != nil {
			return err
		}
		if rel != "go.mod" && rel != "go.sum" && (!strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go")) {
			return nil
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		part(filepath.ToSlash(rel), content)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("hashing %s: %w", b.Source, err)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}
