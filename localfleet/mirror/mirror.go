// Package mirror makes Git repositories that stand for the upstream repositories which a
// GitOps tree refers to, so that a fleet without internet access finds
// https://github.com/argoproj/argo-cd.git at its tag.
//
// A repository holds one commit for each revision that the tree names, with the paths the
// tree needs and the licence, and nothing else: no history. Where the internet is within
// reach the files come from upstream's own repository; otherwise from the Go module of
// the same version, which the module proxy serves and the checksum database vouches for,
// and the result says that it is a substitute. Commits are the same on every machine.
package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
)

// Repo is an upstream repository as a tree refers to it.
type Repo struct {
	URL       string     `json:"url"`
	Revisions []Revision `json:"revisions"`
}

// Revision is a tag of upstream's, and what of it is needed.
type Revision struct {
	Tag   string   `json:"tag"`
	Paths []string `json:"paths"`
}

// Repositories are the upstream repositories that the Applications of all clusters name.
func Repositories(tree fs.FS) ([]Repo, error) {
	f, err := fleet.Load(tree)
	if err != nil {
		return nil, err
	}
	needed := map[string]map[string]map[string]bool{} // URL, tag, path
	for _, cluster := range f.Clusters {
		apps, err := fleet.Applications(tree, cluster)
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", cluster.Name, err)
		}
		for _, app := range apps {
			for _, s := range app.AllSources() {
				if s.RepoURL == f.Repository || s.Chart != "" || s.Path == "" {
					continue
				}
				if needed[s.RepoURL] == nil {
					needed[s.RepoURL] = map[string]map[string]bool{}
				}
				if needed[s.RepoURL][s.TargetRevision] == nil {
					needed[s.RepoURL][s.TargetRevision] = map[string]bool{}
				}
				needed[s.RepoURL][s.TargetRevision][needs(s)] = true
			}
		}
	}
	var repos []Repo
	for _, u := range sortedKeys(needed) {
		repo := Repo{URL: u}
		for _, tag := range sortedKeys(needed[u]) {
			repo.Revisions = append(repo.Revisions, Revision{Tag: tag, Paths: outermost(sortedKeys(needed[u][tag]))})
		}
		repos = append(repos, repo)
	}
	return repos, nil
}

// needs is the path that a source reads. A directory of manifests stands alone; a
// kustomization refers to others beside and above it.
func needs(s fleet.Source) string {
	if s.Directory != nil {
		return path.Clean(s.Path)
	}
	top, _, _ := strings.Cut(path.Clean(s.Path), "/")
	return top
}

// outermost leaves out of sorted paths those that lie below another one.
func outermost(paths []string) []string {
	var kept []string
	for _, p := range paths {
		if last := len(kept) - 1; last < 0 || !strings.HasPrefix(p, kept[last]+"/") {
			kept = append(kept, p)
		}
	}
	return kept
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Name is the repository's owner and name: argoproj/argo-cd.
func (r Repo) Name() string {
	u, err := url.Parse(r.URL)
	if err != nil {
		return r.URL
	}
	return strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git")
}

// Module is the Go module that holds the same files at the tag.
func (r Repo) Module(tag string) (string, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q is no URL of a repository", r.URL)
	}
	m := majorVersion.FindStringSubmatch(tag)
	if m == nil {
		return "", fmt.Errorf("%s of %s is no version: only tags such as v1.2.3 have a Go module", tag, r.URL)
	}
	module := u.Host + "/" + r.Name()
	if m[1] != "0" && m[1] != "1" {
		module += "/v" + m[1]
	}
	return module + "@" + tag, nil
}

var majorVersion = regexp.MustCompile(`^v(\d+)\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?$`)

// Module is a downloaded Go module.
type Module struct {
	Dir string // where its files are
	Sum string // as in go.sum
}

// Runner runs a program and returns its standard output. An error has the program's own
// words.
type Runner func(ctx context.Context, args ...string) ([]byte, error)

// Mirror builds repositories.
type Mirror struct {
	// Go runs the go command; it downloads modules.
	Go Runner
	// Git runs git, for upstream's own repository. Without it only modules are used.
	Git Runner
	// Patience is how long upstream may take to answer before the module is used; 5 s
	// when zero.
	Patience time.Duration
}

// Result is a repository that was built, or found.
type Result struct {
	// Dir is the bare repository.
	Dir string `json:"dir"`
	// Origin says where the files are from, for people.
	Origin string `json:"origin"`
	// Substitute: the files did not come from upstream's repository.
	Substitute bool `json:"substitute"`
}

// recordFile describes in a repository what it was made from. It is not part of it.
const recordFile = "omnivision-mirror.json"

type record struct {
	Format int    `json:"format"`
	Repo   Repo   `json:"repo"`
	Result Result `json:"result"`
}

// format changes when the same input would give another repository.
const format = 1

// Build makes the bare repository dir/OWNER/NAME.git, unless it is there already with the
// same revisions and paths. It is complete or absent, whenever the process dies.
func (m *Mirror) Build(ctx context.Context, repo Repo, dir string) (Result, error) {
	target := filepath.Join(dir, filepath.FromSlash(repo.Name())+".git")
	if r, ok := built(target, repo); ok {
		return r, nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return Result{}, fmt.Errorf("making the directory of %s: %w", repo.URL, err)
	}
	work, err := os.MkdirTemp(filepath.Dir(target), ".building-")
	if err != nil {
		return Result{}, fmt.Errorf("making a directory for %s: %w", repo.URL, err)
	}
	defer os.RemoveAll(work)

	result := Result{Dir: target}
	bare, err := newBare(filepath.Join(work, "repo"))
	if err != nil {
		return Result{}, err
	}
	online := m.reachable(ctx, repo)
	for i, rev := range repo.Revisions {
		checkout, origin, err := m.checkout(ctx, repo, rev, online, filepath.Join(work, fmt.Sprint("checkout", i)))
		if err != nil {
			return Result{}, fmt.Errorf("getting %s at %s: %w", repo.URL, rev.Tag, err)
		}
		if err := bare.commit(checkout, rev, fmt.Sprintf("%s %s\n\n%s of %s.\n", repo.Name(), rev.Tag, strings.Join(rev.Paths, ", "), origin)); err != nil {
			return Result{}, fmt.Errorf("writing %s at %s: %w", repo.URL, rev.Tag, err)
		}
		result.Origin, result.Substitute = origin, !online
	}
	content, err := json.MarshalIndent(record{format, repo, result}, "", "  ")
	if err != nil {
		return Result{}, err
	}
	if err := os.WriteFile(filepath.Join(work, "repo", recordFile), append(content, '\n'), 0o644); err != nil {
		return Result{}, fmt.Errorf("writing %s: %w", recordFile, err)
	}
	if err := os.RemoveAll(target); err != nil {
		return Result{}, fmt.Errorf("removing the repository of before: %w", err)
	}
	if err := os.Rename(filepath.Join(work, "repo"), target); err != nil {
		return Result{}, fmt.Errorf("moving the repository to its place: %w", err)
	}
	return result, nil
}

func built(target string, repo Repo) (Result, bool) {
	content, err := os.ReadFile(filepath.Join(target, recordFile))
	if err != nil {
		return Result{}, false
	}
	var r record
	if json.Unmarshal(content, &r) != nil || r.Format != format {
		return Result{}, false
	}
	have, errHave := json.Marshal(r.Repo)
	want, errWant := json.Marshal(repo)
	if errHave != nil || errWant != nil || string(have) != string(want) {
		return Result{}, false
	}
	r.Result.Dir = target
	return r.Result, true
}

// reachable asks upstream for the tags, briefly.
func (m *Mirror) reachable(ctx context.Context, repo Repo) bool {
	if m.Git == nil {
		return false
	}
	patience := m.Patience
	if patience == 0 {
		patience = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	args := []string{"ls-remote", "--exit-code", repo.URL}
	for _, rev := range repo.Revisions {
		args = append(args, "refs/tags/"+rev.Tag)
	}
	out, err := m.Git(ctx, args...)
	if err != nil {
		return false
	}
	for _, rev := range repo.Revisions {
		if !strings.Contains(string(out)+"\n", "\trefs/tags/"+rev.Tag+"\n") {
			return false
		}
	}
	return true
}

// checkout has the files of a revision in a directory, and says where they are from.
func (m *Mirror) checkout(ctx context.Context, repo Repo, rev Revision, online bool, dir string) (string, string, error) {
	if online {
		if _, err := m.Git(ctx, "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth=1", "--branch="+rev.Tag, repo.URL, dir); err != nil {
			return "", "", err
		}
		commit, err := m.Git(ctx, "-C", dir, "rev-parse", "HEAD")
		if err != nil {
			return "", "", err
		}
		return dir, "upstream's commit " + strings.TrimSpace(string(commit)), nil
	}
	name, err := repo.Module(rev.Tag)
	if err != nil {
		return "", "", err
	}
	mod, err := m.Download(ctx, name)
	if err != nil {
		return "", "", err
	}
	return mod.Dir, fmt.Sprintf("the Go module %s (%s)", name, mod.Sum), nil
}

// Download fetches a module, given as path@version, into the go command's cache.
func (m *Mirror) Download(ctx context.Context, name string) (Module, error) {
	if m.Go == nil {
		return Module{}, errors.New("downloading a Go module needs the go command")
	}
	// -json reports errors in its output and through the exit status.
	out, err := m.Go(ctx, "mod", "download", "-json", name)
	var got struct{ Dir, Sum, Error string }
	if jsonErr := json.Unmarshal(out, &got); jsonErr != nil && err == nil {
		return Module{}, fmt.Errorf("reading what go mod download says of %s: %w", name, jsonErr)
	}
	switch {
	case strings.Contains(got.Error, "requires go "):
		return Module{}, fmt.Errorf("downloading the Go module %s: %s (let the go command use a newer Go: GOTOOLCHAIN=auto)", name, got.Error)
	case got.Error != "":
		return Module{}, fmt.Errorf("downloading the Go module %s: %s (is the module proxy, GOPROXY, within reach?)", name, got.Error)
	case err != nil:
		return Module{}, fmt.Errorf("downloading the Go module %s: %w", name, err)
	case got.Dir == "":
		return Module{}, fmt.Errorf("downloading the Go module %s: go names no directory", name)
	}
	return Module{Dir: got.Dir, Sum: got.Sum}, nil
}
