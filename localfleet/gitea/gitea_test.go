package gitea_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport/client"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/omnivision/omnivision/forge"
	forgegitea "github.com/omnivision/omnivision/forge/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea/giteatest"
	"github.com/omnivision/omnivision/localfleet/netns"
)

// The forge of the fleet is in a network namespace, so the tests' is too. Its
// name is not one that a fleet's clean-up takes for its own.
var instance = giteatest.Instance{NetNS: fmt.Sprintf("giteatest-%d", os.Getpid())}

func TestMain(m *testing.M) {
	code := m.Run()
	instance.Close()
	os.Exit(code)
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newRepository makes an empty repository that is named after the test.
func newRepository(t *testing.T, s *gitea.Server, kind gitea.Kind) forge.Name {
	t.Helper()
	name := forge.Name{Owner: "omnivision", Repository: strings.ToLower(t.Name())}
	check(t, s.EnsureOrganisation(limited(t), name.Owner))
	check(t, s.EnsureRepository(limited(t), name, kind))
	return name
}

// tree writes files into a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, files)
	return dir
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for path, content := range files {
		path = filepath.Join(dir, path)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, []byte(content), 0o644))
	}
}

func read(t *testing.T, s *gitea.Server, name forge.Name, path string) string {
	t.Helper()
	repo, err := s.Forge(name)
	check(t, err)
	data, err := repo.ReadFile(limited(t), "main", path)
	if errors.Is(err, forge.NotFound) {
		return "(none)"
	}
	check(t, err)
	return string(data)
}

func push(t *testing.T, s *gitea.Server, name forge.Name, dir string) gitea.Push {
	t.Helper()
	p, err := s.PushTree(limited(t), name, dir, "main", "Bring the working tree")
	check(t, err)
	return p
}

// asUser returns the repository with the rights of a user who may write to it.
func asUser(t *testing.T, s *gitea.Server, name forge.Name, user string) (*forgegitea.Repository, string) {
	t.Helper()
	ctx := limited(t)
	check(t, s.EnsureUser(ctx, user))
	check(t, s.EnsureWriter(ctx, name, user))
	token, err := s.EnsureToken(ctx, gitea.Token{Name: user, User: user, Scopes: []string{"write:repository", "write:issue"}})
	check(t, err)
	c, err := forgegitea.New(forgegitea.Options{URL: s.URL(), Token: forge.StaticToken(token), Login: user, Transport: s.Transport()})
	check(t, err)
	return c.Repository(name), token
}

func TestStartAgainKeepsTheServer(t *testing.T) {
	s := instance.Server(t)
	c := instance.Config()
	before, ok := c.Supervisor.Running("gitea")
	if !ok {
		t.Fatal("it does not run")
	}
	check(t, instance.Restart(limited(t)))
	if after, _ := c.Supervisor.Running("gitea"); after != before {
		t.Errorf("process %d was replaced by %d", before, after)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", before))
	check(t, err)
	if !strings.Contains(string(status), fmt.Sprintf("Uid:\t%d", giteatest.UID)) {
		t.Error("it does not run as the user that was asked for")
	}
	if s.RootURL() != "https://github.com/" {
		t.Errorf("root address is %s", s.RootURL())
	}
}

func TestStartSaysWhatIsMissing(t *testing.T) {
	instance.Server(t)
	for want, change := range map[string]func(*gitea.Config){
		"root":    func(c *gitea.Config) { c.UID = 0 },
		"program": func(c *gitea.Config) { c.Program = "/no/such/gitea" },
		"assets":  func(c *gitea.Config) { c.Assets = "/no/such/assets" },
		"IP:PORT": func(c *gitea.Config) { c.Address = "github.com" },
	} {
		c := instance.Config()
		change(&c)
		if _, err := gitea.Start(limited(t), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one about %s", err, want)
		}
	}
}

func TestSecretsAreReadableByTheirOwnersAlone(t *testing.T) {
	instance.Server(t)
	c := instance.Config()
	for _, dir := range []string{"secrets", "credentials"} {
		entries, err := os.ReadDir(filepath.Join(c.DataDir, dir))
		check(t, err)
		if len(entries) == 0 {
			t.Errorf("%s is empty", dir)
		}
		for _, entry := range entries {
			info, err := entry.Info()
			check(t, err)
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s/%s has mode %o, want 600", dir, entry.Name(), info.Mode().Perm())
			}
		}
	}
	ini, err := os.ReadFile(filepath.Join(c.DataDir, "app.ini"))
	check(t, err)
	for _, name := range []string{"secret-key", "internal-token", "jwt-secret"} {
		secret, err := os.ReadFile(filepath.Join(c.DataDir, "secrets", name))
		check(t, err)
		if strings.Contains(string(ini), string(secret)) {
			t.Errorf("app.ini holds the %s", name)
		}
	}
}

func TestEnsureAdminRecovers(t *testing.T) {
	s := instance.Server(t)
	ctx := limited(t)
	password, err := s.AdminPassword()
	check(t, err)
	tokenFile := s.TokenFile("fleet")
	first, err := os.ReadFile(tokenFile)
	check(t, err)

	check(t, s.EnsureAdmin(ctx))
	again, err := os.ReadFile(tokenFile)
	check(t, err)
	if string(again) != string(first) {
		t.Error("a second call made another token")
	}

	// Killed after Gitea made the token and before it was kept.
	check(t, os.Remove(tokenFile))
	check(t, s.EnsureAdmin(ctx))
	check(t, s.EnsureOrganisation(ctx, "argoproj"))

	// Killed after the account was made, before it got the kept password.
	check(t, os.WriteFile(filepath.Join(instance.Config().DataDir, "credentials", "admin-password"), []byte("another-password-altogether"), 0o600))
	check(t, s.EnsureAdmin(ctx))
	check(t, os.WriteFile(filepath.Join(instance.Config().DataDir, "credentials", "admin-password"), []byte(password), 0o600))
	check(t, s.EnsureAdmin(ctx))
	check(t, s.EnsureOrganisation(ctx, "argoproj"))
}

func TestRegistrationIsClosed(t *testing.T) {
	s := instance.Server(t)
	c := http.Client{Transport: s.Transport()}
	resp, err := c.Post(s.URL()+"user/sign_up", "application/x-www-form-urlencoded", strings.NewReader("user_name=eve&email=eve@example.com&password=secretsecret&retype=secretsecret"))
	check(t, err)
	defer resp.Body.Close() //nolint:errcheck // a test
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("sign-up answered %s, want 403", resp.Status)
	}
}

func TestTokenHasOnlyItsScopes(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	repo, _ := asUser(t, s, name, "scoped")
	if _, err := repo.Webhooks(limited(t)); !errors.Is(err, forge.Unauthorized) {
		t.Errorf("listing webhooks gave %v, want a refusal: a writer is no administrator", err)
	}
	token, err := s.EnsureToken(limited(t), gitea.Token{Name: "read-only", User: "scoped", Scopes: []string{"read:repository"}})
	check(t, err)
	c, err := forgegitea.New(forgegitea.Options{URL: s.URL(), Token: forge.StaticToken(token), Login: "scoped", Transport: s.Transport()})
	check(t, err)
	if _, err := c.Repository(name).OpenPullRequest(limited(t), forge.Proposal{Title: "x", Head: "x", Base: "main"}); !errors.Is(err, forge.Unauthorized) {
		t.Errorf("opening a pull request with a token to read gave %v, want a refusal", err)
	}
}

func TestEnsureRepositoryRecoversFromAKillHalfWay(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	files := filepath.Join(instance.Config().DataDir, "work", "repositories", name.Owner, name.Repository+".git")
	dir := tree(t, map[string]string{"a.txt": "a"})

	check(t, os.RemoveAll(files)) // the record without files
	check(t, s.EnsureRepository(limited(t), name, gitea.Work))
	push(t, s, name, dir)

	other := forge.Name{Owner: name.Owner, Repository: name.Repository + "-files"}
	left := filepath.Join(filepath.Dir(files), other.Repository+".git")
	check(t, exec.Command("git", "init", "--quiet", "--bare", left).Run()) // files without the record
	check(t, os.Chown(left, giteatest.UID, giteatest.GID))
	check(t, exec.Command("chown", "-R", fmt.Sprintf("%d:%d", giteatest.UID, giteatest.GID), left).Run())
	check(t, s.EnsureRepository(limited(t), other, gitea.Work))
	push(t, s, other, dir)
}

func TestPushTreeBringsWhatGitDoesNotIgnore(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	checkout := tree(t, map[string]string{
		"README.md": "outside", "gitops/tracked.yaml": "tracked", "gitops/deleted.yaml": "gone",
		"gitops/.gitignore": "*.log\n", "gitops/forced.log": "tracked although ignored",
	})
	for _, args := range [][]string{{"init", "--quiet"}, {"add", "--all"}, {"add", "--force", "gitops/forced.log"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = checkout
		check(t, cmd.Run())
	}
	check(t, os.Remove(filepath.Join(checkout, "gitops", "deleted.yaml")))
	write(t, checkout, map[string]string{"gitops/new.yaml": "untracked", "gitops/debug.log": "ignored", "gitops/run.sh": "#!/bin/sh\n"})
	check(t, os.Chmod(filepath.Join(checkout, "gitops", "run.sh"), 0o755))

	first := push(t, s, name, filepath.Join(checkout, "gitops"))
	if !first.Pushed || first.Commit == "" {
		t.Errorf("first push is %+v", first)
	}
	for path, want := range map[string]string{
		"tracked.yaml": "tracked", "new.yaml": "untracked", "forced.log": "tracked although ignored",
		"deleted.yaml": "(none)", "debug.log": "(none)", "README.md": "(none)", "gitops/tracked.yaml": "(none)",
	} {
		if got := read(t, s, name, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if again := push(t, s, name, filepath.Join(checkout, "gitops")); again.Pushed || again.Commit != first.Commit {
		t.Errorf("second push is %+v, want nothing pushed", again)
	}
}

func TestPushTreeGoesOnTopOfWhatTheForgeTookIn(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	dir := tree(t, map[string]string{"values.yaml": "tag: 1\n", "other.yaml": "a: 1\n"})
	push(t, s, name, dir)

	// A promotion comes in by the forge.
	promotion := tree(t, map[string]string{"values.yaml": "tag: 2\n", "other.yaml": "a: 1\n"})
	commitOnForge(t, s, name, "main", promotion)
	if p := push(t, s, name, dir); p.Pushed {
		t.Errorf("an unchanged working tree took the promotion back: %+v", p)
	}
	write(t, dir, map[string]string{"other.yaml": "a: 2\n"})
	if p := push(t, s, name, dir); !p.Pushed {
		t.Error("the changed working tree was not pushed")
	}
	if tag, other := read(t, s, name, "values.yaml"), read(t, s, name, "other.yaml"); tag != "tag: 2\n" || other != "a: 2\n" {
		t.Errorf("main has %q and %q, want both changes", tag, other)
	}
	// Again, so that the merge itself is built upon.
	write(t, dir, map[string]string{"third.yaml": "b: 1\n"})
	push(t, s, name, dir)
	if tag, third := read(t, s, name, "values.yaml"), read(t, s, name, "third.yaml"); tag != "tag: 2\n" || third != "b: 1\n" {
		t.Errorf("main has %q and %q, want the promotion to stay", tag, third)
	}

	write(t, dir, map[string]string{"values.yaml": "tag: 3\n"})
	_, err := s.PushTree(limited(t), name, dir, "main", "x")
	if !errors.Is(err, forge.Conflict) || !strings.Contains(err.Error(), "values.yaml") {
		t.Errorf("error is %v, want a conflict that names values.yaml", err)
	}
}

// commitOnForge commits a tree without the mark of a working tree, as a merged
// pull request does.
func commitOnForge(t *testing.T, s *gitea.Server, name forge.Name, branch, dir string) {
	t.Helper()
	repository := clone(t, s, name)
	worktree, err := repository.Worktree()
	check(t, err)
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(worktree.Filesystem.Root(), entry.Name()), data, 0o644))
	}
	_, err = worktree.Add(".")
	check(t, err)
	_, err = worktree.Commit("Promote", &gogit.CommitOptions{})
	check(t, err)
	token, err := os.ReadFile(s.TokenFile("fleet"))
	check(t, err)
	check(t, repository.Push(&gogit.PushOptions{Auth: &githttp.BasicAuth{Username: gitea.Admin, Password: string(token)}}))
}

// clone clones over HTTP with go-git, through the namespace.
func clone(t *testing.T, s *gitea.Server, name forge.Name) *gogit.Repository {
	t.Helper()
	client.InstallProtocol("http", githttp.NewClient(&http.Client{Transport: s.Transport(), Timeout: time.Minute}))
	repository, err := gogit.PlainCloneContext(limited(t), t.TempDir(), false, &gogit.CloneOptions{URL: s.URL() + name.String() + ".git"})
	check(t, err)
	config, err := repository.Config()
	check(t, err)
	config.User.Name, config.User.Email = "Tester", "tester@example.com"
	check(t, repository.SetConfig(config))
	return repository
}

func TestPushRepositoryMirrorsTags(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Mirror)
	upstream := tree(t, map[string]string{"manifests/core-install.yaml": "kind: List\n", ".github/workflows/ci.yaml": "on: push\njobs: {}\n"})
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Dir = upstream
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	git("init", "--quiet", "--initial-branch=main")
	git("add", "--all")
	git("commit", "--quiet", "-m", "upstream")
	git("tag", "v3.6.1")
	bare := filepath.Join(t.TempDir(), "upstream.git")
	git("clone", "--quiet", "--bare", ".", bare)
	for range 2 {
		check(t, s.PushRepository(limited(t), bare, name))
	}
	client.InstallProtocol("http", githttp.NewClient(&http.Client{Transport: s.Transport()}))
	mirror, err := gogit.CloneContext(limited(t), memory.NewStorage(), nil, &gogit.CloneOptions{URL: s.URL() + name.String() + ".git", ReferenceName: plumbing.NewTagReferenceName("v3.6.1"), Depth: 1})
	check(t, err)
	head, err := mirror.Head()
	check(t, err)
	commit, err := mirror.CommitObject(head.Hash())
	check(t, err)
	if _, err := commit.File("manifests/core-install.yaml"); err != nil {
		t.Errorf("the tag lacks the manifest: %v", err)
	}
	repo, err := s.Forge(name)
	check(t, err)
	if statuses, err := repo.Statuses(limited(t), "main"); err != nil || len(statuses) > 0 {
		t.Errorf("upstream's workflows ran here: %+v, %v", statuses, err)
	}
}

func TestProtectedMainTakesNoPushButTheAdmins(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	dir := tree(t, map[string]string{"a.txt": "a\n"})
	push(t, s, name, dir)
	for range 2 {
		check(t, s.ProtectMain(limited(t), name))
	}
	developer, token := asUser(t, s, name, "developer")

	repository := clone(t, s, name)
	worktree, err := repository.Worktree()
	check(t, err)
	check(t, os.WriteFile(filepath.Join(worktree.Filesystem.Root(), "a.txt"), []byte("changed\n"), 0o644))
	_, err = worktree.Add("a.txt")
	check(t, err)
	_, err = worktree.Commit("Change a", &gogit.CommitOptions{})
	check(t, err)
	pushAs := func(spec string) error {
		return repository.PushContext(limited(t), &gogit.PushOptions{
			RefSpecs: []config.RefSpec{config.RefSpec(spec)}, Auth: &githttp.BasicAuth{Username: "developer", Password: token},
		})
	}
	if err := pushAs("refs/heads/main:refs/heads/main"); err == nil {
		t.Error("main took a direct push by a developer")
	}
	check(t, pushAs("refs/heads/main:refs/heads/change"))
	pr, opened, err := forge.EnsurePullRequest(limited(t), developer, forge.Proposal{Title: "Change a", Head: "change", Base: "main"})
	check(t, err)
	if !opened || !strings.HasPrefix(pr.URL, "https://github.com/"+name.String()+"/pulls/") {
		t.Errorf("pull request is %+v, want one with production's address", pr)
	}
	_, err = developer.MergePullRequest(limited(t), pr.Number, forge.Merge{})
	check(t, err)

	write(t, dir, map[string]string{"b.txt": "b\n"})
	if p := push(t, s, name, dir); !p.Pushed {
		t.Error("main did not take the administrator's working tree")
	}
	if a, b := read(t, s, name, "a.txt"), read(t, s, name, "b.txt"); a != "changed\n" || b != "b\n" {
		t.Errorf("main has %q and %q, want both changes", a, b)
	}
}

func TestWebhookIsSignedAndNamesProduction(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	received := make(chan error, 8)
	listener, err := netns.Listen(t.Context(), instance.NetNS, "tcp", "127.0.0.1:0")
	check(t, err)
	receiver := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = checkDelivery(r.Header, body, "hook-secret", name)
		}
		received <- err
	})}
	go func() { _ = receiver.Serve(listener) }()
	defer receiver.Close() //nolint:errcheck // a test

	url := "http://" + listener.Addr().String() + "/api/webhook"
	for _, secret := range []string{"an older secret", "hook-secret", "hook-secret"} {
		check(t, s.EnsureWebhook(limited(t), name, url, secret))
	}
	start := time.Now()
	push(t, s, name, tree(t, map[string]string{"a.txt": "a"}))
	select {
	case err := <-received:
		check(t, err)
		t.Logf("delivered %s after the push began", time.Since(start).Round(time.Millisecond))
	case <-time.After(30 * time.Second):
		t.Fatal("no webhook within 30 s of the push")
	}
	select {
	case <-received:
		t.Error("one push was delivered twice")
	case <-time.After(500 * time.Millisecond):
	}
}

func checkDelivery(header http.Header, body []byte, secret string, name forge.Name) error {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	if want := hex.EncodeToString(mac.Sum(nil)); header.Get("X-Gogs-Signature") != want {
		return fmt.Errorf("signature is %q, want %q", header.Get("X-Gogs-Signature"), want)
	}
	var event struct {
		Ref        string
		Repository struct {
			HTMLURL  string `json:"html_url"`
			CloneURL string `json:"clone_url"`
		}
	}
	if err := json.Unmarshal(body, &event); err != nil {
		return err
	}
	if header.Get("X-Gogs-Event") != "push" || event.Ref != "refs/heads/main" ||
		event.Repository.HTMLURL != "https://github.com/"+name.String() || event.Repository.CloneURL != "https://github.com/"+name.String()+".git" {
		return fmt.Errorf("event %q is %+v, want a push to main with production's addresses", header.Get("X-Gogs-Event"), event)
	}
	return nil
}

func TestRunnerRunsAWorkflowThatAProtectedBranchWaitsFor(t *testing.T) {
	s := instance.Server(t)
	if _, err := os.Stat(instance.Engines().Runner); err != nil && os.Getenv("CI") == "" {
		t.Skipf("no runner: %v", err)
	}
	name := newRepository(t, s, gitea.Work)
	runner := gitea.Runner{
		Name: "runner", Program: instance.Engines().Runner, DataDir: filepath.Join(instance.Dir(), "runner"),
		NetNS: instance.NetNS, UID: giteatest.UID + 1, GID: giteatest.GID + 1,
	}
	for range 2 {
		check(t, s.EnsureRunner(limited(t), runner))
	}
	first, _ := instance.Config().Supervisor.Running("runner")
	// Killed before the registration was kept: it registers again.
	check(t, os.Remove(filepath.Join(runner.DataDir, "registration")))
	check(t, s.EnsureRunner(limited(t), runner))
	if second, ok := instance.Config().Supervisor.Running("runner"); !ok || second == first {
		t.Errorf("runner is process %d, before it was %d; want another", second, first)
	}

	push(t, s, name, tree(t, map[string]string{".github/workflows/x.yaml": `name: checks
on: push
jobs:
  fast:
    runs-on: ubuntu-24.04
    steps:
      - run: test "$GITHUB_SERVER_URL/$GITHUB_REPOSITORY" = "` + s.URL() + name.String() + `"
      - run: test "$(id -u)" = "` + fmt.Sprint(runner.UID) + `"
`}))
	repo, err := s.Forge(name)
	check(t, err)
	start := time.Now()
	var statuses []forge.Status
	for len(statuses) == 0 || statuses[0].State == forge.Pending {
		if time.Since(start) > time.Minute {
			t.Fatalf("a minute after the push the statuses are %+v", statuses)
		}
		time.Sleep(200 * time.Millisecond)
		statuses, err = repo.Statuses(limited(t), "main")
		check(t, err)
	}
	if want := s.URL() + name.String() + "/actions/runs/"; !strings.HasPrefix(statuses[0].URL, want) {
		t.Errorf("details are at %s, want an address below %s", statuses[0].URL, want)
	}
	if len(statuses) != 1 || statuses[0].Context != "checks / fast (push)" || statuses[0].State != forge.Success {
		t.Errorf("statuses are %+v, want one success of \"checks / fast (push)\"", statuses)
	}
	t.Logf("successful %s after the push", time.Since(start).Round(time.Millisecond))
}

// behind writes a commit into a repository's files, as a push does of which
// Gitea, killed in between, knows nothing.
func behind(t *testing.T, name forge.Name, dir string) {
	t.Helper()
	git := func(uid uint32, dir string, args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "safe.directory=*", "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	git(0, dir, "init", "--quiet", "--initial-branch=main")
	git(0, dir, "add", "--all")
	git(0, dir, "commit", "--quiet", "-m", "Bring the working tree")
	bundle := filepath.Join(instance.Dir(), name.Repository+".bundle")
	git(0, dir, "bundle", "create", "--quiet", bundle, "main")
	git(giteatest.UID, filepath.Join(instance.Config().DataDir, "work", "repositories", name.Owner, name.Repository+".git"), "fetch", "--quiet", bundle, "main:main")
}

func TestPushThatGiteaNeverEnteredIsTold(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	dir := tree(t, map[string]string{"a.txt": "a"})
	behind(t, name, dir)
	push(t, s, name, dir)
	if got := read(t, s, name, "a.txt"); got != "a" {
		t.Errorf("a.txt is %q", got)
	}
	if p := push(t, s, name, dir); p.Pushed {
		t.Error("once it knows, nothing is to be pushed")
	}
}

func TestMirrorThatGiteaNeverEnteredIsServed(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Mirror)
	dir := tree(t, map[string]string{"a.txt": "a"})
	behind(t, name, dir)
	check(t, s.PushRepository(limited(t), filepath.Join(dir, ".git"), name))
	clone(t, s, name)
}

func TestKilledServerComesBackWithEverything(t *testing.T) {
	s := instance.Server(t)
	name := newRepository(t, s, gitea.Work)
	files := map[string]string{}
	for i := range 400 {
		files[fmt.Sprintf("dir-%d/file-%d", i%20, i)] = strings.Repeat(fmt.Sprintf("line %d\n", i), 200)
	}
	dir := tree(t, files)
	for _, after := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, time.Second} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = s.PushTree(context.Background(), name, dir, "main", "Bring the working tree")
		}()
		time.Sleep(after)
		check(t, instance.Config().Supervisor.Kill(t.Context(), "gitea"))
		<-done
		check(t, instance.Restart(limited(t)))
		check(t, s.EnsureAdmin(limited(t)))
		check(t, s.EnsureRepository(limited(t), name, gitea.Work))
	}
	push(t, s, name, dir)
	if got := read(t, s, name, "dir-7/file-7"); got != files["dir-7/file-7"] {
		t.Errorf("the file is %q", got)
	}
	if p := push(t, s, name, dir); p.Pushed {
		t.Error("a repeated push was not needed")
	}
}

func TestPageHasItsScripts(t *testing.T) {
	s := instance.Server(t)
	if _, err := os.Stat(filepath.Join(instance.Engines().Assets, "public", "assets", ".vite", "manifest.json")); err != nil {
		t.Skip("the page is not built")
	}
	get := func(path string) string {
		t.Helper()
		resp, err := (&http.Client{Transport: s.Transport()}).Get(strings.TrimSuffix(s.URL(), "/") + path)
		check(t, err)
		defer resp.Body.Close() //nolint:errcheck // a test
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s answered %s", path, resp.Status)
		}
		return string(body)
	}
	script := regexp.MustCompile(`/assets/js/index[^"]*\.js`).FindString(get("/"))
	if script == "" || len(get(script)) < 10_000 {
		t.Errorf("the page's script is %q, want one with content", script)
	}
}
