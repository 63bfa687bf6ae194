package propose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
	localgitea "github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea/giteatest"
)

var instance giteatest.Instance

func TestMain(m *testing.M) {
	code := m.Run()
	instance.Close()
	if dir, err := template(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// The life of a branch on a real forge: what the fake believes of one is tried here.
func TestReleasesOnARealGitea(t *testing.T) {
	server := instance.Server(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	name := forge.Name{Owner: "omnivision", Repository: "omnivision-gitops"}
	check(t, server.EnsureOrganisation(ctx, name.Owner))
	check(t, server.EnsureRepository(ctx, name, localgitea.Work))
	_, err := server.PushTree(ctx, name, "../../omnivision-gitops", "main", "Begin")
	check(t, err)
	repo, err := server.Forge(name)
	check(t, err)
	p := &Proposer{
		Forge: repo, Base: "main",
		Remote: Remote{URL: server.URL() + name.String() + ".git", Token: forge.TokenFile(server.TokenFile("fleet"))},
	}
	propose := func(build int, want State) Result {
		t.Helper()
		result, err := p.Propose(ctx, request(build))
		check(t, err)
		if result.State != want {
			t.Fatalf("build %d is %+v, want %s", build, result, want)
		}
		return result
	}
	holds := func(ref string, build int) {
		t.Helper()
		data, err := repo.ReadFile(ctx, ref, release)
		check(t, err)
		if !strings.Contains(string(data), digestOf(build)) {
			t.Errorf("%s has\n%s\nwant build %d", ref, data, build)
		}
	}

	first := propose(57, Proposed)
	holds(branch, 57)
	if again := propose(57, Proposed); fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("repeated, %+v became %+v", first, again)
	}
	if later := propose(58, Proposed); later.Number != first.Number || later.URL == "" {
		t.Errorf("pull request %d was followed by %+v", first.Number, later)
	}
	propose(57, Superseded)
	holds(branch, 58)
	pr, err := repo.PullRequest(ctx, first.Number)
	check(t, err)
	if pr.Title != "Release omnivision-worker 0.1.0-58 to cluster-aws" || !request(58).named(pr.Body) {
		t.Errorf("the pull request says\n%s\n%s", pr.Title, pr.Body)
	}

	_, err = repo.MergePullRequest(ctx, pr.Number, forge.Merge{HeadSHA: pr.HeadSHA})
	check(t, err)
	holds("main", 58)
	propose(58, Released)
	propose(57, Superseded)

	second := propose(59, Proposed)
	if second.Number == first.Number {
		t.Errorf("the merged pull request %d was taken again", first.Number)
	}
	check(t, repo.ClosePullRequest(ctx, second.Number))
	if _, err := p.Propose(ctx, request(59)); !errors.Is(err, ErrRejected) {
		t.Errorf("after a person closed it, proposing it again gives %v", err)
	}

	var group sync.WaitGroup
	for build := 60; build <= 62; build++ {
		group.Go(func() {
			if _, err := p.Propose(ctx, request(build)); err != nil {
				t.Errorf("build %d beside others: %v", build, err)
			}
		})
	}
	group.Wait()
	holds(branch, 62)
	open, err := repo.FindPullRequests(ctx, forge.Query{Head: branch})
	check(t, err)
	if len(open) != 1 || !request(62).named(open[0].Body) {
		t.Errorf("open are %+v", open)
	}

	stranger := *p
	stranger.Remote.Token = forge.StaticToken("0123456789012345678901234567890123456789")
	if _, err := stranger.Propose(ctx, request(63)); !errors.Is(err, forge.Unauthorized) {
		t.Errorf("with a wrong token: %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
