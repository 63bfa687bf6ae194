package source_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/conveyor/source"
)

// checkout is a Git checkout whose commits are the same on every machine.
type checkout struct{ dir string }

func newCheckout(t *testing.T) checkout {
	t.Helper()
	c := checkout{t.TempDir()}
	c.git(t, "init", "--quiet", "--initial-branch=main")
	return c
}

func (c checkout) git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", c.dir, "-c", "user.name=dev", "-c", "user.email=dev@example.com"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE=2026-11-01T10:00:00Z", "GIT_COMMITTER_DATE=2026-11-01T10:00:00Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}

func (c checkout) commit(t *testing.T, file, content, message string) string {
	t.Helper()
	path := filepath.Join(c.dir, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	c.git(t, "add", "--all")
	c.git(t, "commit", "--quiet", "-m", message)
	return c.git(t, "rev-parse", "HEAD")
}

func read(t *testing.T, dir string) source.Revision {
	t.Helper()
	r, err := source.Read(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVersionRisesWithEveryCommitAndIsTheSameInEveryClone(t *testing.T) {
	c := newCheckout(t)
	sha := c.commit(t, "a", "1", "one")
	first := read(t, c.dir)
	if first.Commit != sha || first.Version != "0.1.0-1" || first.Dirty || !first.Time.Equal(time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("first revision is %+v", first)
	}
	c.commit(t, "b", "1", "two")
	second := read(t, c.dir)
	if order, err := source.Compare(first.Version, second.Version); err != nil || order >= 0 {
		t.Errorf("%s against %s is %d, %v", first.Version, second.Version, order, err)
	}
	clone := filepath.Join(t.TempDir(), "clone")
	c.git(t, "clone", "--quiet", c.dir, clone)
	if r := read(t, clone); r != second {
		t.Errorf("the clone says %+v, the origin %+v", r, second)
	}
	if r := read(t, clone); r.Dirty {
		t.Error("a fresh clone is dirty")
	}
	if err := os.WriteFile(filepath.Join(clone, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := read(t, clone); !r.Dirty {
		t.Error("a file that no commit has goes unnoticed")
	}
}

func TestShallowCheckoutHasNoVersion(t *testing.T) {
	c := newCheckout(t)
	c.commit(t, "a", "1", "one")
	c.commit(t, "a", "2", "two")
	clone := filepath.Join(t.TempDir(), "clone")
	c.git(t, "clone", "--quiet", "--depth=1", "file://"+c.dir, clone)
	if _, err := source.Read(t.Context(), clone); err == nil || !strings.Contains(err.Error(), "git fetch --unshallow") {
		t.Errorf("a shallow checkout gives %v", err)
	}
}

func TestDirectoryWithoutCommitsIsNoCheckout(t *testing.T) {
	for name, dir := range map[string]string{"no repository": t.TempDir(), "no commit": newCheckout(t).dir} {
		if _, err := source.Read(t.Context(), dir); !errors.Is(err, source.ErrNoCheckout) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLogNamesWhatChangedSinceARelease(t *testing.T) {
	c := newCheckout(t)
	old := c.commit(t, "worker/a", "1", "one")
	c.commit(t, "ui/a", "1", "two")
	last := c.commit(t, "worker/a", "2", "three | `x` <b>")
	commits, total, err := source.Log(t.Context(), c.dir, old, last, 10)
	if err != nil || total != 2 || len(commits) != 2 || commits[0] != (source.Commit{SHA: last, Subject: "three | `x` <b>", Author: "dev"}) {
		t.Errorf("log is %+v, %d, %v", commits, total, err)
	}
	commits, total, err = source.Log(t.Context(), c.dir, old, last, 10, "ui")
	if err != nil || total != 1 || len(commits) != 1 || commits[0].Subject != "two" {
		t.Errorf("log of ui is %+v, %d, %v", commits, total, err)
	}
	commits, total, err = source.Log(t.Context(), c.dir, old, last, 1)
	if err != nil || total != 2 || len(commits) != 1 {
		t.Errorf("limited log is %+v, %d, %v", commits, total, err)
	}
	if commits, total, err = source.Log(t.Context(), c.dir, last, last, 10); err != nil || total != 0 || len(commits) != 0 {
		t.Errorf("log of nothing is %+v, %d, %v", commits, total, err)
	}
	if _, _, err := source.Log(t.Context(), c.dir, "--output=/tmp/x", last, 10); err == nil {
		t.Error("an option was taken for a commit")
	}
}

func TestLastChangeIsOfThePathsAlone(t *testing.T) {
	c := newCheckout(t)
	chart := c.commit(t, "charts/a/values.yaml", "1", "one")
	other := c.commit(t, "ui/a", "1", "two")
	if last, err := source.LastChange(t.Context(), c.dir, other, "charts/a"); err != nil || last != chart {
		t.Errorf("the last change is %s, %v; want %s", last, err, chart)
	}
	again := c.commit(t, "charts/a/values.yaml", "2", "three")
	if last, err := source.LastChange(t.Context(), c.dir, again, "charts/a"); err != nil || last != again {
		t.Errorf("the last change is %s, %v; want %s", last, err, again)
	}
	if last, err := source.LastChange(t.Context(), c.dir, other, "charts/a"); err != nil || last != chart {
		t.Errorf("up to an earlier commit the last change is %s, %v", last, err)
	}
	for _, bad := range []struct{ upTo, path string }{{again, "charts/b"}, {"HEAD", "charts/a"}, {"--all", "charts/a"}} {
		if last, err := source.LastChange(t.Context(), c.dir, bad.upTo, bad.path); err == nil {
			t.Errorf("%s up to %s was last changed by %s", bad.path, bad.upTo, last)
		}
	}
}

func TestExportIsTheCommitAndNotTheWorkingTree(t *testing.T) {
	c := newCheckout(t)
	sha := c.commit(t, "sub/a", "committed", "one")
	for file, content := range map[string]string{"sub/a": "changed", "secret": "not committed"} {
		if err := os.WriteFile(filepath.Join(c.dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	target := filepath.Join(t.TempDir(), "context")
	if err := source.Export(t.Context(), filepath.Join(c.dir, "sub"), sha, target, nil); err != nil {
		t.Fatal(err)
	}
	var files []string
	err := filepath.WalkDir(target, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, target+"/"))
		}
		return err
	})
	if err != nil || !slices.Equal(files, []string{"sub/a"}) {
		t.Errorf("exported %v, %v", files, err)
	}
	if data, err := os.ReadFile(filepath.Join(target, "sub/a")); err != nil || string(data) != "committed" {
		t.Errorf("exported content is %q, %v", data, err)
	}
	if err := source.Export(context.Background(), c.dir, "HEAD", target, nil); err == nil {
		t.Error("a name that moves was exported")
	}
}

func TestCompareCountsInNumbers(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"0.1.0-9", "0.1.0-10", -1},
		{"0.1.0-10", "0.1.0-10", 0},
		{"0.1.0-100", "0.1.0", -1}, // the release comes after what leads to it
		{"0.2.0-1", "0.1.0-99", 1},
	} {
		if got, err := source.Compare(tt.a, tt.b); err != nil || got != tt.want {
			t.Errorf("%s against %s is %d, %v; want %d", tt.a, tt.b, got, err, tt.want)
		}
	}
	if _, err := source.Compare("latest", "0.1.0"); err == nil {
		t.Error("latest was taken for a version")
	}
}
