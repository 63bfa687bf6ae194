package revision

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// git runs git in a directory, apart from the user's own configuration.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t testing.TB, dir, name, content string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func commit(t testing.TB, dir string) string {
	t.Helper()
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "a commit")
	return git(t, dir, "rev-parse", "HEAD")
}

// repository has a tree below sub/, and a file outside of it.
func repository(t testing.TB) (dir, first string) {
	t.Helper()
	dir = t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	write(t, dir, "outside.yaml", "outside")
	write(t, dir, "sub/a.yaml", "one")
	write(t, dir, "sub/d/b ü\t.yaml", "two")
	write(t, dir, "sub/d/e/c.yaml", "")
	return dir, commit(t, dir)
}

func open(t testing.TB, dir string) *Repository {
	t.Helper()
	r, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func at(t testing.TB, r *Repository, rev string) *Tree {
	t.Helper()
	commit, err := r.Resolve(t.Context(), rev)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := r.Tree(t.Context(), commit, rev)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestATreeIsAFileSystem(t *testing.T) {
	dir, _ := repository(t)
	tree := at(t, open(t, filepath.Join(dir, "sub")), "HEAD")
	if err := fstest.TestFS(tree, "a.yaml", "d/b ü\t.yaml", "d/e/c.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := tree.ReadFile("../outside.yaml"); err == nil {
		t.Error("it reads beyond its directory")
	}
}

func TestWorkingTreeIsWhatACommitOfEverythingWouldHold(t *testing.T) {
	dir, _ := repository(t)
	write(t, dir, "sub/a.yaml", "changed")
	write(t, dir, "sub/new.yaml", "untracked")
	write(t, dir, "sub/secret.tmp", "ignored")
	write(t, dir, ".gitignore", "*.tmp")
	if err := os.Remove(filepath.Join(dir, "sub/d/e/c.yaml")); err != nil {
		t.Fatal(err)
	}
	before := git(t, dir, "status", "--porcelain")
	r := open(t, filepath.Join(dir, "sub"))
	working, err := r.WorkingTree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Changed(at(t, r, "HEAD"), working), []string{"a.yaml", "d/e/c.yaml", "new.yaml"}; !slices.Equal(got, want) {
		t.Errorf("changed are %q, want %q", got, want)
	}
	if after := git(t, dir, "status", "--porcelain"); after != before {
		t.Errorf("reading changed the checkout: %s", after)
	}
}

func TestLinksAreSeenAndNotFollowed(t *testing.T) {
	dir, _ := repository(t)
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "sub/link.yaml")); err != nil {
		t.Fatal(err)
	}
	commit(t, dir)
	r := open(t, filepath.Join(dir, "sub"))
	working, err := r.WorkingTree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range []*Tree{at(t, r, "HEAD"), working} {
		if content, err := tree.ReadFile("link.yaml"); err == nil {
			t.Errorf("%s reads through the link: %q", tree.Name, content)
		}
		if info, err := tree.Stat("link.yaml"); err != nil || info.Mode().Type() != fs.ModeSymlink {
			t.Errorf("%s: %v, %v", tree.Name, info, err)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	dir, first := repository(t)
	r := open(t, filepath.Join(dir, "sub"))
	if _, err := Open(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "not in a Git repository") {
		t.Errorf("outside of Git: %v", err)
	}
	for _, rev := range []string{"nonsense", "--help", "", "HEAD:sub", "-x^{/}"} {
		if _, err := r.Resolve(t.Context(), rev); err == nil || !strings.Contains(err.Error(), "git fetch") {
			t.Errorf("revision %q: %v", rev, err)
		}
	}
	git(t, dir, "mv", "sub", "moved")
	commit(t, dir)
	moved := open(t, filepath.Join(dir, "moved"))
	if _, err := moved.Tree(t.Context(), first, "the first"); err == nil || !strings.Contains(err.Error(), "no such directory") {
		t.Errorf("a directory that was not there yet: %v", err)
	}
}

func TestFollowedIsWhereTheBranchParted(t *testing.T) {
	dir, first := repository(t)
	git(t, dir, "checkout", "-q", "-b", "feature")
	write(t, dir, "sub/a.yaml", "feature")
	head := commit(t, dir)
	git(t, dir, "checkout", "-q", "main")
	write(t, dir, "sub/other.yaml", "main went on")
	tip := commit(t, dir)
	r := open(t, dir)
	commit, name, err := r.Followed(t.Context(), "main", head)
	if err != nil || commit != first || name != "main" {
		t.Errorf("got %s %s %v", commit, name, err)
	}
	git(t, dir, "update-ref", "refs/remotes/origin/main", first)
	if _, name, err = r.Followed(t.Context(), "main", tip); err != nil || name != "origin/main" {
		t.Errorf("the remote's branch does not come first: %s %v", name, err)
	}
	if _, _, err := r.Followed(t.Context(), "absent", head); err == nil || !strings.Contains(err.Error(), "--base") {
		t.Errorf("got %v", err)
	}
}

func TestTraceTellsWhatARenderingDependsOn(t *testing.T) {
	dir, _ := repository(t)
	r := open(t, filepath.Join(dir, "sub"))
	base := at(t, r, "HEAD")
	cases := map[string]struct {
		read   func(fs.FS)
		change func(dir string)
		same   bool
	}{
		"another file changed": {func(f fs.FS) { _, _ = fs.ReadFile(f, "a.yaml") }, func(d string) { write(t, d, "sub/d/e/c.yaml", "x") }, true},
		"the file changed":     {func(f fs.FS) { _, _ = fs.ReadFile(f, "a.yaml") }, func(d string) { write(t, d, "sub/a.yaml", "x") }, false},
		"only looked at":       {func(f fs.FS) { _, _ = fs.Stat(f, "a.yaml") }, func(d string) { write(t, d, "sub/a.yaml", "x") }, true},
		"missed, now there":    {func(f fs.FS) { _, _ = fs.Stat(f, "k.yaml") }, func(d string) { write(t, d, "sub/k.yaml", "") }, false},
		"a directory grew":     {func(f fs.FS) { _, _ = fs.ReadDir(f, "d") }, func(d string) { write(t, d, "sub/d/new", "") }, false},
		"deeper than listed":   {func(f fs.FS) { _, _ = fs.ReadDir(f, "d") }, func(d string) { write(t, d, "sub/d/e/new", "") }, true},
		"opened and changed":   {func(f fs.FS) { _, _ = f.Open("a.yaml") }, func(d string) { write(t, d, "sub/a.yaml", "x") }, false},
		"gone":                 {func(f fs.FS) { _, _ = fs.Stat(f, "a.yaml") }, func(d string) { _ = os.Remove(filepath.Join(d, "sub/a.yaml")) }, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			git(t, dir, "reset", "-q", "--hard")
			git(t, dir, "clean", "-qfd")
			c.change(dir)
			other, err := r.WorkingTree(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			trace := base.Trace()
			c.read(trace)
			if got := trace.Same(other); got != c.same {
				t.Errorf("same is %v", got)
			}
		})
	}
}

func TestLargeFilesAreNamedAndNotRead(t *testing.T) {
	dir, _ := repository(t)
	write(t, dir, "sub/large.bin", strings.Repeat("x", MaxFile+1))
	commit(t, dir)
	tree := at(t, open(t, filepath.Join(dir, "sub")), "HEAD")
	if _, err := tree.ReadFile("large.bin"); err == nil || !strings.Contains(err.Error(), "8 MiB") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseListing(f *testing.F) {
	f.Add([]byte("100644 blob 0123456789 12\ta.yaml\x00120000 blob 01 3\tlink\x00160000 commit 01 -\tsub\x00"))
	f.Add([]byte("100644 blob 0123456789 -\ta.yaml\x00"))
	f.Add([]byte("100644 blob 01 1\t../a\x00"))
	f.Fuzz(func(t *testing.T, out []byte) {
		files, err := parseListing(out)
		if err != nil {
			return
		}
		for _, f := range files {
			if !fs.ValidPath(f.name) || f.size < 0 {
				t.Errorf("took %q, %d bytes", f.name, f.size)
			}
		}
		newTree(files)
	})
}

func FuzzParseBatch(f *testing.F) {
	f.Add([]byte("01 blob 3\nabc\n02 blob 0\n\n"))
	f.Add([]byte("01 missing\n"))
	f.Add([]byte("01 blob 99999999999999\nabc\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		into := map[string][]byte{}
		if parseBatch(out, into) != nil {
			return
		}
		for id, content := range into {
			if !bytes.Contains(out, content) {
				t.Errorf("object %s holds what git did not say", id)
			}
		}
	})
}

// Whoever measures a release sees that it was git that took the time.
func TestGitsTimeIsGits(t *testing.T) {
	dir, _ := repository(t)
	ctx, clock := tooltime.With(t.Context())
	r, err := Open(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Tree(ctx, "HEAD", "HEAD"); err != nil {
		t.Fatal(err)
	}
	if spent := clock.Spent(); spent.ByTool["git"] == 0 || len(spent.ByTool) != 1 {
		t.Errorf("spent is %+v", spent)
	}
}
