// Package tools gets the programs of others that the conveyor runs on a fresh machine,
// such as GitHub's: BuildKit's daemon and Trivy, each at one version.
//
// Nothing unpinned comes onto the machine. A program is the one in PATH if that has just
// the wanted version, or is downloaded and has the SHA-256 that this package was reviewed
// with, or is compiled from the modules whose checksums the source's go.sum has (P37).
package tools

import (
	"bytes"
	"context"
	"debug/buildinfo"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed tools.yaml
var pinned []byte

// File is where the versions and checksums are kept in the source.
const File = "conveyor/tools/tools.yaml"

// Tool is a program at one version.
type Tool struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"` // without v
	// Module is the Go module whose version is the program's.
	Module  string            `yaml:"module"`
	Package string            `yaml:"package"`
	Source  string            `yaml:"source"` // folder with the go.mod that pins it
	Stamps  map[string]string `yaml:"stamps"` // variables that tell the program its version
	Env     []string          `yaml:"env"`    // of the compiler
	// Archives are the release's, by platform such as linux/amd64.
	Archives map[string]Archive `yaml:"archives"`
}

// Archive is a release's archive (tar, gzip) with the program in it.
type Archive struct {
	URL    string `yaml:"url"`
	SHA256 string `yaml:"sha256"` // of the archive; empty forbids to download it
	Member string `yaml:"member"`
}

// Pinned are the tools of this version of the conveyor.
func Pinned() ([]Tool, error) { return Parse(pinned) }

var plainName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// Parse reads the file strictly.
func Parse(src []byte) ([]Tool, error) {
	var file struct {
		Tools []Tool `yaml:"tools"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("reading %s: %w", File, err)
	}
	for _, t := range file.Tools {
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("reading %s: tool %q: %w", File, t.Name, err)
		}
	}
	return file.Tools, nil
}

func (t Tool) check() error {
	if !plainName.MatchString(t.Name) || !plainName.MatchString(t.Version) {
		return fmt.Errorf("its name or its version %q is no plain name", t.Version)
	}
	for platform, a := range t.Archives {
		u, err := url.Parse(a.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("the archive for %s is at %q: give an https address", platform, a.URL)
		}
		if sum, err := hex.DecodeString(a.SHA256); err != nil || len(sum) != 0 && len(sum) != 32 {
			return fmt.Errorf("the checksum for %s, %q, is no SHA-256 in hexadecimal", platform, a.SHA256)
		}
		if !fs.ValidPath(a.Member) || a.Member == "." {
			return fmt.Errorf("the archive for %s has no member %q", platform, a.Member)
		}
	}
	return nil
}

// Sums says by which checksum the tool is known on a platform: that of the release's archive, or
// those in the go.sum of the folder below source that it is compiled in. Without either it is an
// error: such a tool does not come onto a machine.
func (t Tool) Sums(source fs.FS, platform string) (string, error) {
	if a := t.Archives[platform]; a.SHA256 != "" {
		return "sha256:" + a.SHA256, nil
	}
	file := path.Join(t.Source, "go.sum")
	sums, err := fs.ReadFile(source, file)
	if err != nil {
		return "", fmt.Errorf("%s for %s has no SHA-256 in %s, and no module to be compiled from: %w", t.Name, platform, File, err)
	}
	for line := range strings.Lines(string(sums)) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == t.Module && words[1] == "v"+t.Version {
			return words[2], nil
		}
	}
	return "", fmt.Errorf("%s for %s has no SHA-256 in %s, and %s has no checksum of %s v%s", t.Name, platform, File, file, t.Module, t.Version)
}

// Named finds tools by their names; without names it finds all.
func Named(all []Tool, names ...string) ([]Tool, error) {
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, t := range all {
		known = append(known, t.Name)
	}
	var found []Tool
	for _, name := range names {
		at := slices.Index(known, name)
		if at < 0 {
			return nil, fmt.Errorf("there is no tool %q: there are %s", name, strings.Join(known, ", "))
		}
		found = append(found, all[at])
	}
	return found, nil
}

// Getter gets tools onto this machine.
type Getter struct {
	Cache    string // folder that keeps what was downloaded or compiled
	Source   string // checkout of the source; empty compiles nothing
	Platform string // such as linux/amd64
	HTTP     *http.Client
	Report   func(string) // of what takes long
}

// Get returns the program's file.
func (g Getter) Get(ctx context.Context, t Tool) (string, error) {
	if path, err := exec.LookPath(t.Name); err == nil && t.is(ctx, path) {
		return path, nil
	}
	archive := t.Archives[g.Platform]
	folder := filepath.Join(g.Cache, t.Name+"-"+t.Version+"-"+origin(archive))
	path := filepath.Join(folder, t.Name)
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		return path, nil // it came here whole: see place
	}
	fetch := func(into string) error { return g.download(ctx, archive, into) }
	if archive.SHA256 == "" {
		if err := g.buildable(t, archive); err != nil {
			return "", err
		}
		fetch = func(into string) error { return g.compile(ctx, t, into) }
	}
	if err := place(folder, t.Name, fetch); err != nil {
		return "", fmt.Errorf("getting %s %s: %w", t.Name, t.Version, err)
	}
	if !t.is(ctx, path) {
		return "", errors.Join(fmt.Errorf("getting %s: what %s has is not version %s: correct %s", t.Name, g.from(t, archive), t.Version, File), os.RemoveAll(folder))
	}
	return path, nil
}

// origin tells folders of one version apart by where their program is from.
func origin(a Archive) string {
	if a.SHA256 == "" {
		return "compiled"
	}
	return a.SHA256[:12]
}

func (g Getter) from(t Tool, a Archive) string {
	if a.SHA256 == "" {
		return t.Source
	}
	return a.URL
}

// buildable says why a tool without a checksum cannot be had either way.
func (g Getter) buildable(t Tool, a Archive) error {
	if g.Source != "" && t.Source != "" {
		if _, err := os.Stat(filepath.Join(g.Source, t.Source, "go.mod")); err == nil {
			return nil
		}
	}
	where := a.URL
	if where == "" {
		where = "a release for " + g.Platform
	}
	return fmt.Errorf("no checksum is pinned for %s, so %s %s is not downloaded: fill in the SHA-256 that the project signed for it in %s (docs/workflows.md, Tools), name a checkout of the source with --source to compile it from, or install it in PATH", where, t.Name, t.Version, File)
}

// place makes the folder with the program in it appear at once: a kill leaves none, and
// of two that do it at a time one wins.
func place(folder, name string, fetch func(into string) error) error {
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(folder), ".unfinished-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // gone if all went well
	done := filepath.Join(work, "done")
	if err := os.Mkdir(done, 0o755); err != nil {
		return err
	}
	if err := fetch(filepath.Join(done, name)); err != nil {
		return err
	}
	if err := os.Rename(done, folder); err != nil {
		if _, there := os.Stat(filepath.Join(folder, name)); there != nil {
			return err
		}
	}
	return nil
}

// is reports whether a file is the tool at its version. What Go compiled into it says so;
// a release that was stripped of that is asked.
func (t Tool) is(ctx context.Context, path string) bool {
	if info, err := buildinfo.ReadFile(path); err == nil {
		modules := append([]moduleVersion{{info.Main.Path, info.Main.Version}}, dependencies(info)...)
		if slices.Contains(modules, moduleVersion{t.Module, "v" + t.Version}) {
			return true
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	words := strings.Fields(string(out))
	return err == nil && (slices.Contains(words, t.Version) || slices.Contains(words, "v"+t.Version))
}

type moduleVersion struct{ path, version string }

func dependencies(info *buildinfo.BuildInfo) (all []moduleVersion) {
	for _, d := range info.Deps {
		all = append(all, moduleVersion{d.Path, d.Version})
	}
	return all
}
