// Package forgetest is the contract of package forge as tests: every driver
// passes the same ones.
package forgetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
)

// Fixture is a fresh repository on a forge, with the file README.md on main.
type Fixture struct {
	Repository forge.Repository
	// WrongToken is the same repository, asked with a token that is not valid.
	WrongToken forge.Repository
	// Missing is a repository that does not exist.
	Missing forge.Repository
	// Commit writes a file on a branch, which it makes from main if it is new,
	// and returns the commit, as git push would.
	Commit func(t *testing.T, branch, path, content string) string
	// StrangerComments comments as another user.
	StrangerComments func(t *testing.T, number int64, body string)
}

// Run runs the contract; each test gets a fixture of its own.
func Run(t *testing.T, fixture func(t *testing.T) Fixture) {
	tests := []struct {
		name string
		test func(t *testing.T, ctx context.Context, f Fixture)
	}{
		{"a pull request is opened, found, changed and closed", pullRequestLife},
		{"a second pull request for the same branches is a conflict, and ensuring one is not", ensureOnce},
		{"a merge lands on the base branch, once", mergeOnce},
		{"a merge of another head than expected is refused", mergeExpectedHead},
		{"branches that changed the same line do not merge", mergeConflict},
		{"a required check holds the merge back until it is successful", requiredCheck},
		{"a comment with a marker exists once", commentOnce},
		{"a comment that a stranger planted is left alone", commentPlanted},
		{"the latest status of each context counts", statuses},
		{"a deployment is shown in its environment", deployments},
		{"protection is set and read back", protection},
		{"there is one webhook to a URL", webhooks},
		{"a file is read at a branch and at a commit", files},
		{"what does not exist is not found", notFound},
		{"a wrong token is unauthorized and says what to do", unauthorized},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			tt.test(t, ctx, fixture(t))
		})
	}
}

func pullRequestLife(t *testing.T, ctx context.Context, f Fixture) {
	head := f.Commit(t, "release/worker-1", "a.txt", "a")
	pr := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "Release worker 1", Body: "Why:\n\nit is new", Head: "release/worker-1", Base: "main"}))(t)
	if pr.Number == 0 || pr.State != forge.Open || pr.HeadSHA != head || pr.Head != "release/worker-1" || pr.Base != "main" || pr.URL == "" || pr.Author == "" {
		t.Errorf("opened %+v, want open from release/worker-1 at %s", pr, head)
	}
	equal(t, "pull request by number", must(f.Repository.PullRequest(ctx, pr.Number))(t).Title, "Release worker 1")

	find := func(q forge.Query) int { return len(must(f.Repository.FindPullRequests(ctx, q))(t)) }
	equal(t, "open ones from the branch", find(forge.Query{Head: "release/worker-1", Base: "main"}), 1)
	equal(t, "open ones from another branch", find(forge.Query{Head: "release/worker"}), 0)
	equal(t, "merged ones", find(forge.Query{State: forge.Merged}), 0)

	title := "Release worker 1 to Oregon"
	changed := must(f.Repository.UpdatePullRequest(ctx, pr.Number, forge.Change{Title: &title}))(t)
	equal(t, "changed title", changed.Title, title)
	equal(t, "body that was left as it is", changed.Body, "Why:\n\nit is new")

	for range 2 {
		check(t, f.Repository.ClosePullRequest(ctx, pr.Number))
	}
	equal(t, "closed ones", find(forge.Query{Head: "release/worker-1", State: forge.Closed}), 1)
	equal(t, "open ones after closing", find(forge.Query{}), 0)
}

func ensureOnce(t *testing.T, ctx context.Context, f Fixture) {
	f.Commit(t, "release/ui-1", "a.txt", "a")
	proposal := forge.Proposal{Title: "Release ui 1", Body: "one", Head: "release/ui-1", Base: "main"}
	first, opened, err := forge.EnsurePullRequest(ctx, f.Repository, proposal)
	check(t, err)
	equal(t, "opened at first", opened, true)
	_, err = f.Repository.OpenPullRequest(ctx, proposal)
	wantCode(t, err, forge.Conflict)

	proposal.Body = "two"
	second, opened, err := forge.EnsurePullRequest(ctx, f.Repository, proposal)
	check(t, err)
	equal(t, "opened again", opened, false)
	equal(t, "number", second.Number, first.Number)
	equal(t, "body", second.Body, "two")
}

func mergeOnce(t *testing.T, ctx context.Context, f Fixture) {
	head := f.Commit(t, "release/worker-2", "b.txt", "content")
	pr := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "Release worker 2", Head: "release/worker-2", Base: "main"}))(t)
	commit := must(f.Repository.MergePullRequest(ctx, pr.Number, forge.Merge{HeadSHA: head, Title: "Release worker 2 (#1)"}))(t)
	equal(t, "commit on main", must(f.Repository.Head(ctx, "main"))(t), commit)
	equal(t, "file on main", string(must(f.Repository.ReadFile(ctx, "main", "b.txt"))(t)), "content")
	equal(t, "commit of a repeated merge", must(f.Repository.MergePullRequest(ctx, pr.Number, forge.Merge{HeadSHA: head}))(t), commit)
	merged := must(f.Repository.PullRequest(ctx, pr.Number))(t)
	equal(t, "state", merged.State, forge.Merged)
	equal(t, "merge commit", merged.MergeCommit, commit)
	equal(t, "merged ones", len(must(f.Repository.FindPullRequests(ctx, forge.Query{State: forge.Merged}))(t)), 1)
	wantCode(t, f.Repository.ClosePullRequest(ctx, pr.Number), forge.Conflict)
}

func mergeExpectedHead(t *testing.T, ctx context.Context, f Fixture) {
	seen := f.Commit(t, "release/worker-3", "c.txt", "reviewed")
	pr := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "Release worker 3", Head: "release/worker-3", Base: "main"}))(t)
	f.Commit(t, "release/worker-3", "c.txt", "not reviewed")
	eventually(t, "the pull request has the new head", func() bool {
		return must(f.Repository.PullRequest(ctx, pr.Number))(t).HeadSHA != seen
	})
	_, err := f.Repository.MergePullRequest(ctx, pr.Number, forge.Merge{HeadSHA: seen})
	wantCode(t, err, forge.Conflict)
}

func mergeConflict(t *testing.T, ctx context.Context, f Fixture) {
	for _, branch := range []string{"one", "two"} {
		f.Commit(t, branch, "README.md", "changed by "+branch)
	}
	one := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "one", Head: "one", Base: "main"}))(t)
	two := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "two", Head: "two", Base: "main"}))(t)
	must(f.Repository.MergePullRequest(ctx, one.Number, forge.Merge{}))(t)
	_, err := f.Repository.MergePullRequest(ctx, two.Number, forge.Merge{})
	wantCode(t, err, forge.Conflict)
}

func requiredCheck(t *testing.T, ctx context.Context, f Fixture) {
	check(t, f.Repository.Protect(ctx, "main", forge.Protection{RequiredChecks: []string{"omnivision/plan"}}))
	head := f.Commit(t, "release/worker-4", "d.txt", "d")
	pr := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "Release worker 4", Head: "release/worker-4", Base: "main"}))(t)
	_, err := f.Repository.MergePullRequest(ctx, pr.Number, forge.Merge{})
	wantCode(t, err, forge.NotReady)
	check(t, f.Repository.SetStatus(ctx, head, forge.Status{Context: "omnivision/plan", State: forge.Failure}))
	_, err = f.Repository.MergePullRequest(ctx, pr.Number, forge.Merge{})
	wantCode(t, err, forge.NotReady)
	check(t, f.Repository.SetStatus(ctx, head, forge.Status{Context: "omnivision/plan", State: forge.Success}))
	must(f.Repository.MergePullRequest(ctx, pr.Number, forge.Merge{}))(t)
}

func commentOnce(t *testing.T, ctx context.Context, f Fixture) {
	f.Commit(t, "release/worker-5", "e.txt", "e")
	pr := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "Release worker 5", Head: "release/worker-5", Base: "main"}))(t)
	first := must(f.Repository.Comment(ctx, pr.Number, "plan", "cluster-aws changes"))(t)
	same := must(f.Repository.Comment(ctx, pr.Number, "plan", "cluster-aws changes"))(t)
	changed := must(f.Repository.Comment(ctx, pr.Number, "plan", "nothing changes"))(t)
	other := must(f.Repository.Comment(ctx, pr.Number, "canary", "5 %"))(t)
	equal(t, "id of the repeated comment", same.ID, first.ID)
	equal(t, "id of the changed comment", changed.ID, first.ID)
	if !strings.HasSuffix(changed.Body, "nothing changes") || changed.URL == "" {
		t.Errorf("changed comment is %+v", changed)
	}
	if other.ID == first.ID {
		t.Error("another marker changed the first one's comment")
	}
}

func commentPlanted(t *testing.T, ctx context.Context, f Fixture) {
	f.Commit(t, "release/worker-6", "f.txt", "f")
	pr := must(f.Repository.OpenPullRequest(ctx, forge.Proposal{Title: "Release worker 6", Head: "release/worker-6", Base: "main"}))(t)
	f.StrangerComments(t, pr.Number, forge.Mark("plan", "nothing to see here"))
	first := must(f.Repository.Comment(ctx, pr.Number, "plan", "cluster-gcp changes"))(t)
	second := must(f.Repository.Comment(ctx, pr.Number, "plan", "cluster-gcp changes, really"))(t)
	equal(t, "id of our own comment", second.ID, first.ID)
}

func statuses(t *testing.T, ctx context.Context, f Fixture) {
	sha := must(f.Repository.Head(ctx, "main"))(t)
	long := strings.Repeat("word ", 60)
	for _, s := range []forge.Status{
		{Context: "omnivision/scan", State: forge.Pending, Description: "scanning"},
		{Context: "omnivision/plan", State: forge.Errored, Description: long, URL: "https://example.com/plan"},
		{Context: "omnivision/scan", State: forge.Success, Description: "no findings", URL: "https://example.com/scan"},
		{Context: "omnivision/scan", State: forge.Success, Description: "no findings", URL: "https://example.com/scan"},
	} {
		check(t, f.Repository.SetStatus(ctx, sha, s))
	}
	for _, ref := range []string{sha, "main"} {
		got := must(f.Repository.Statuses(ctx, ref))(t)
		if len(got) != 2 {
			t.Fatalf("statuses of %s are %+v, want two", ref, got)
		}
		equal(t, "first", got[0], forge.Status{Context: "omnivision/plan", State: forge.Errored, Description: long, URL: "https://example.com/plan"}.Trimmed())
		equal(t, "second", got[1], forge.Status{Context: "omnivision/scan", State: forge.Success, Description: "no findings", URL: "https://example.com/scan"})
	}
}

func deployments(t *testing.T, ctx context.Context, f Fixture) {
	sha := must(f.Repository.Head(ctx, "main"))(t)
	for _, d := range []forge.Deployment{
		{SHA: sha, Environment: "cluster-aws", State: forge.InProgress, Description: "canary at 5 %"},
		{SHA: sha, Environment: "cluster-gcp", State: forge.Queued},
		{SHA: sha, Environment: "cluster-aws", State: forge.Deployed, Description: "promoted", URL: "https://example.com/rollout"},
		{SHA: sha, Environment: "cluster-gcp", State: forge.Failed, Description: "Xid 79: node quarantined"},
		{SHA: sha, Environment: "cluster-gcp", State: forge.Failed, Description: "Xid 79: node quarantined"},
	} {
		check(t, f.Repository.ReportDeployment(ctx, d))
	}
	got := must(f.Repository.Deployments(ctx, sha))(t)
	want := []forge.Deployment{
		{SHA: sha, Environment: "cluster-aws", State: forge.Deployed, Description: "promoted", URL: "https://example.com/rollout"},
		{SHA: sha, Environment: "cluster-gcp", State: forge.Failed, Description: "Xid 79: node quarantined"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("deployments are\n%+v, want\n%+v", got, want)
	}
	equal(t, "statuses that are no deployments", len(must(f.Repository.Statuses(ctx, sha))(t)), 0)
}

func protection(t *testing.T, ctx context.Context, f Fixture) {
	_, err := f.Repository.Protection(ctx, "main")
	wantCode(t, err, forge.NotFound)
	for _, want := range []forge.Protection{
		{RequiredChecks: []string{"build / test [race]", "omnivision/plan"}, UpToDate: true, Approvals: 1},
		{RequiredChecks: []string{"omnivision/plan"}},
	} {
		check(t, f.Repository.Protect(ctx, "main", want))
		got := must(f.Repository.Protection(ctx, "main"))(t)
		if !slices.Equal(got.RequiredChecks, want.RequiredChecks) || got.UpToDate != want.UpToDate || got.Approvals != want.Approvals || len(got.DirectPush) != 0 {
			t.Errorf("protection is %+v, want %+v", got, want)
		}
	}
}

func webhooks(t *testing.T, ctx context.Context, f Fixture) {
	const url = "https://argocd.example.com/api/webhook"
	must(f.Repository.EnsureWebhook(ctx, forge.Webhook{URL: url, Secret: "one"}))(t)
	second := must(f.Repository.EnsureWebhook(ctx, forge.Webhook{URL: url, Secret: "one"}))(t)
	third := must(f.Repository.EnsureWebhook(ctx, forge.Webhook{URL: url, Secret: "two", Events: []string{"push", "pull_request"}}))(t)
	list := must(f.Repository.Webhooks(ctx))(t)
	if len(list) != 1 || list[0].ID != third.ID || list[0].URL != url || !slices.Contains(list[0].Events, "pull_request") {
		t.Errorf("webhooks are %+v, want the last one alone; before it was %+v", list, second)
	}
	for range 2 {
		check(t, f.Repository.DeleteWebhook(ctx, third.ID))
	}
	equal(t, "webhooks after deletion", len(must(f.Repository.Webhooks(ctx))(t)), 0)
}

func files(t *testing.T, ctx context.Context, f Fixture) {
	old := f.Commit(t, "values", "infrastructure/cluster-aws/values.yaml", "tag: \"1.0\"\n")
	f.Commit(t, "values", "infrastructure/cluster-aws/values.yaml", "tag: \"1.1\"\n")
	read := func(ref string) string {
		return string(must(f.Repository.ReadFile(ctx, ref, "infrastructure/cluster-aws/values.yaml"))(t))
	}
	equal(t, "at the branch", read("values"), "tag: \"1.1\"\n")
	equal(t, "at the commit", read(old), "tag: \"1.0\"\n")
	_, err := f.Repository.ReadFile(ctx, "values", "infrastructure")
	wantCode(t, err, forge.Invalid)
}

func notFound(t *testing.T, ctx context.Context, f Fixture) {
	none := strings.Repeat("0123456789", 4)
	for what, call := range map[string]func() error{
		"pull request": func() error { _, err := f.Repository.PullRequest(ctx, 999); return err },
		"branch":       func() error { _, err := f.Repository.Head(ctx, "no/such"); return err },
		"file":         func() error { _, err := f.Repository.ReadFile(ctx, "main", "no/such"); return err },
		"commit": func() error {
			return f.Repository.SetStatus(ctx, none, forge.Status{Context: "a", State: forge.Success})
		},
		"repository": func() error { _, err := f.Missing.Head(ctx, "main"); return err },
	} {
		t.Run(what, func(t *testing.T) { wantCode(t, call(), forge.NotFound) })
	}
}

func unauthorized(t *testing.T, ctx context.Context, f Fixture) {
	_, err := f.WrongToken.OpenPullRequest(ctx, forge.Proposal{Title: "x", Head: "x", Base: "main"})
	wantCode(t, err, forge.Unauthorized)
	var e *forge.Error
	if errors.As(err, &e) && e.Next == "" {
		t.Errorf("%q does not say what to do", err)
	}
}

// must returns what a call returned, or ends the test.
func must[T any](value T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
	}
}

func wantCode(t *testing.T, err error, code forge.Code) {
	t.Helper()
	if !errors.Is(err, code) {
		t.Errorf("error is %v, want one that is %q", err, string(code))
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s until %s", what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
