package gitops

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	localgitea "github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea/giteatest"
	"github.com/omnivision/omnivision/steward"
)

var instance giteatest.Instance

func TestMain(m *testing.M) {
	code := m.Run()
	instance.Close()
	os.Exit(code)
}

// The story of a good and of a bad release on a real forge, whose main nobody may push to.
func TestStewardOnARealGitea(t *testing.T) {
	server := instance.Server(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	name := forge.Name{Owner: "omnivision", Repository: "omnivision-gitops"}
	check(t, server.EnsureOrganisation(ctx, name.Owner))
	check(t, server.EnsureRepository(ctx, name, localgitea.Work))
	_, err := server.PushTree(ctx, name, startingTree(t), "main", "Begin")
	check(t, err)
	repo, err := server.Forge(name)
	check(t, err)
	check(t, repo.Protect(ctx, "main", forge.Protection{UpToDate: true}))
	remote := propose.Remote{URL: server.URL() + name.String() + ".git", Token: forge.TokenFile(server.TokenFile("fleet"))}
	now := time.Now()

	// Gitea finds out a little later whether a pull request can be merged.
	step := func(cluster string, here fakeCluster, done func() bool) {
		t.Helper()
		s := &steward.Steward{
			Name: cluster, Cluster: here, Clock: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
			Repository: &Repository{Forge: repo, Source: repo, Base: "main", Dir: t.TempDir(), Remote: remote},
		}
		for range 60 {
			if _, err := s.Step(ctx); err != nil {
				t.Fatal(err)
			}
			if done() {
				return
			}
		}
		t.Fatal("60 steps did not do it")
	}
	release := func(n int) {
		t.Helper()
		head, err := repo.Head(ctx, "main")
		check(t, err)
		p := &propose.Proposer{Forge: repo, Remote: remote, Base: "main"}
		result, err := p.Propose(ctx, propose.Request{App: app, Wave: 1, Release: build(n), Time: now, Text: propose.Text{Facts: []propose.Fact{{Name: propose.SourceFact, Value: head}}}})
		check(t, err)
		_, err = repo.MergePullRequest(ctx, result.Number, forge.Merge{})
		check(t, err)
	}
	holds := func(path, want string) func() bool {
		return func() bool {
			data, err := repo.ReadFile(ctx, "main", path)
			return err == nil && strings.Contains(string(data), want)
		}
	}
	says := func(commit, status string, state forge.StatusState) func() bool {
		return func() bool {
			statuses, err := repo.Statuses(ctx, commit)
			check(t, err)
			return slices.ContainsFunc(statuses, func(s forge.Status) bool { return s.Context == status && s.State == state })
		}
	}
	aws, gcp := "apps/"+app+"/cluster-aws.yaml", "apps/"+app+"/cluster-gcp.yaml"

	release(2)
	condemned, err := repo.Head(ctx, "main")
	check(t, err)
	step("cluster-aws", aborted(build(2), build(1), now), holds(fleet.QuarantineFile, build(2).Digest))
	if !holds(aws, build(1).Digest)() || !says(condemned, steward.Context(app, "cluster-aws"), forge.Failure)() {
		t.Error("the cluster's file, or the status of the commit that brought build 2, is not as it should be")
	}

	release(3)
	step("cluster-aws", healthy(build(3), now.Add(-time.Hour)), holds(gcp, build(3).Digest))
	landed, err := repo.Head(ctx, "main")
	check(t, err)
	step("cluster-gcp", healthy(build(3), now), says(landed, steward.DoneContext(app), forge.Success))
	open, err := repo.FindPullRequests(ctx, forge.Query{})
	check(t, err)
	if len(open) != 0 {
		t.Errorf("open are %+v", open)
	}
}

// startingTree is our tree with a first release in it, and everything merged by the steward.
func startingTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	check(t, os.CopyFS(dir, os.DirFS("../../omnivision-gitops")))
	change := func(path string, edit func(string) string) {
		data, err := os.ReadFile(filepath.Join(dir, path))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, path), []byte(edit(string(data))), 0o644))
	}
	change(fleet.File, func(s string) string { return strings.ReplaceAll(s, "autoMerge: []", "autoMerge: [revert, promote]") })
	worker := fleet.App{Name: app, ValuePath: "aiWorker"}
	for _, cluster := range []string{"cluster-aws", "cluster-gcp"} {
		change(worker.ReleaseFile(cluster), func(s string) string {
			out, err := fleet.SetRelease([]byte(s), worker, build(1))
			check(t, err)
			return string(out)
		})
	}
	return dir
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
