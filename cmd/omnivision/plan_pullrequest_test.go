package main

import (
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// fakeForge answers what GitHub answers about one pull request.
type fakeForge struct {
	*httptest.Server
	head string

	mu       sync.Mutex
	comments []map[string]any
	statuses map[string]map[string]any // by commit
}

func newFakeForge(t *testing.T) *fakeForge {
	f := &fakeForge{statuses: map[string]map[string]any{}}
	mux := http.NewServeMux()
	const repository = "/api/v3/repos/omnivision/omnivision-gitops"
	answer := func(w http.ResponseWriter, what any) { _ = json.NewEncoder(w).Encode(what) }
	read := func(r *http.Request) map[string]any {
		var body map[string]any
		raw, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(raw, &body)
		return body
	}
	mux.HandleFunc("GET "+repository+"/pulls/7", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"number": 7, "state": "open", "head": map[string]any{"sha": f.head, "ref": "release"}, "base": map[string]any{"ref": "main"}})
	})
	mux.HandleFunc("GET "+repository+"/issues/7/comments", func(w http.ResponseWriter, _ *http.Request) { answer(w, f.comments) })
	mux.HandleFunc("POST "+repository+"/issues/7/comments", func(w http.ResponseWriter, r *http.Request) {
		comment := map[string]any{"id": 1, "body": read(r)["body"], "user": map[string]any{"login": "github-actions[bot]"}, "html_url": f.URL + "/comment"}
		f.comments = append(f.comments, comment)
		w.WriteHeader(http.StatusCreated)
		answer(w, comment)
	})
	mux.HandleFunc("PATCH "+repository+"/issues/comments/1", func(w http.ResponseWriter, r *http.Request) {
		f.comments[0]["body"] = read(r)["body"]
		answer(w, f.comments[0])
	})
	mux.HandleFunc("GET "+repository+"/commits/{sha}/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"statuses": []any{}}) })
	mux.HandleFunc("GET "+repository+"/commits/{sha}/check-runs", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"check_runs": []any{}}) })
	mux.HandleFunc("POST "+repository+"/statuses/{sha}", func(w http.ResponseWriter, r *http.Request) {
		f.statuses[r.PathValue("sha")] = read(r)
		w.WriteHeader(http.StatusCreated)
		answer(w, map[string]any{})
	})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.URL.Path != "/api/v1/version" && r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s %s is asked with %q", r.Method, r.URL, r.Header.Get("Authorization"))
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// publishedTree is a GitOps tree whose repository is the forge's.
func publishedTree(t *testing.T, f *fakeForge) string {
	t.Helper()
	dir := gitopsTree(t)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		content, err := os.ReadFile(path)
		must(t, err)
		return os.WriteFile(path, []byte(strings.ReplaceAll(string(content), "https://github.com/omnivision/omnivision-gitops", f.URL+"/omnivision/omnivision-gitops")), 0o600)
	}))
	gitIn(t, dir, "commit", "-qam", "the base")
	return dir
}

func gitIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.com"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// publish plans a commit of a change, and returns the exit code.
func publish(t *testing.T, f *fakeForge, dir, file, old, new string) (int, error) {
	t.Helper()
	edit(t, filepath.Join(dir, file), old, new)
	gitIn(t, dir, "commit", "-qam", "a change")
	f.head = gitIn(t, dir, "rev-parse", "HEAD")
	_, code, err := planned(t, "--tree", dir, "--chart-dir", "../../charts/omnivision-platform", "--chart-cache", t.TempDir(), "--offline",
		"--base", "HEAD~1", "--head", "HEAD", "--pull-request", "7")
	return code, err
}

func TestPlanIsPublishedInItsPullRequest(t *testing.T) {
	t.Setenv(forgeTokenVariable, "secret")
	t.Setenv(forgeLoginVariable, "github-actions[bot]")
	f := newFakeForge(t)
	dir := publishedTree(t, f)
	const values = "apps/omnivision-ui/cluster-gcp.yaml"
	for _, step := range []struct {
		what, file, old, new string
		code                 int
		state, comment       string
	}{
		{"a change", values, strings.Repeat("1", 64), strings.Repeat("2", 64), 0, "success", "### Plan: 1 of 2 clusters changes"},
		{"values that the chart refuses", values, "sha256:" + strings.Repeat("2", 64), "", exitUnhealthy, "failure", "ui.digest is empty"},
		{"a broken file", "fleet.yaml", "clusters:", "clusters: [", exitFailed, "failure", "### Plan: there is none"},
	} {
		code, err := publish(t, f, dir, step.file, step.old, step.new)
		if code != step.code {
			t.Errorf("%s: exit code %d, want %d: %v", step.what, code, step.code, err)
		}
		status := f.statuses[f.head]
		if status["state"] != step.state || status["context"] != "omnivision/plan" {
			t.Errorf("%s: the status is %v, want %s", step.what, status, step.state)
		}
		if len(f.comments) != 1 || !strings.Contains(f.comments[0]["body"].(string), step.comment) {
			t.Errorf("%s: the comments are %v, want one with %q", step.what, f.comments, step.comment)
		}
	}
}

func TestAChangeCannotSendTheTokenElsewhere(t *testing.T) {
	t.Setenv(forgeTokenVariable, "secret")
	t.Setenv(forgeLoginVariable, "github-actions[bot]")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) }))
	defer elsewhere.Close()
	f := newFakeForge(t)
	if _, err := publish(t, f, publishedTree(t, f), "fleet.yaml", f.URL, elsewhere.URL); len(f.statuses) != 1 {
		t.Errorf("the statuses are %v, %v", f.statuses, err)
	}
}

func TestPublishingNeedsCommitsAndAToken(t *testing.T) {
	for name, test := range map[string]struct {
		token string
		args  []string
		want  string
	}{
		"a base":   {"secret", []string{"--pull-request", "7", "--head", "HEAD"}, "needs --base and --head"},
		"a head":   {"secret", []string{"--pull-request", "7", "--base", "HEAD"}, "needs --base and --head"},
		"a token":  {"", []string{"--pull-request", "7", "--base", "HEAD", "--head", "HEAD"}, forgeTokenVariable + " is not set"},
		"a number": {"secret", []string{"--pull-request", "-7"}, "give the number"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(forgeTokenVariable, test.token)
			if _, code, err := planned(t, test.args...); code != exitUsage || !strings.Contains(err.Error(), test.want) {
				t.Errorf("exit code %d: %v, want %q", code, err, test.want)
			}
		})
	}
}
