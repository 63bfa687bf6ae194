package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/forgetest"
)

func connect(t *testing.T, url, token, login string) *Client {
	t.Helper()
	client, err := New(Options{URL: url, Token: forge.StaticToken(token), Login: login})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

var gitops = forge.Name{Owner: "omnivision", Repository: "gitops"}

func TestGitHubFulfilsTheContract(t *testing.T) {
	forgetest.Run(t, func(t *testing.T) forgetest.Fixture {
		fake, server := newFakeGitHub(t)
		client := connect(t, server.URL, validToken, "")
		return forgetest.Fixture{
			Repository: client.Repository(gitops),
			WrongToken: connect(t, server.URL, "ghs_wrong", "").Repository(gitops),
			Missing:    client.Repository(forge.Name{Owner: "omnivision", Repository: "missing"}),
			Commit: func(_ *testing.T, branch, path, content string) string {
				return fake.commit(branch, path, content)
			},
			StrangerComments: func(_ *testing.T, number int64, body string) {
				fake.mu.Lock()
				defer fake.mu.Unlock()
				fake.addComment(strconv.FormatInt(number, 10), "stranger", body)
			},
		}
	})
}

func TestFindPullRequestsIgnoresForks(t *testing.T) {
	fake, server := newFakeGitHub(t)
	fake.commit("release/x", "a", "a")
	for _, repo := range []string{"stranger/gitops", "omnivision/gitops-fork"} {
		fake.pulls = append(fake.pulls, &fakePull{number: len(fake.pulls) + 1, head: "release/x", base: "main", state: "open", headRepo: repo})
	}
	got, err := connect(t, server.URL, validToken, "").Repository(gitops).FindPullRequests(t.Context(), forge.Query{Head: "release/x"})
	if err != nil || len(got) != 0 {
		t.Errorf("found %+v, %v; want none: they are from forks", got, err)
	}
}

func TestFindPullRequestsReadsAllPages(t *testing.T) {
	fake, server := newFakeGitHub(t)
	for i := range 250 {
		fake.pulls = append(fake.pulls, &fakePull{number: i + 1, head: fmt.Sprintf("branch-%d", i), base: "main", state: "open", headRepo: "omnivision/gitops"})
	}
	got, err := connect(t, server.URL, validToken, "").Repository(gitops).FindPullRequests(t.Context(), forge.Query{Limit: 240})
	if err != nil || len(got) != 240 || got[0].Number != 250 {
		t.Errorf("found %d pull requests, %v; want the newest 240", len(got), err)
	}
}

func TestCheckRunsAreStatuses(t *testing.T) {
	fake, server := newFakeGitHub(t)
	sha := fake.branches["main"]
	fake.runs[sha] = []map[string]any{
		{"id": 1, "name": "build", "status": "completed", "conclusion": "success", "html_url": "https://github.com/omnivision/gitops/runs/1", "output": map[string]any{"title": "built"}},
		{"id": 2, "name": "lint", "status": "completed", "conclusion": "skipped"},
		{"id": 3, "name": "plan", "status": "in_progress", "conclusion": nil},
		{"id": 4, "name": "scan", "status": "completed", "conclusion": "timed_out"},
		{"id": 5, "name": "test", "status": "completed", "conclusion": "failure"},
	}
	got, err := connect(t, server.URL, validToken, "").Repository(gitops).Statuses(t.Context(), sha)
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, s := range got {
		states = append(states, s.Context+" "+string(s.State))
	}
	want := "build success, lint success, plan pending, scan error, test failure"
	if strings.Join(states, ", ") != want {
		t.Errorf("statuses are %s, want %s", strings.Join(states, ", "), want)
	}
}

func TestUnchangedStatusIsNotWrittenAgain(t *testing.T) {
	fake, server := newFakeGitHub(t)
	repo := connect(t, server.URL, validToken, "").Repository(gitops)
	for range 3 {
		if err := repo.SetStatus(t.Context(), fake.branches["main"], forge.Status{Context: "plan", State: forge.Success, Description: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(fake.statuses[fake.branches["main"]]); n != 1 {
		t.Errorf("wrote %d statuses, want 1: GitHub takes 1000 for a commit and context", n)
	}
}

func TestWebhookSecretIsReplaced(t *testing.T) {
	fake, server := newFakeGitHub(t)
	repo := connect(t, server.URL, validToken, "").Repository(gitops)
	var id int64
	for _, secret := range []string{"one", "two"} {
		hook, err := repo.EnsureWebhook(t.Context(), forge.Webhook{URL: "https://argocd.example.com/api/webhook", Secret: secret})
		if err != nil {
			t.Fatal(err)
		}
		id = hook.ID
	}
	if fake.secrets[int(id)] != "two" {
		t.Errorf("secret is %q, want the new one", fake.secrets[int(id)])
	}
}

// Answers of https://docs.github.com/rest/using-the-rest-api/troubleshooting-the-rest-api.
func TestErrorsAreClassified(t *testing.T) {
	reset := strconv.FormatInt(time.Now().Add(90*time.Second).Unix(), 10)
	tests := []struct {
		name   string
		status int
		header map[string]string
		body   string
		code   forge.Code
		retry  time.Duration
	}{
		{"primary rate limit", 403, map[string]string{"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset},
			`{"message":"API rate limit exceeded for installation ID 1."}`, forge.RateLimited, 90 * time.Second},
		{"secondary rate limit with a time", 403, map[string]string{"Retry-After": "30"},
			`{"message":"You have exceeded a secondary rate limit.","documentation_url":"https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"}`, forge.RateLimited, 30 * time.Second},
		{"secondary rate limit without a time", 429, nil,
			`{"message":"You have exceeded a secondary rate limit.","documentation_url":"https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"}`, forge.RateLimited, time.Minute},
		{"a token without the permission", 403, nil, `{"message":"Resource not accessible by integration","status":"403"}`, forge.Unauthorized, 0},
		{"a bad token", 401, nil, `{"message":"Bad credentials"}`, forge.Unauthorized, 0},
		{"a commit that is not there", 422, nil, `{"message":"No commit found for SHA: 1234"}`, forge.NotFound, 0},
		{"a wrong field", 422, nil, `{"message":"Validation Failed","errors":[{"resource":"Status","field":"state","code":"invalid"}]}`, forge.Invalid, 0},
		{"an outage", 502, nil, `<html>Unicorn</html>`, forge.Unavailable, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for key, value := range tt.header {
					w.Header().Set(key, value)
				}
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			}))
			defer server.Close()
			_, err := connect(t, server.URL, validToken, "").Repository(gitops).Head(t.Context(), "main")
			if !errors.Is(err, tt.code) {
				t.Fatalf("error is %v, want one that is %q", err, string(tt.code))
			}
			wait, _ := forge.RetryAfter(err)
			if wait < tt.retry-3*time.Second || wait > tt.retry+3*time.Second {
				t.Errorf("retry after %s, want %s", wait, tt.retry)
			}
			var e *forge.Error
			if errors.As(err, &e); e.Next == "" || !strings.Contains(e.Op, "omnivision/gitops") {
				t.Errorf("%q does not say what to do, or where it happened", err)
			}
		})
	}
}

func TestUnreachableForgeIsUnavailable(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	_, err := connect(t, server.URL, validToken, "").Repository(gitops).Head(t.Context(), "main")
	if !errors.Is(err, forge.Unavailable) {
		t.Errorf("error is %v, want one that is %q", err, string(forge.Unavailable))
	}
}

func TestTokenStaysWithTheForgesHost(t *testing.T) {
	var leaked string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { leaked = r.Header.Get("Authorization") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	_, _ = connect(t, server.URL, validToken, "").Repository(gitops).PullRequest(t.Context(), 1)
	if leaked != "" {
		t.Errorf("another host was sent %q", leaked)
	}
}

func TestTokenIsReadForEachRequest(t *testing.T) {
	_, server := newFakeGitHub(t)
	tokens := []string{"expired", validToken}
	client, err := New(Options{URL: server.URL, Token: func(context.Context) (string, error) {
		token := tokens[0]
		tokens = tokens[1:]
		return token, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Repository(gitops).Head(t.Context(), "main"); !errors.Is(err, forge.Unauthorized) {
		t.Errorf("the expired token gave %v", err)
	}
	if _, err := client.Repository(gitops).Head(t.Context(), "main"); err != nil {
		t.Errorf("the replaced token gave %v", err)
	}
}
