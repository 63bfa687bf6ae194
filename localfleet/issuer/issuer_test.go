package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/omnivision/omnivision/internal/freeport"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	quiet  = slog.New(slog.NewTextHandler(io.Discard, nil))
	secret = []byte("0123456789abcdef0123456789abcdef")
)

// runtimeToken is a job's as Gitea makes it; change makes it wrong.
func runtimeToken(t testing.TB, key []byte, change func(map[string]any)) string {
	t.Helper()
	c := map[string]any{
		"exp": time.Now().Add(time.Hour).Unix(), "nbf": time.Now().Unix(), "scp": "Actions.Results:7:9",
		"TaskID": 11, "RunID": 7, "JobID": 9, "ac": `[{"Scope":"","Permission":2}]`,
	}
	if change != nil {
		change(c)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, nil)
	check(t, err)
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	check(t, err)
	return token
}

// oneJob is a forge on which one job runs, or fails to be asked about.
type oneJob struct {
	job    Job
	err    error
	broken error
}

func (o oneJob) Running(_ context.Context, id JobID) (Job, error) {
	if o.broken != nil {
		return Job{}, o.broken
	}
	if o.err != nil || id != (JobID{7, 9}) {
		if o.err == nil {
			o.err = ErrNotRunning
		}
		return Job{}, o.err
	}
	return o.job, nil
}

var released = Job{
	Owner: "omnivision", OwnerID: 3, Repository: "omnivision", RepositoryID: 5, Visibility: "public",
	Workflow: "conveyor", WorkflowPath: ".github/workflows/conveyor.yaml", Ref: "refs/heads/main",
	SHA: "1234567890123456789012345678901234567890", Event: "push", RunID: 7, RunNumber: 2, Attempt: 1, Actor: "ada", ActorID: 4,
}

// testKey is one for all tests: they take a while to make.
var testKey = sync.OnceValues(func() (*Key, error) {
	dir, err := os.MkdirTemp("", "issuer")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return LoadOrCreateKey(dir)
})

func newActions(t testing.TB, jobs Jobs) Actions {
	t.Helper()
	key, err := testKey()
	check(t, err)
	i, err := New(ActionsURL, key)
	check(t, err)
	return Actions{Issuer: i, Jobs: jobs, Secret: func() ([]byte, error) { return secret, nil }, Log: quiet}
}

func ask(t testing.TB, h http.Handler, target, authorization string) (status int, value, message string) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, target, nil)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, req)
	var answer struct{ Value, Message string }
	check(t, json.Unmarshal(recorder.Body.Bytes(), &answer))
	return recorder.Code, answer.Value, answer.Message
}

func verified(t testing.TB, h http.Handler, path, token string) map[string]any {
	t.Helper()
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path+"/.well-known/jwks", nil))
	var keys jose.JSONWebKeySet
	check(t, json.Unmarshal(recorder.Body.Bytes(), &keys))
	if !keys.Keys[0].IsPublic() {
		t.Fatal("the issuer serves its private key")
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	check(t, err)
	var c map[string]any
	check(t, parsed.Claims(keys, &c))
	return c
}

func TestRunningJobGetsATokenOfGitHubsShape(t *testing.T) {
	h := newActions(t, oneJob{job: released}).Handler()
	status, token, message := ask(t, h, "/token?audience=sigstore", "Bearer "+runtimeToken(t, secret, nil))
	if status != http.StatusOK {
		t.Fatalf("the answer is %d: %s", status, message)
	}
	c := verified(t, h, "", token)
	workflow := "omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"
	for name, want := range map[string]any{
		"iss": ActionsURL, "aud": "sigstore", "sub": "repo:omnivision/omnivision:ref:refs/heads/main",
		"repository": "omnivision/omnivision", "repository_id": "5", "repository_owner": "omnivision", "repository_owner_id": "3",
		"repository_visibility": "public", "ref": "refs/heads/main", "ref_type": "branch", "sha": released.SHA,
		"workflow": "conveyor", "workflow_ref": workflow, "workflow_sha": released.SHA, "job_workflow_ref": workflow, "job_workflow_sha": released.SHA,
		"event_name": "push", "runner_environment": "self-hosted", "run_id": "7", "run_number": "2", "run_attempt": "1", "actor": "ada", "actor_id": "4",
	} {
		if c[name] != want {
			t.Errorf("%s is %v, want %v", name, c[name], want)
		}
	}
	if span := c["exp"].(float64) - c["iat"].(float64); span != 300 {
		t.Errorf("it is valid for %v s", span)
	}
	_, again, _ := ask(t, h, "/token?audience=sigstore", "Bearer "+runtimeToken(t, secret, nil))
	if c["jti"] == "" || verified(t, h, "", again)["jti"] == c["jti"] {
		t.Error("two tokens have one name")
	}
}

func TestPullRequestIsToldFromItsBranch(t *testing.T) {
	job := released
	job.Event, job.Ref, job.HeadRef, job.BaseRef = eventPullRequest, "refs/pull/12/head", "topic", "main"
	h := newActions(t, oneJob{job: job}).Handler()
	_, token, _ := ask(t, h, "/token?audience=sigstore", "Bearer "+runtimeToken(t, secret, nil))
	c := verified(t, h, "", token)
	if c["sub"] != "repo:omnivision/omnivision:pull_request" || c["ref"] != "refs/pull/12/head" || c["head_ref"] != "topic" || c["base_ref"] != "main" {
		t.Errorf("the claims are %v", c)
	}
}

func TestWhoGetsNoToken(t *testing.T) {
	good := "Bearer " + runtimeToken(t, secret, nil)
	with := func(change func(map[string]any)) string { return "Bearer " + runtimeToken(t, secret, change) }
	none, _ := jwt.Signed(mustSigner(t)).Claims(map[string]any{"RunID": 7, "JobID": 9, "scp": "Actions.Results:7:9", "exp": time.Now().Add(time.Hour).Unix()}).Serialize()
	for name, tc := range map[string]struct {
		authorization string
		jobs          oneJob
		status        int
		message       string
	}{
		"nobody":                 {"", oneJob{job: released}, 401, "ACTIONS_RUNTIME_TOKEN"},
		"another scheme":         {"Basic abc", oneJob{job: released}, 401, "ACTIONS_RUNTIME_TOKEN"},
		"no token":               {"Bearer abc", oneJob{job: released}, 401, "is none"},
		"forged":                 {"Bearer " + runtimeToken(t, []byte("another secret of thirty-two byte"), nil), oneJob{job: released}, 401, "not made by this forge"},
		"signed by a public key": {"Bearer " + none, oneJob{job: released}, 401, "is none"},
		"expired":                {with(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }), oneJob{job: released}, 401, "not valid now"},
		"not yet":                {with(func(c map[string]any) { c["nbf"] = time.Now().Add(time.Hour).Unix() }), oneJob{job: released}, 401, "not valid now"},
		"for ever":               {with(func(c map[string]any) { delete(c, "exp") }), oneJob{job: released}, 401, "has no end"},
		"scope of another job":   {with(func(c map[string]any) { c["scp"] = "Actions.Results:7:8" }), oneJob{job: released}, 401, "not a job's"},
		"for packages":           {with(func(c map[string]any) { delete(c, "RunID"); delete(c, "scp") }), oneJob{job: released}, 401, "not a job's"},
		"job that has ended":     {good, oneJob{err: ErrNotRunning}, 403, "does not run"},
		"job without permission": {good, oneJob{err: ErrNotPermitted}, 403, "may have no identity"},
		"forge that fails":       {good, oneJob{broken: errors.New("the forge is down")}, 502, "the forge is down"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, value, message := ask(t, newActions(t, tc.jobs).Handler(), "/token?audience=sigstore", tc.authorization); status != tc.status || !strings.Contains(message, tc.message) || value != "" {
				t.Errorf("the answer is %d %q, token %q", status, message, value)
			}
		})
	}
}

func mustSigner(t testing.TB) jose.Signer {
	t.Helper()
	key, err := LoadOrCreateKey(t.TempDir())
	check(t, err)
	signer, err := key.signer()
	check(t, err)
	return signer
}

func TestKeyIsKeptAndOnlyItsOwnersToRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := LoadOrCreateKey(dir)
	check(t, err)
	second, err := LoadOrCreateKey(dir)
	check(t, err)
	if first.id != second.id || !first.private.Equal(second.private) {
		t.Error("a restart made another key")
	}
	info, err := os.Stat(filepath.Join(dir, "issuer.key"))
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v", info.Mode())
	}
	check(t, os.WriteFile(filepath.Join(dir, "issuer.key"), []byte("junk"), 0o600))
	if _, err := LoadOrCreateKey(dir); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("a broken key: %v", err)
	}
}

// serving runs the issuers of a configuration until the test ends.
func serving(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	config := Config{
		StateDir: filepath.Join(dir, "state"),
		Actions:  ActionsConfig{Listen: freeport.Address(t), ForgeURL: "http://127.0.0.1:1", ForgeTokenFile: filepath.Join(dir, "token"), RuntimeSecretFile: filepath.Join(dir, "secret")},
		People:   PeopleConfig{Listen: freeport.Address(t), Socket: filepath.Join(dir, "run", "people.sock")},
	}
	data, err := json.Marshal(config)
	check(t, err)
	path := filepath.Join(dir, "config.json")
	check(t, os.WriteFile(path, data, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, path) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	deadline, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for (Daemon{Config: config}).Ready(deadline) != nil {
		select {
		case <-deadline.Done():
			t.Fatal("not ready")
		case err := <-ended:
			t.Fatal(err)
		case <-tick.C:
		}
	}
	return config
}

func TestPersonsTokenIsHadThroughTheSocketAlone(t *testing.T) {
	config := serving(t)
	info, err := os.Stat(config.People.Socket)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v", info.Mode())
	}
	token, err := PersonToken(t.Context(), config.People.Socket, "sigstore", "ada@example.com")
	check(t, err)
	key, err := LoadOrCreateKey(config.StateDir)
	check(t, err)
	i, err := New(PeopleURL, key)
	check(t, err)
	c := verified(t, i.Handler(), "/auth", token)
	if c["iss"] != PeopleURL || c["email"] != "ada@example.com" || c["email_verified"] != true || c["aud"] != "sigstore" || c["sub"] == "" {
		t.Errorf("the claims are %v", c)
	}
	for _, email := range []string{"", "ada", "Ada <ada@example.com>", "a@b, c@d"} {
		if _, err := PersonToken(t.Context(), config.People.Socket, "sigstore", email); err == nil {
			t.Errorf("%q got a token", email)
		}
	}
	resp, err := http.Get("http://" + config.People.Listen + "/auth/token?audience=sigstore&email=ada@example.com")
	check(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("over the network the answer is %s", resp.Status)
	}
}

func TestTheFleetMaySpeakForAWorkflowThroughTheSocketAlone(t *testing.T) {
	config := serving(t)
	job := Job{Owner: "omnivision", Repository: "omnivision", WorkflowPath: ".github/workflows/conveyor.yaml", Ref: "refs/heads/main", Event: "push"}
	token, err := JobToken(t.Context(), config.People.Socket, "sigstore", job)
	check(t, err)
	key, err := LoadOrCreateKey(config.StateDir)
	check(t, err)
	i, err := New(ActionsURL, key)
	check(t, err)
	c := verified(t, i.Handler(), "", token)
	if c["iss"] != ActionsURL || c["aud"] != "sigstore" || c["job_workflow_ref"] != "omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main" {
		t.Errorf("the claims are %v", c)
	}
	if _, err := JobToken(t.Context(), config.People.Socket, "sigstore", Job{Owner: "omnivision"}); err == nil {
		t.Error("a job without a workflow got a token")
	}
	if _, err := JobToken(t.Context(), config.People.Socket, "", job); err == nil {
		t.Error("a token for nobody in particular was given")
	}
	resp, err := http.Post("http://"+config.Actions.Listen+"/job?audience=sigstore", "application/json", strings.NewReader("{}"))
	check(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("over the network the answer is %s", resp.Status)
	}
}

func TestConfigurationNamesWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct{ change, want string }{
		"unknown field": {`{"x":1}`, "unknown field"},
		"host name":     {`{"actions":{"listen":"localhost:1"}}`, "literal IP"},
		"nothing":       {`{}`, "listen"},
	} {
		if _, err := parseConfig([]byte(tc.change)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRuntimeToken(f *testing.F) {
	f.Add(runtimeToken(f, secret, nil))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		if id, err := parseRuntimeToken(token, secret, time.Now()); err == nil && (id.Run <= 0 || id.Job <= 0) {
			t.Errorf("job %v", id)
		}
	})
}
