package gitops

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

	"github.com/omnivision/omnivision/forge"
)

// fakeForge is pull requests and statuses in memory, on a real bare repository.
type fakeForge struct {
	bare, clone string
	pulls       []forge.PullRequest
	statuses    map[string]map[string]forge.Status
	comments    map[string]string
	deployments []forge.Deployment
	now         time.Time
}

func newFake(t *testing.T) *fakeForge {
	t.Helper()
	dir := t.TempDir()
	f := &fakeForge{bare: filepath.Join(dir, "gitops.git"), clone: filepath.Join(dir, "clone"), statuses: map[string]map[string]forge.Status{}, comments: map[string]string{}, now: time.Now()}
	if err := os.CopyFS(f.clone, os.DirFS("../../omnivision-gitops")); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "init", "--quiet", "--bare", "--initial-branch=main", f.bare)
	run(t, f.clone, "init", "--quiet", "--initial-branch=main")
	run(t, f.clone, "remote", "add", "origin", f.bare)
	f.push(t, "Begin")
	return f
}

func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := tryRun(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryRun(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=person", "GIT_AUTHOR_EMAIL=p@example.com", "GIT_COMMITTER_NAME=person", "GIT_COMMITTER_EMAIL=p@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", errors.New("git " + strings.Join(args, " ") + ": " + string(out))
	}
	return strings.TrimSpace(string(out)), nil
}

// push commits what is in the clone to main.
func (f *fakeForge) push(t *testing.T, message string) string {
	t.Helper()
	run(t, f.clone, "add", "--all")
	run(t, f.clone, "commit", "--quiet", "--allow-empty", "-m", message)
	run(t, f.clone, "push", "--quiet", "origin", "HEAD:main")
	return run(t, f.clone, "rev-parse", "HEAD")
}

// write changes a file of main.
func (f *fakeForge) write(t *testing.T, path string, change func(string) string, message string) string {
	t.Helper()
	run(t, f.clone, "fetch", "--quiet", "origin")
	run(t, f.clone, "checkout", "--quiet", "-B", "main", "origin/main")
	file := filepath.Join(f.clone, path)
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(change(string(data))), 0o644); err != nil {
		t.Fatal(err)
	}
	return f.push(t, message)
}

func (f *fakeForge) file(t *testing.T, path string) string {
	t.Helper()
	return run(t, f.bare, "show", "main:"+path)
}

func (f *fakeForge) branch(name string) string {
	sha, err := tryRun(f.bare, "rev-parse", "--verify", "--quiet", "refs/heads/"+name)
	if err != nil {
		return ""
	}
	return sha
}

func (f *fakeForge) Head(_ context.Context, branch string) (string, error) {
	if sha := f.branch(branch); sha != "" {
		return sha, nil
	}
	return "", &forge.Error{Code: forge.NotFound, Op: "get branch"}
}

func (f *fakeForge) ReadFile(_ context.Context, ref, path string) ([]byte, error) {
	out, err := tryRun(f.bare, "show", ref+":"+path)
	return []byte(out), err
}

func (f *fakeForge) SetStatus(_ context.Context, sha string, s forge.Status) error {
	if f.statuses[sha] == nil {
		f.statuses[sha] = map[string]forge.Status{}
	}
	f.statuses[sha][s.Context] = s.Trimmed()
	return nil
}

func (f *fakeForge) Statuses(_ context.Context, ref string) ([]forge.Status, error) {
	var all []forge.Status
	for _, s := range f.statuses[ref] {
		all = append(all, s)
	}
	return all, nil
}

func (f *fakeForge) ReportDeployment(_ context.Context, d forge.Deployment) error {
	f.deployments = append(f.deployments, d)
	return nil
}

func (f *fakeForge) FindPullRequests(_ context.Context, q forge.Query) ([]forge.PullRequest, error) {
	var found []forge.PullRequest
	for _, pr := range slices.Backward(f.pulls) {
		if pr.State == forge.Open {
			pr.HeadSHA = f.branch(pr.Head)
		}
		if q.Wanted(pr) && len(found) < q.Max() {
			found = append(found, pr)
		}
	}
	return found, nil
}

func (f *fakeForge) PullRequest(_ context.Context, number int64) (forge.PullRequest, error) {
	return f.pulls[number-1], nil
}

func (f *fakeForge) OpenPullRequest(_ context.Context, p forge.Proposal) (forge.PullRequest, error) {
	pr := forge.PullRequest{Number: int64(len(f.pulls) + 1), Title: p.Title, Body: p.Body, Head: p.Head, Base: p.Base, State: forge.Open, Created: f.now, Updated: f.now, URL: "https://git.example.com/pulls/1"}
	f.pulls = append(f.pulls, pr)
	return pr, nil
}

func (f *fakeForge) UpdatePullRequest(_ context.Context, number int64, c forge.Change) (forge.PullRequest, error) {
	pr := &f.pulls[number-1]
	if c.Title != nil {
		pr.Title = *c.Title
	}
	if c.Body != nil {
		pr.Body = *c.Body
	}
	pr.Updated = f.now
	return *pr, nil
}

func (f *fakeForge) ClosePullRequest(_ context.Context, number int64) error {
	pr := &f.pulls[number-1]
	pr.State, pr.HeadSHA, pr.Updated = forge.Closed, f.branch(pr.Head), f.now
	return nil
}

func (f *fakeForge) MergePullRequest(_ context.Context, number int64, m forge.Merge) (string, error) {
	pr := &f.pulls[number-1]
	if m.HeadSHA != f.branch(pr.Head) {
		return "", &forge.Error{Code: forge.Conflict, Op: "merge"}
	}
	for _, args := range [][]string{
		{"fetch", "--quiet", "origin"}, {"checkout", "--quiet", "-B", "main", "origin/main"}, {"merge", "--quiet", "--squash", "origin/" + pr.Head},
		{"commit", "--quiet", "-m", m.Title + "\n\n" + m.Message}, {"push", "--quiet", "origin", "HEAD:main"},
	} {
		if _, err := tryRun(f.clone, args...); err != nil {
			return "", &forge.Error{Code: forge.Conflict, Op: "merge", Err: err}
		}
	}
	pr.State, pr.HeadSHA, pr.Updated = forge.Merged, f.branch(pr.Head), f.now
	pr.MergeCommit = f.branch("main")
	return pr.MergeCommit, nil
}

func (f *fakeForge) Comment(_ context.Context, _ int64, marker, body string) (forge.Comment, error) {
	f.comments[marker] = body
	return forge.Comment{Body: body}, nil
}

func (f *fakeForge) open() []forge.PullRequest {
	return slices.DeleteFunc(slices.Clone(f.pulls), func(pr forge.PullRequest) bool { return pr.State != forge.Open })
}
