package gitea_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/forgetest"
	"github.com/omnivision/omnivision/forge/gitea"
	localgitea "github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea/giteatest"
)

var instance giteatest.Instance

func TestMain(m *testing.M) {
	code := m.Run()
	instance.Close()
	os.Exit(code)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestGiteaFulfilsTheContract(t *testing.T) {
	server := instance.Server(t)
	ctx := t.Context()
	check(t, server.EnsureOrganisation(ctx, "omnivision"))
	check(t, server.EnsureUser(ctx, "stranger"))
	strangerToken, err := server.EnsureToken(ctx, localgitea.Token{Name: "stranger", User: "stranger", Scopes: []string{"write:issue"}})
	check(t, err)

	number := 0
	forgetest.Run(t, func(t *testing.T) forgetest.Fixture {
		number++
		name := forge.Name{Owner: "omnivision", Repository: fmt.Sprintf("contract-%d", number)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		check(t, server.EnsureRepository(ctx, name, localgitea.Work))
		repo, err := server.Forge(name)
		check(t, err)
		checkout := newCheckout(t, server, name)
		checkout.commit(t, "main", "README.md", "hello")
		return forgetest.Fixture{
			Repository: repo,
			WrongToken: connect(t, server, "0123456789012345678901234567890123456789", "nobody").Repository(name),
			Missing:    connect(t, server, adminToken(t, server), localgitea.Admin).Repository(forge.Name{Owner: "omnivision", Repository: "missing"}),
			Commit:     checkout.commit,
			StrangerComments: func(t *testing.T, number int64, body string) {
				t.Helper()
				comment(t, server, name, strangerToken, number, body)
			},
		}
	})
}

func adminToken(t *testing.T, server *localgitea.Server) string {
	t.Helper()
	data, err := os.ReadFile(server.TokenFile("fleet"))
	check(t, err)
	return string(data)
}

func connect(t *testing.T, server *localgitea.Server, token, login string) *gitea.Client {
	t.Helper()
	client, err := gitea.New(gitea.Options{URL: server.URL(), Token: forge.StaticToken(token), Login: login, Transport: server.Transport()})
	check(t, err)
	return client
}

// comment is what any user can do by hand.
func comment(t *testing.T, server *localgitea.Server, name forge.Name, token string, number int64, body string) {
	t.Helper()
	form := strings.NewReader(fmt.Sprintf(`{"body":%q}`, body))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("%sapi/v1/repos/%s/issues/%d/comments", server.URL(), name, number), form)
	check(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "token "+token)
	resp, err := (&http.Client{Transport: server.Transport()}).Do(req)
	check(t, err)
	defer resp.Body.Close() //nolint:errcheck // a test
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("commenting as a stranger: %s", resp.Status)
	}
}

// checkout is a developer's.
type checkout struct {
	dir  string
	url  string
	repo forge.Repository
}

func newCheckout(t *testing.T, server *localgitea.Server, name forge.Name) checkout {
	t.Helper()
	repo, err := server.Forge(name)
	check(t, err)
	c := checkout{repo: repo, dir: t.TempDir(), url: strings.Replace(server.URL(), "http://", "http://"+localgitea.Admin+":"+adminToken(t, server)+"@", 1) + name.String() + ".git"}
	c.git(t, "init", "--quiet", "--initial-branch=main")
	return c
}

func (c checkout) git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=tester", "-c", "user.email=tester@example.com"}, args...)...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit commits on the branch, which begins at what main was at first, and
// pushes it.
func (c checkout) commit(t *testing.T, branch, path, content string) string {
	t.Helper()
	if exec.Command("git", "-C", c.dir, "rev-parse", "--verify", "--quiet", "refs/heads/"+branch).Run() == nil {
		c.git(t, "checkout", "--quiet", branch)
	} else if branch != "main" {
		c.git(t, "checkout", "--quiet", "-b", branch, "main")
	}
	path = filepath.Join(c.dir, path)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(content), 0o644))
	c.git(t, "add", "--all")
	c.git(t, "commit", "--quiet", "-m", "Change "+filepath.Base(path))
	c.git(t, "push", "--quiet", c.url, branch)
	sha := c.git(t, "rev-parse", "HEAD")
	// Gitea knows of a push a moment after it.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		have, err := c.repo.Head(t.Context(), branch)
		if have == sha {
			return sha
		}
		if time.Now().After(deadline) {
			t.Fatalf("a minute after the push %s is %q, %v; want %s", branch, have, err, sha)
		}
	}
}

func TestEmptyRepositoryHasNothing(t *testing.T) {
	server := instance.Server(t)
	name := forge.Name{Owner: "omnivision", Repository: "empty"}
	check(t, server.EnsureOrganisation(t.Context(), name.Owner))
	check(t, server.EnsureRepository(t.Context(), name, localgitea.Work))
	repo, err := server.Forge(name)
	check(t, err)
	if _, err := repo.Head(t.Context(), "main"); !errors.Is(err, forge.NotFound) {
		t.Errorf("its main gave %v, want not found", err)
	}
	if _, err := repo.ReadFile(t.Context(), "main", "README.md"); !errors.Is(err, forge.NotFound) {
		t.Errorf("its README.md gave %v, want not found", err)
	}
}

// A required check's name is no pattern on any forge, though Gitea takes one.
func TestRequiredCheckWithBracketsIsNoPattern(t *testing.T) {
	server := instance.Server(t)
	name := forge.Name{Owner: "omnivision", Repository: "patterns"}
	check(t, server.EnsureOrganisation(t.Context(), name.Owner))
	check(t, server.EnsureRepository(t.Context(), name, localgitea.Work))
	c := newCheckout(t, server, name)
	c.commit(t, "main", "README.md", "hello")
	head := c.commit(t, "change", "a.txt", "a")
	repo, err := server.Forge(name)
	check(t, err)
	check(t, repo.Protect(t.Context(), "main", forge.Protection{RequiredChecks: []string{"test [race]", "build *"}}))
	pr, _, err := forge.EnsurePullRequest(t.Context(), repo, forge.Proposal{Title: "change", Head: "change", Base: "main"})
	check(t, err)
	for _, context := range []string{"test r", "build it"} { // what the names would match as patterns
		check(t, repo.SetStatus(t.Context(), head, forge.Status{Context: context, State: forge.Success}))
	}
	if _, err := repo.MergePullRequest(t.Context(), pr.Number, forge.Merge{}); !errors.Is(err, forge.NotReady) {
		t.Errorf("merging gave %v, want a refusal: no required check has run", err)
	}
	for _, context := range []string{"test [race]", "build *"} {
		check(t, repo.SetStatus(t.Context(), head, forge.Status{Context: context, State: forge.Success}))
	}
	_, err = repo.MergePullRequest(t.Context(), pr.Number, forge.Merge{})
	check(t, err)
}

// What a proxy before a Gitea answers.
func TestErrorsAreClassified(t *testing.T) {
	tests := []struct {
		name   string
		status int
		header string
		body   string
		code   forge.Code
		retry  time.Duration
	}{
		{"a rate limit in seconds", 429, "30", "slow down", forge.RateLimited, 30 * time.Second},
		{"a rate limit until a time", 429, time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat), "", forge.RateLimited, 90 * time.Second},
		{"a token without the scope", 403, "", `{"message":"token does not have at least one of required scope(s)"}`, forge.Unauthorized, 0},
		{"an archived repository", 423, "", `{"message":"repository is archived"}`, forge.Unauthorized, 0},
		{"a wrong field", 422, "", `{"message":"invalid"}`, forge.Invalid, 0},
		{"an outage", 502, "", "<html>", forge.Unavailable, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tt.header != "" {
					w.Header().Set("Retry-After", tt.header)
				}
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			}))
			defer server.Close()
			client, err := gitea.New(gitea.Options{URL: server.URL, Token: forge.StaticToken("x")})
			check(t, err)
			_, err = client.Repository(forge.Name{Owner: "omnivision", Repository: "gitops"}).Head(t.Context(), "main")
			if !errors.Is(err, tt.code) {
				t.Fatalf("error is %v, want one that is %q", err, string(tt.code))
			}
			if wait, _ := forge.RetryAfter(err); wait < tt.retry-3*time.Second || wait > tt.retry+3*time.Second {
				t.Errorf("retry after %s, want %s", wait, tt.retry)
			}
			var e *forge.Error
			if errors.As(err, &e); e.Next == "" || !strings.Contains(e.Op, "omnivision/gitops") {
				t.Errorf("%q does not say what to do, or where it happened", err)
			}
		})
	}
}
