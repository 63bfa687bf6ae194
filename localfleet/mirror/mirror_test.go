package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestOurTreeNeedsTheseRepositories(t *testing.T) {
	got, err := Repositories(os.DirFS("../../omnivision-gitops"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Repo{
		{URL: "https://github.com/argoproj/argo-cd.git", Revisions: []Revision{{"v3.6.1", []string{"manifests"}}}},
		{URL: "https://github.com/argoproj/argo-rollouts.git", Revisions: []Revision{{"v1.10.2", []string{"manifests"}}}},
		{URL: "https://github.com/fluent/fluent-operator.git", Revisions: []Revision{{"v3.5.0", []string{"config/crd/bases"}}}},
		{URL: "https://github.com/traefik/traefik.git", Revisions: []Revision{{"v3.6.12", []string{"docs/content/reference/dynamic-configuration"}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	for i, module := range []string{"github.com/argoproj/argo-cd/v3@v3.6.1", "github.com/argoproj/argo-rollouts@v1.10.2", "github.com/fluent/fluent-operator/v3@v3.5.0", "github.com/traefik/traefik/v3@v3.6.12"} {
		if name, err := got[i].Module(got[i].Revisions[0].Tag); err != nil || name != module {
			t.Errorf("module %s, %v; want %s", name, err, module)
		}
	}
}

func TestPathsBelowOthersAreLeftOut(t *testing.T) {
	got := outermost([]string{"a", "a/b", "a/b/c", "ab", "b/c", "b/d"})
	if want := []string{"a", "ab", "b/c", "b/d"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOnlyVersionsHaveAModule(t *testing.T) {
	repo := Repo{URL: "https://github.com/a/b.git"}
	for _, tag := range []string{"main", "stable", "1.2.3", "v1"} {
		if name, err := repo.Module(tag); err == nil {
			t.Errorf("%s is %s", tag, name)
		}
	}
}

// upstream is a directory with the files of a module.
func upstream(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"LICENSE": "free", "main.go": "package main", "manifests/a.yaml": "a: 1\n", "manifests/a/b.yaml": "b: 1\n",
		"manifests/a-b.yaml": "c: 1\n", "docs/x.md": "x",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func moduleRunner(dir string, calls *int) Runner {
	return func(_ context.Context, args ...string) ([]byte, error) {
		*calls++
		return json.Marshal(map[string]string{"Dir": dir, "Sum": "h1:abc"})
	}
}

var someRepo = Repo{URL: "https://github.com/some/thing.git", Revisions: []Revision{{"v1.2.3", []string{"manifests"}}}}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// The real git reads what was written, and finds nothing wrong with it.
func TestGitClonesTheMirrorAtItsTag(t *testing.T) {
	calls := 0
	m := &Mirror{Go: moduleRunner(upstream(t), &calls)}
	result, err := m.Build(t.Context(), someRepo, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !result.Substitute || !strings.Contains(result.Origin, "github.com/some/thing@v1.2.3 (h1:abc)") {
		t.Errorf("result does not name the substitute: %+v", result)
	}
	run(t, "git", "-C", result.Dir, "fsck", "--strict")
	clone := filepath.Join(t.TempDir(), "clone")
	run(t, "git", "clone", "--quiet", "file://"+result.Dir, clone)
	run(t, "git", "-C", clone, "fetch", "--quiet", "origin", "v1.2.3")
	if got, want := run(t, "git", "-C", clone, "ls-tree", "-r", "--name-only", "v1.2.3"), "LICENSE\nmanifests/a-b.yaml\nmanifests/a.yaml\nmanifests/a/b.yaml"; got != want {
		t.Errorf("the mirror holds\n%s\nwant\n%s", got, want)
	}
}

func TestMirrorIsTheSameOnEveryMachine(t *testing.T) {
	calls := 0
	var hashes []string
	for range 2 {
		m := &Mirror{Go: moduleRunner(upstream(t), &calls)}
		result, err := m.Build(t.Context(), someRepo, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, run(t, "git", "-C", result.Dir, "rev-parse", "v1.2.3", "main"))
	}
	if hashes[0] != hashes[1] {
		t.Errorf("commits differ: %s", hashes)
	}
}

func TestMirrorIsBuiltOnceForAVersion(t *testing.T) {
	calls, dir := 0, t.TempDir()
	m := &Mirror{Go: moduleRunner(upstream(t), &calls)}
	first, err := m.Build(t.Context(), someRepo, dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.Build(t.Context(), someRepo, dir)
	if err != nil || first != second || calls != 1 {
		t.Errorf("%d downloads, %+v and %+v, %v", calls, first, second, err)
	}
	newer := Repo{URL: someRepo.URL, Revisions: append([]Revision{{"v1.3.0", []string{"manifests"}}}, someRepo.Revisions...)}
	third, err := m.Build(t.Context(), newer, dir)
	if err != nil || calls != 3 {
		t.Fatalf("%d downloads, %v", calls, err)
	}
	if tags := run(t, "git", "-C", third.Dir, "tag"); tags != "v1.2.3\nv1.3.0" {
		t.Errorf("tags are %s", tags)
	}
	left, err := filepath.Glob(filepath.Join(dir, "some", ".building-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// With upstream within reach its own repository is used, and nothing is called a substitute.
func TestUpstreamsOwnRepositoryIsPreferred(t *testing.T) {
	origin := filepath.Join(t.TempDir(), "some", "thing.git")
	files := upstream(t)
	if err := os.MkdirAll(filepath.Dir(origin), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "git", "-c", "init.defaultBranch=main", "init", "--quiet", files)
	run(t, "git", "-C", files, "add", ".")
	run(t, "git", "-C", files, "-c", "user.name=x", "-c", "user.email=x@x.invalid", "commit", "--quiet", "-m", "x")
	run(t, "git", "-C", files, "tag", "v1.2.3")
	run(t, "git", "clone", "--quiet", "--bare", files, origin)

	calls := 0
	m := &Mirror{Go: moduleRunner(files, &calls), Git: Command("git", t.TempDir())}
	repo := Repo{URL: "file://" + origin, Revisions: someRepo.Revisions}
	result, err := m.Build(t.Context(), repo, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if commit := run(t, "git", "-C", files, "rev-parse", "HEAD"); result.Substitute || calls != 0 || result.Origin != "upstream's commit "+commit {
		t.Errorf("%d downloads, %+v", calls, result)
	}
	if got := run(t, "git", "-C", result.Dir, "show", "v1.2.3:manifests/a.yaml"); got != "a: 1" {
		t.Errorf("holds %q", got)
	}
}

func TestUnreachableUpstreamAndModuleSaysBoth(t *testing.T) {
	m := &Mirror{
		Git: func(context.Context, ...string) ([]byte, error) { return nil, errors.New("could not resolve host") },
		Go: func(context.Context, ...string) ([]byte, error) {
			return []byte(`{"Error": "no such host"}`), errors.New("exit status 1")
		},
	}
	_, err := m.Build(t.Context(), someRepo, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "github.com/some/thing@v1.2.3: no such host") || !strings.Contains(err.Error(), "GOPROXY") {
		t.Errorf("the error does not help: %v", err)
	}
}
