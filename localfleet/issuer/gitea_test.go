package issuer

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea/giteatest"
)

var instance giteatest.Instance

func TestMain(m *testing.M) {
	code := m.Run()
	instance.Close()
	os.Exit(code)
}

func TestForgeEventsAreNamedAsGitHubDoes(t *testing.T) {
	for name, tc := range map[string]struct{ event, ref, want string }{
		"push":                  {"push", "refs/heads/main", "push"},
		"tag":                   {"push", "refs/tags/v1", "push"},
		"pull request":          {"pull_request", "refs/pull/1/head", "pull_request"},
		"push to pull request":  {"pull_request_sync", "refs/pull/1/head", "pull_request"},
		"target of one":         {"pull_request_sync", "refs/heads/main", "pull_request_target"},
		"review of one":         {"pull_request_review_approved", "refs/pull/1/head", "pull_request"},
		"schedule":              {"schedule", "refs/heads/main", "schedule"},
		"by hand":               {"workflow_dispatch", "refs/heads/main", "workflow_dispatch"},
		"a branch called pull/": {"push", "refs/heads/pull/1", "push"},
	} {
		if got := githubEvent(tc.event, tc.ref); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestOnlyAJobThatAskedForItMayHaveAToken(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml, job string
		want      bool
	}{
		"nobody asked":              {"jobs: {release: {}}", "release", false},
		"the workflow asked":        {"permissions: {id-token: write}\njobs: {release: {}}", "release", true},
		"the job asked":             {"permissions: {}\njobs: {release: {permissions: {id-token: write}}}", "release", true},
		"the job gave it up":        {"permissions: {id-token: write}\njobs: {release: {permissions: {contents: read}}}", "release", false},
		"it only reads":             {"permissions: {id-token: read}\njobs: {release: {}}", "release", false},
		"all":                       {"permissions: write-all\njobs: {release: {}}", "release", true},
		"read all":                  {"permissions: read-all\njobs: {release: {}}", "release", false},
		"by its name":               {"jobs: {release: {name: Take it, permissions: {id-token: write}}}", "Take it", true},
		"another job asked":         {"jobs: {release: {permissions: {id-token: write}}, test: {}}", "test", false},
		"two of one name":           {"jobs: {a: {name: x, permissions: {id-token: write}}, b: {name: x}}", "x", false},
		"one of a matrix":           {"permissions: {id-token: write}\njobs: {release: {}}", "release (worker, 1)", true},
		"a job that is not there":   {"permissions: {id-token: write}\njobs: {release: {}}", "other", false},
		"described somewhere else":  {"permissions: {id-token: write}\njobs: {release: {uses: ./.github/workflows/x.yaml}}", "release", false},
		"a name that is made later": {"jobs: {release: {permissions: {id-token: write}}, x: {name: 'y ${{ matrix.z }}'}}", "release", false},
	} {
		j := Job{WorkflowPath: "x.yaml"}
		err := j.applyWorkflow([]byte(tc.yaml), tc.job)
		if (err == nil) != tc.want || err != nil && !errors.Is(err, ErrNotPermitted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The real forge and its runner: a job asks for its token as the conveyor does.
func TestJobOfARealForgeGetsItsIdentity(t *testing.T) {
	server := instance.Server(t)
	if _, err := os.Stat(instance.Engines().Runner); err != nil && os.Getenv("CI") == "" {
		t.Skipf("no runner: %v", err)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the job asks with curl, which is not here")
	}
	data := instance.Config().DataDir
	tokenFile := server.TokenFile("fleet")
	key, err := LoadOrCreateKey(t.TempDir())
	check(t, err)
	issuer, err := New(ActionsURL, key)
	check(t, err)
	seen := make(chan JobID, 8)
	actions := Actions{
		Issuer: issuer, Log: quiet,
		Jobs:   noting{Gitea{URL: server.URL(), Token: func() (string, error) { return readSecret(tokenFile) }}, seen},
		Secret: func() ([]byte, error) { return readRuntimeSecret(filepath.Join(data, "secrets", "jwt-secret")) },
	}
	answers := make(chan string, 8)
	address := serveFor(t, actions.Handler(), answers)

	name := forge.Name{Owner: "omnivision", Repository: "identity"}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	check(t, server.EnsureOrganisation(ctx, name.Owner))
	check(t, server.EnsureRepository(ctx, name, gitea.Work))
	check(t, server.EnsureRunner(ctx, gitea.Runner{
		Name: "runner", Program: instance.Engines().Runner, DataDir: filepath.Join(instance.Dir(), "runner"),
		UID: giteatest.UID + 1, GID: giteatest.GID + 1,
		Env: []string{"ACTIONS_ID_TOKEN_REQUEST_URL=http://" + address + "/token?api-version=2"},
	}))
	dir := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(dir, ".github/workflows"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, ".github/workflows/conveyor.yaml"), []byte(`name: conveyor
on: push
permissions: {}
jobs:
  release:
    permissions: {id-token: write}
    runs-on: ubuntu-24.04
    steps:
      - run: |
          curl -sS -o answer.json -H "Authorization: Bearer $ACTIONS_RUNTIME_TOKEN" "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=sigstore"
          curl -sS --data-binary @answer.json http://`+address+`/report
  test:
    needs: release
    runs-on: ubuntu-24.04
    steps:
      - run: |
          curl -sS -o answer.json -H "Authorization: Bearer $ACTIONS_RUNTIME_TOKEN" "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=sigstore"
          curl -sS --data-binary @answer.json http://`+address+`/report
`), 0o600))
	_, err = server.PushTree(ctx, name, dir, "main", "Ask for an identity")
	check(t, err)

	first := receive(t, ctx, answers)
	token := between(first, `"value":"`, `"`)
	if token == "" {
		t.Fatalf("the job that has the permission was told %s", first)
	}
	c := verified(t, actions.Handler(), "", token)
	for claim, want := range map[string]any{
		"sub": "repo:omnivision/identity:ref:refs/heads/main", "repository": "omnivision/identity", "repository_owner": "omnivision",
		"repository_visibility": "public", "ref": "refs/heads/main", "ref_type": "branch", "event_name": "push", "workflow": "conveyor", "run_attempt": "1", "run_number": "1",
		"workflow_ref": "omnivision/identity/.github/workflows/conveyor.yaml@refs/heads/main",
	} {
		if c[claim] != want {
			t.Errorf("%s is %v, want %v", claim, c[claim], want)
		}
	}
	if sha, _ := c["sha"].(string); len(sha) != 40 || c["repository_id"] == "0" || c["repository_owner_id"] == "0" || c["run_id"] == "0" || c["actor"] == "" {
		t.Errorf("the claims are %v", c)
	}
	if second := receive(t, ctx, answers); !strings.Contains(second, "id-token: write") {
		t.Errorf("the job without the permission was told %s", second)
	}
	// The first job has ended: its token is still good, and of no use.
	if _, err := actions.Jobs.Running(ctx, <-seen); !errors.Is(err, ErrNotRunning) {
		t.Errorf("the job that has ended: %v", err)
	}
}

// noting remembers which jobs were asked about.
type noting struct {
	Jobs
	seen chan<- JobID
}

func (n noting) Running(ctx context.Context, id JobID) (Job, error) {
	select {
	case n.seen <- id:
	default:
	}
	return n.Jobs.Running(ctx, id)
}

func between(text, before, after string) string {
	_, rest, _ := strings.Cut(text, before)
	value, _, _ := strings.Cut(rest, after)
	return value
}

func receive(t *testing.T, ctx context.Context, from <-chan string) string {
	t.Helper()
	select {
	case text := <-from:
		return text
	case <-ctx.Done():
		t.Fatal("no job asked in time")
		return ""
	}
}

// serveFor serves a handler, and a path that jobs report to.
func serveFor(t *testing.T, h http.Handler, reports chan<- string) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("POST /report", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<16))
		reports <- string(body)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}
