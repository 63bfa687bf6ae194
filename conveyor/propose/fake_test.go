package propose

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/omnivision/omnivision/forge"
)

// gitops is a GitOps repository: a real bare one, and a person's clone of it.
type gitops struct {
	bare, clone string
}

// template is made once and copied: a test begins with a tree, not with making one.
var template = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "omnivision-gitops-")
	if err != nil {
		return "", err
	}
	clone := filepath.Join(dir, "clone")
	if err := os.CopyFS(clone, os.DirFS("../../omnivision-gitops")); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--initial-branch=main"}, {"add", "--all"}, {"commit", "--quiet", "-m", "Begin"},
		{"init", "--quiet", "--bare", "--initial-branch=main", filepath.Join(dir, "gitops.git")},
		{"remote", "add", "origin", "../gitops.git"}, {"push", "--quiet", "origin", "main"},
	} {
		if _, err := tryGit(clone, args...); err != nil {
			return "", err
		}
	}
	return dir, nil
})

func newGitops(t *testing.T) gitops {
	t.Helper()
	from, err := template()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return gitops{bare: filepath.Join(dir, "gitops.git"), clone: filepath.Join(dir, "clone")}
}

func (g gitops) git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := tryGit(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryGit(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=person", "GIT_AUTHOR_EMAIL=person@example.com", "GIT_COMMITTER_NAME=person", "GIT_COMMITTER_EMAIL=person@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", errors.New("git " + args[0] + ": " + err.Error() + ": " + string(out))
	}
	return strings.TrimSpace(string(out)), nil
}

// push commits what is in the clone and pushes it.
func (g gitops) push(t testing.TB, branch, message string) string {
	t.Helper()
	g.git(t, g.clone, "add", "--all")
	g.git(t, g.clone, "commit", "--quiet", "--allow-empty", "-m", message)
	g.git(t, g.clone, "push", "--quiet", "--force", "origin", "HEAD:"+branch)
	return g.git(t, g.clone, "rev-parse", "HEAD")
}

// edit replaces text in a file of main, and pushes that.
func (g gitops) edit(t testing.TB, path, old, new, message string) string {
	t.Helper()
	g.git(t, g.clone, "fetch", "--quiet", "origin")
	g.git(t, g.clone, "checkout", "--quiet", "-B", "main", "origin/main")
	file := filepath.Join(g.clone, path)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), old) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(data), old, new, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	return g.push(t, "main", message)
}

// write makes a file of main, and pushes that.
func (g gitops) write(t testing.TB, path, content, message string) {
	t.Helper()
	file := filepath.Join(g.clone, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	g.push(t, "main", message)
}

func (g gitops) head(t testing.TB, branch string) string {
	t.Helper()
	sha, err := tryGit(g.bare, "rev-parse", "--verify", "--quiet", "refs/heads/"+branch)
	if err != nil {
		return ""
	}
	return sha
}

func (g gitops) file(t testing.TB, ref, path string) string {
	t.Helper()
	return g.git(t, g.bare, "show", ref+":"+path)
}

// fakeForge is the pull requests of a gitops, in memory.
type fakeForge struct {
	forge.PullRequests // what a proposer does not call

	bare string
	// opensTwo does what Gitea does when it is asked twice at the same moment.
	opensTwo bool

	mu     sync.Mutex
	pulls  []forge.PullRequest
	writes int
	// fail is asked before a call takes effect, and after it; it may act, too.
	before, after func(call string) error
}

func (f *fakeForge) call(name string, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.before != nil {
		if err := f.before(name); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if f.after != nil {
		return f.after(name)
	}
	return nil
}

func (f *fakeForge) branch(name string) string {
	sha, err := tryGit(f.bare, "rev-parse", "--verify", "--quiet", "refs/heads/"+name)
	if err != nil {
		return ""
	}
	return sha
}

func (f *fakeForge) Head(_ context.Context, branch string) (sha string, err error) {
	err = f.call("head", func() error {
		if sha = f.branch(branch); sha == "" {
			return &forge.Error{Code: forge.NotFound, Op: "get branch " + branch}
		}
		return nil
	})
	return sha, err
}

func (f *fakeForge) FindPullRequests(_ context.Context, q forge.Query) (found []forge.PullRequest, err error) {
	err = f.call("find", func() error {
		for _, pr := range slices.Backward(f.pulls) {
			if pr.State == forge.Open {
				pr.HeadSHA = f.branch(pr.Head)
			}
			if q.Wanted(pr) && len(found) < q.Max() {
				found = append(found, pr)
			}
		}
		return nil
	})
	return found, err
}

func (f *fakeForge) OpenPullRequest(_ context.Context, p forge.Proposal) (pr forge.PullRequest, err error) {
	err = f.call("open", func() error {
		for _, have := range f.pulls {
			if !f.opensTwo && have.State == forge.Open && have.Head == p.Head && have.Base == p.Base {
				return &forge.Error{Code: forge.Conflict, Op: "open pull request"}
			}
		}
		if f.branch(p.Head) == "" {
			return &forge.Error{Code: forge.NotFound, Op: "open pull request"}
		}
		f.writes++
		pr = forge.PullRequest{Number: int64(len(f.pulls) + 1), Title: p.Title, Body: p.Body, Head: p.Head, Base: p.Base, State: forge.Open, URL: "https://git.example.com/pulls/1"}
		f.pulls = append(f.pulls, pr)
		return nil
	})
	return pr, err
}

func (f *fakeForge) UpdatePullRequest(_ context.Context, number int64, c forge.Change) (pr forge.PullRequest, err error) {
	err = f.call("update", func() error {
		have := &f.pulls[number-1]
		if c.Title != nil {
			have.Title = *c.Title
		}
		if c.Body != nil {
			have.Body = *c.Body
		}
		f.writes++
		pr = *have
		return nil
	})
	return pr, err
}

func (f *fakeForge) ClosePullRequest(_ context.Context, number int64) error {
	return f.call("close", func() error {
		f.writes++
		f.pulls[number-1].State, f.pulls[number-1].HeadSHA = forge.Closed, f.branch(f.pulls[number-1].Head)
		return nil
	})
}

// merge takes a pull request in as one commit, as a person would.
func (f *fakeForge) merge(t testing.TB, g gitops, number int64) {
	t.Helper()
	pr := &f.pulls[number-1]
	g.git(t, g.clone, "fetch", "--quiet", "origin")
	g.git(t, g.clone, "checkout", "--quiet", "-B", "main", "origin/main")
	g.git(t, g.clone, "merge", "--quiet", "--squash", "origin/"+pr.Head)
	pr.State, pr.HeadSHA = forge.Merged, g.head(t, pr.Head)
	pr.MergeCommit = g.push(t, "main", pr.Title)
}

func (f *fakeForge) open() []forge.PullRequest {
	var open []forge.PullRequest
	for _, pr := range f.pulls {
		if pr.State == forge.Open {
			open = append(open, pr)
		}
	}
	return open
}
