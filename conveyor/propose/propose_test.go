package propose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/plan/revision"
)

const (
	app     = "omnivision-worker"
	branch  = "release/omnivision-worker/wave-1"
	release = "apps/omnivision-worker/cluster-aws.yaml"
)

func digestOf(build int) string { return fmt.Sprintf("sha256:%064x", build) }

func request(build int) Request {
	return Request{
		App: app, Wave: 1,
		Release: fleet.Release{Tag: fmt.Sprintf("0.1.0-%d", build), Digest: digestOf(build)},
		Time:    time.Date(2026, 11, 1, 10, build, 0, 0, time.UTC),
		Text: Text{
			Facts:   []Fact{{"Signed by", "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"}},
			Commits: []source.Commit{{SHA: strings.Repeat("ab", 20), Subject: "Draw faster", Author: "dev"}}, Total: 1,
		},
	}
}

// world is a repository, a forge, and proposers on them.
type world struct {
	gitops
	forge *fakeForge
}

func newWorld(t *testing.T) *world {
	t.Helper()
	g := newGitops(t)
	return &world{gitops: g, forge: &fakeForge{bare: g.bare}}
}

func (w *world) proposer() *Proposer {
	return &Proposer{Forge: w.forge, Remote: Remote{URL: w.bare}, Base: "main", Patience: 10 * time.Minute} // a loaded machine is slow, not broken
}

func (w *world) propose(t *testing.T, r Request) Result {
	t.Helper()
	result, err := w.proposer().Propose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// wantProposal fails unless exactly one pull request is open and the branch holds the
// build, on top of the base, with a text that is the build's.
func (w *world) wantProposal(t *testing.T, build int) forge.PullRequest {
	t.Helper()
	open := w.forge.open()
	if len(open) != 1 {
		t.Fatalf("%d pull requests are open, want one: %+v", len(open), w.forge.pulls)
	}
	if got := w.file(t, branch, release); !strings.Contains(got, digestOf(build)) || !strings.Contains(got, fmt.Sprintf("tag: \"0.1.0-%d\"", build)) {
		t.Errorf("the branch has\n%s\nwant build %d", got, build)
	}
	if parent, base := w.git(t, w.bare, "rev-parse", branch+"^"), w.head(t, "main"); parent != base {
		t.Errorf("the branch is on top of %s, not of the base, which is %s", parent, base)
	}
	if changed := w.git(t, w.bare, "diff", "--name-only", "main", branch); changed != release {
		t.Errorf("the branch changes %q", changed)
	}
	if title := fmt.Sprintf("Release omnivision-worker 0.1.0-%d to cluster-aws", build); open[0].Title != title || !request(build).named(open[0].Body) {
		t.Errorf("the pull request says\n%s\n%s\nwant the text of build %d", open[0].Title, open[0].Body, build)
	}
	return open[0]
}

func TestProposalChangesTwoValuesAndNothingElse(t *testing.T) {
	w := newWorld(t)
	before := w.file(t, "main", release)
	r := request(57)
	r.Text.Plan = "### Plan: 1 of 2 clusters changes\n"
	result := w.propose(t, r)
	pr := w.wantProposal(t, 57)
	if result.State != Proposed || result.Number != pr.Number || result.URL != pr.URL || result.Branch != branch || result.Commit != w.head(t, branch) || strings.Join(result.Clusters, " ") != "cluster-aws" {
		t.Errorf("result is %+v", result)
	}
	want := strings.Replace(strings.Replace(before, `"0.1.0"`, `"0.1.0-57"`, 1), `digest: ""`, `digest: "`+digestOf(57)+`"`, 1)
	if got := w.file(t, branch, release); got != want {
		t.Errorf("the file became\n%s\nwant\n%s", got, want)
	}
	wantBody := "- `cluster-aws`: nothing → `0.1.0-57`\n- Image: `" + digestOf(57) + "`\n" +
		"- Signed by: `https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main`\n" +
		"\n### Commits since the last release: 1\n\n- `ababababab` `Draw faster`, `dev`\n" +
		"\n### Plan: 1 of 2 clusters changes\n" +
		"\nOmniVision-Release: omnivision-worker 0.1.0-57 " + digestOf(57)
	if pr.Body != wantBody {
		t.Errorf("the text is\n%s\nwant\n%s", pr.Body, wantBody)
	}
}

// Every cluster runs the same component: one file, one pull request, no wave.
func TestComponentIsOnePullRequestForEveryCluster(t *testing.T) {
	const file, branch = "components/gate/manifests/kustomization.yaml", "release/omnivision-gate/every-cluster"
	w := newWorld(t)
	before := w.file(t, "main", file)
	r := request(57)
	r.App, r.Wave = "omnivision-gate", 0
	result := w.propose(t, r)
	if result.State != Proposed || result.Branch != branch || strings.Join(result.Clusters, " ") != "cluster-aws cluster-gcp" {
		t.Errorf("result is %+v", result)
	}
	if changed := w.git(t, w.bare, "diff", "--name-only", "main", branch); changed != file {
		t.Errorf("the branch changes %q", changed)
	}
	want := strings.Replace(strings.Replace(before, `"0.1.0"`, `"0.1.0-57"`, 1), `digest: ""`, `digest: "`+digestOf(57)+`"`, 1)
	if got := w.file(t, branch, file); got != want {
		t.Errorf("the file became\n%s\nwant\n%s", got, want)
	}
	open := w.forge.open()
	if len(open) != 1 || open[0].Title != "Release omnivision-gate 0.1.0-57 to every cluster" || !strings.HasPrefix(open[0].Body, "- `every cluster`: nothing → `0.1.0-57`\n") {
		t.Errorf("open are %+v", open)
	}
	w.git(t, w.clone, "fetch", "--quiet", "origin")
	w.git(t, w.clone, "push", "--quiet", "origin", "origin/"+branch+":main")
	r57 := r
	r.Release = request(58).Release
	if result := w.propose(t, r); result.State != Proposed {
		t.Errorf("the next build is %+v", result)
	}
	if result := w.propose(t, r57); result.State != Released {
		t.Errorf("the released build is %+v", result)
	}
}

func TestWaveWithSeveralClustersIsOnePullRequest(t *testing.T) {
	w := newWorld(t)
	w.edit(t, "fleet.yaml", "wave: 2", "wave: 1", "Both at once")
	result := w.propose(t, request(57))
	if got := w.git(t, w.bare, "diff", "--name-only", "main", branch); got != release+"\napps/omnivision-worker/cluster-gcp.yaml" {
		t.Errorf("the branch changes %q", got)
	}
	if len(w.forge.open()) != 1 || strings.Join(result.Clusters, " ") != "cluster-aws cluster-gcp" {
		t.Errorf("result is %+v, open are %+v", result, w.forge.open())
	}
}

func TestRepeatedProposalChangesNothing(t *testing.T) {
	w := newWorld(t)
	first := w.propose(t, request(57))
	writes := w.forge.writes
	if second := w.propose(t, request(57)); fmt.Sprint(second) != fmt.Sprint(first) {
		t.Errorf("the second run says %+v, the first %+v", second, first)
	}
	if w.forge.writes != writes {
		t.Errorf("the second run wrote %d times to the forge", w.forge.writes-writes)
	}
}

func TestLaterReleaseTakesOverTheOpenPullRequest(t *testing.T) {
	w := newWorld(t)
	first := w.propose(t, request(57))
	second := w.propose(t, request(58))
	if first.Number != second.Number {
		t.Errorf("pull request %d was followed by %d", first.Number, second.Number)
	}
	w.wantProposal(t, 58)
}

func TestOlderBuildDoesNotReplaceANewerOne(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(58))
	if result := w.propose(t, request(57)); result.State != Superseded || result.By != "0.1.0-58" || result.Number != 1 {
		t.Errorf("beside a newer proposal the older is %+v", result)
	}
	w.wantProposal(t, 58)
	w.forge.merge(t, w.gitops, 1)
	if result := w.propose(t, request(57)); result.State != Superseded || result.By != "0.1.0-58" || result.Number != 0 {
		t.Errorf("below a newer release the older is %+v", result)
	}
	// 9 comes before 58, though not in the alphabet.
	if result := w.propose(t, request(9)); result.State != Superseded {
		t.Errorf("build 9 is %+v", result)
	}
	if open := w.forge.open(); len(open) != 0 {
		t.Errorf("open are %+v", open)
	}
}

func TestWhatIsReleasedIsNotProposed(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(57))
	w.forge.merge(t, w.gitops, 1)
	writes, head := w.forge.writes, w.head(t, branch)
	if result := w.propose(t, request(57)); result.State != Released {
		t.Errorf("result is %+v", result)
	}
	if w.forge.writes != writes || w.head(t, branch) != head {
		t.Error("something was written")
	}
	// The branch that the merge left behind is taken for the next release.
	w.propose(t, request(58))
	if pr := w.wantProposal(t, 58); pr.Number != 2 {
		t.Errorf("the next release is in pull request %d", pr.Number)
	}
}

func TestProposalThatTheBaseOvertookIsClosed(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(57))
	w.edit(t, release, `tag: "0.1.0"`+"\n  digest: \"\"", `tag: "0.1.0-58"`+"\n  digest: \""+digestOf(58)+`"`, "By hand")
	if result := w.propose(t, request(58)); result.State != Released {
		t.Errorf("result is %+v", result)
	}
	if open := w.forge.open(); len(open) != 0 {
		t.Errorf("merging this would take the base back: %+v", open)
	}
}

func TestSameTagWithAnotherImageIsRefused(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(57))
	w.forge.merge(t, w.gitops, 1)
	r := request(57)
	r.Release.Digest = digestOf(99)
	if _, err := w.proposer().Propose(t.Context(), r); !errors.Is(err, ErrTagMoved) {
		t.Errorf("error is %v", err)
	}
}

func TestProposalFollowsABaseThatMoves(t *testing.T) {
	for _, step := range []string{"push", "get branch", "ensure pull request", "look again"} {
		t.Run("before "+step, func(t *testing.T) {
			w := newWorld(t)
			p, moved := w.proposer(), false
			p.before = func(now string) error {
				if now == step && !moved {
					moved = true
					w.edit(t, "README.md", "# omnivision-gitops", "# The tree", "Another title")
				}
				return nil
			}
			if _, err := p.Propose(t.Context(), request(57)); err != nil {
				t.Fatal(err)
			}
			w.wantProposal(t, 57)
		})
	}
}

func TestProposalFollowsARewrittenBase(t *testing.T) {
	w := newWorld(t)
	w.edit(t, "README.md", "# omnivision-gitops", "# The tree", "To be rewritten")
	w.propose(t, request(57))
	w.git(t, w.clone, "commit", "--quiet", "--amend", "-m", "Rewritten")
	w.git(t, w.clone, "push", "--quiet", "--force", "origin", "HEAD:main")
	w.propose(t, request(57))
	w.wantProposal(t, 57)
	w.git(t, w.clone, "commit", "--quiet", "--amend", "-m", "Rewritten again")
	w.git(t, w.clone, "push", "--quiet", "--force", "origin", "HEAD:main")
	w.propose(t, request(58))
	w.wantProposal(t, 58)
}

func TestReleasesAtOnceEndInTheNewest(t *testing.T) {
	w := newWorld(t)
	var group sync.WaitGroup
	for build := 57; build <= 60; build++ {
		group.Go(func() {
			result, err := w.proposer().Propose(t.Context(), request(build))
			if err != nil || (result.State != Proposed && result.State != Superseded) {
				t.Errorf("build %d: %+v, %v", build, result, err)
			}
		})
	}
	group.Wait()
	w.wantProposal(t, 60)
}

// The older run writes its text after the newer one is all done.
func TestTextOfAnOlderRunDoesNotStay(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(56))
	older, raced := w.proposer(), false
	w.forge.before = func(call string) error {
		if call == "update" && !raced {
			raced = true
			w.forge.mu.Unlock()
			defer w.forge.mu.Lock()
			w.propose(t, request(58))
		}
		return nil
	}
	result, err := older.Propose(t.Context(), request(57))
	if err != nil || !raced || result.State != Superseded || result.By != "0.1.0-58" {
		t.Errorf("the older run ends in %+v, %v", result, err)
	}
	w.wantProposal(t, 58)
}

var errKilled = errors.New("killed")

// A run is killed at its first step, the next world's at its second, and so on.
func TestRunKilledAnywhereIsFinishedByTheNext(t *testing.T) {
	for _, begin := range []struct {
		name    string
		prepare func(t *testing.T, w *world)
	}{
		{"nothing there yet", func(*testing.T, *world) {}},
		{"an older proposal is open", func(t *testing.T, w *world) { w.propose(t, request(56)) }},
		{"an older one was merged", func(t *testing.T, w *world) { w.propose(t, request(56)); w.forge.merge(t, w.gitops, 1) }},
	} {
		t.Run(begin.name, func(t *testing.T) {
			for killAt, killed := 1, true; killed; killAt++ {
				w := newWorld(t)
				begin.prepare(t, w)
				p, steps := w.proposer(), 0
				p.before = func(string) error {
					if steps++; steps == killAt {
						return errKilled
					}
					return nil
				}
				_, err := p.Propose(t.Context(), request(57))
				if killed = err != nil; killed && !errors.Is(err, errKilled) {
					t.Fatal(err)
				}
				w.propose(t, request(57))
				w.wantProposal(t, 57)
				if !killed && steps < 5 {
					t.Errorf("a run has %d steps only: nothing was proved", steps)
				}
			}
		})
	}
}

// A forge that fails once at each call, without and with the call's effect.
func TestForgeThatFailsIsAskedAgain(t *testing.T) {
	failures := map[string]error{
		"500": forge.FromHTTP("call", 500, 0, errors.New("internal")),
		"409": forge.FromHTTP("call", 409, 0, errors.New("conflict")),
		"429": forge.FromHTTP("call", 429, time.Millisecond, errors.New("slow down")),
	}
	for name, failure := range failures {
		for _, call := range []string{"find", "head", "open", "update"} {
			for when, effect := range map[string]bool{"before": false, "after": true} {
				if effect && (call == "find" || call == "head") {
					continue // they have none
				}
				t.Run(name+" "+when+" "+call, func(t *testing.T) {
					t.Parallel()
					w := newWorld(t)
					if call == "update" {
						w.propose(t, request(56))
					}
					failed := false
					fail := func(now string) error {
						if now == call && !failed {
							failed = true
							return failure
						}
						return nil
					}
					if effect {
						w.forge.after = fail
					} else {
						w.forge.before = fail
					}
					w.propose(t, request(57))
					w.wantProposal(t, 57)
					if !failed {
						t.Error("the call was never made")
					}
				})
			}
		}
	}
}

// Two runs open a pull request at the same moment: one stays, and the other is nobody's
// rejection.
func TestOfTwoPullRequestsOneIsClosed(t *testing.T) {
	w := newWorld(t)
	w.forge.opensTwo = true
	w.forge.before = func(call string) error {
		if call == "open" && len(w.forge.pulls) == 0 {
			w.forge.pulls = append(w.forge.pulls, forge.PullRequest{
				Number: 1, Title: "the other run's", Head: branch, Base: "main", State: forge.Open, URL: "https://git.example.com/pulls/1",
			})
		}
		return nil
	}
	result := w.propose(t, request(57))
	if open := w.forge.open(); len(open) != 1 || open[0].Number != 1 || result.Number != 1 {
		t.Fatalf("open are %+v, and the result is %+v", open, result)
	}
	w.wantProposal(t, 57)
	if closed := w.forge.pulls[1]; closed.State != forge.Closed || request(57).named(closed.Body) {
		t.Errorf("the second pull request is %+v", closed)
	}
	writes := w.forge.writes
	if again := w.propose(t, request(57)); again.Number != 1 || w.forge.writes != writes {
		t.Errorf("repeated, it ends in %+v after %d more writes", again, w.forge.writes-writes)
	}
	w.propose(t, request(58))
	w.wantProposal(t, 58)
}

func TestForgeThatStaysAwayIsNamedWhenPatienceEnds(t *testing.T) {
	w := newWorld(t)
	w.forge.before = func(string) error { return forge.FromHTTP("list pull requests", 503, 0, errors.New("maintenance")) }
	p := w.proposer()
	p.Patience = 3 * time.Second
	_, err := p.Propose(t.Context(), request(57))
	if !errors.Is(err, forge.Unavailable) || !strings.Contains(err.Error(), "not done within 3s") || !strings.Contains(err.Error(), "maintenance") {
		t.Errorf("error is %v", err)
	}
}

func TestForgeThatLagsBehindGitIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	asked := 0
	w.forge.after = func(call string) error {
		if call == "head" {
			if asked++; asked < 3 {
				return &forge.Error{Code: forge.NotFound, Op: "get branch"}
			}
		}
		return nil
	}
	w.propose(t, request(57))
	w.wantProposal(t, 57)
	if asked != 3 {
		t.Errorf("the forge was asked %d times", asked)
	}
}

func TestClosedByAPersonIsNotOpenedAgain(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(57))
	if err := w.forge.ClosePullRequest(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.proposer().Propose(t.Context(), request(57)); !errors.Is(err, ErrRejected) {
		t.Errorf("error is %v", err)
	}
	if len(w.forge.open()) != 0 {
		t.Error("it was opened again")
	}
	again := request(57)
	again.Again = true
	w.propose(t, again)
	w.wantProposal(t, 57)
	// A newer build is another question.
	w.propose(t, request(58))
	w.wantProposal(t, 58)
}

func TestImageThatWasTakenOutOfGitIsNotProposedAgain(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(56))
	w.forge.merge(t, w.gitops, 1)
	w.propose(t, request(57))
	w.forge.merge(t, w.gitops, 2)
	revert := w.edit(t, release, "0.1.0-57\"\n  digest: \""+digestOf(57), "0.1.0-56\"\n  digest: \""+digestOf(56), "Take 57 back")
	_, err := w.proposer().Propose(t.Context(), request(57))
	if !errors.Is(err, ErrTakenBack) || !strings.Contains(err.Error(), revert) {
		t.Errorf("error is %v, want one that names %s", err, revert)
	}
	again := request(57)
	again.Again = true
	w.propose(t, again)
	w.wantProposal(t, 57)
	w.propose(t, request(58))
	w.wantProposal(t, 58)
}

func TestCommitsOfAPersonAreNotOverwritten(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(57))
	w.git(t, w.clone, "fetch", "--quiet", "origin")
	w.git(t, w.clone, "checkout", "--quiet", "-B", "mine", "origin/"+branch)
	mine := w.push(t, branch, "More memory for this one")
	if _, err := w.proposer().Propose(t.Context(), request(58)); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), mine[:10]) {
		t.Errorf("error is %v", err)
	}
	if w.head(t, branch) != mine {
		t.Error("the person's commit is gone")
	}
	// Nor are those of a branch that only has the name.
	other := newWorld(t)
	theirs := other.push(t, branch, "Something else")
	if _, err := other.proposer().Propose(t.Context(), request(57)); !errors.Is(err, ErrForeign) {
		t.Errorf("error is %v", err)
	}
	if other.head(t, branch) != theirs {
		t.Error("the person's branch is gone")
	}
}

func TestMergeOfTheBaseIntoTheBranchIsNoPersonsCommit(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(57))
	w.edit(t, "README.md", "# omnivision-gitops", "# The tree", "Another title")
	w.git(t, w.clone, "checkout", "--quiet", "-B", "update", "origin/"+branch)
	w.git(t, w.clone, "merge", "--quiet", "--no-edit", "main")
	w.git(t, w.clone, "push", "--quiet", "origin", "HEAD:"+branch)
	w.propose(t, request(58))
	w.wantProposal(t, 58)
}

func TestWhatCannotBeProposedIsSaid(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		change func(*Request)
		want   string
	}{
		"an app that is not there":  {func(r *Request) { r.App = "nothing" }, `fleet.yaml names no app "nothing"`},
		"a wave without clusters":   {func(r *Request) { r.Wave = 7 }, "fleet.yaml has no cluster in wave 7"},
		"a release without digest":  {func(r *Request) { r.Release.Digest = "" }, "takes a tag and a digest"},
		"a tag that is no version":  {func(r *Request) { r.Release.Tag = "nightly" }, `"nightly" is no version`},
		"the tag that always moves": {func(r *Request) { r.Release.Tag = "latest" }, "the tag latest moves"},
	} {
		r := request(57)
		tt.change(&r)
		if name == "a tag that is no version" {
			w.edit(t, release, `digest: ""`, `digest: "`+digestOf(1)+`"`, "A first release")
		}
		if _, err := w.proposer().Propose(t.Context(), r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	missing := w.proposer()
	missing.Base = "production"
	if _, err := missing.Propose(t.Context(), request(57)); err == nil || !strings.Contains(err.Error(), "has no branch production") {
		t.Errorf("error is %v", err)
	}
	if len(w.forge.pulls) != 0 || w.head(t, branch) != "" {
		t.Error("something was proposed")
	}
}

func TestTextIsMadeOfWhatTheClustersRun(t *testing.T) {
	w := newWorld(t)
	w.propose(t, request(56))
	w.forge.merge(t, w.gitops, 1)
	r := request(57)
	r.Describe = func(_ context.Context, change Change) (Text, error) {
		return Text{Facts: []Fact{{"Before", change.Released["cluster-aws"].Digest}}}, nil
	}
	w.propose(t, r)
	if pr := w.wantProposal(t, 57); !strings.Contains(pr.Body, "- Before: `"+digestOf(56)+"`") || !strings.Contains(pr.Body, "- `cluster-aws`: `0.1.0-56` → `0.1.0-57`") {
		t.Errorf("the text is\n%s", pr.Body)
	}
}

func TestDescriptionSeesTheChangeThatIsCommitted(t *testing.T) {
	w := newWorld(t)
	r := request(57)
	var change Change
	r.Describe = func(_ context.Context, c Change) (Text, error) {
		change = c
		// A plan may look like anything: a patch, and the end of a message.
		return Text{Plan: "### Plan\n\n```diff\n--- a\n+++ b\n\nOmniVision-Release: something else\n```"}, nil
	}
	first := w.propose(t, r)
	w.wantProposal(t, 57)
	if changed := revision.Changed(change.Base, change.Head); len(changed) != 1 || changed[0] != release {
		t.Errorf("described is a change of %v", changed)
	}
	if got, err := change.Head.ReadFile(release); err != nil || strings.TrimSpace(string(got)) != w.file(t, branch, release) {
		t.Errorf("described is\n%s%v", got, err)
	}
	if change.Base.Name != "main" || change.Base.Commit != w.head(t, "main") || change.Head.Name != "origin/"+branch || change.Head.Commit != "" {
		t.Errorf("the sides are %s at %s and %s at %s", change.Base.Name, change.Base.Commit, change.Head.Name, change.Head.Commit)
	}
	writes := w.forge.writes
	if second := w.propose(t, r); fmt.Sprint(second) != fmt.Sprint(first) || w.forge.writes != writes {
		t.Errorf("the second run says %+v, the first %+v", second, first)
	}
	// The base moves: the text is made anew, of what it is now.
	moved := w.edit(t, "fleet.yaml", "displayName: Oregon", "displayName: Portland", "Rename")
	w.propose(t, r)
	w.wantProposal(t, 57)
	if change.Base.Commit != moved {
		t.Errorf("described is a change of %s, the base is %s", change.Base.Commit, moved)
	}
}

func TestPreviewIsTheChangeThatWillBeDescribed(t *testing.T) {
	w := newWorld(t)
	for name, r := range map[string]Request{
		"an app":                         request(57),
		"an app whose wave is looked up": {App: app, Release: request(57).Release, Time: request(57).Time},
		"a component":                    {App: "omnivision-gate", Release: request(57).Release, Time: request(57).Time},
	} {
		before := w.git(t, w.bare, "for-each-ref")
		p := w.proposer()
		p.Report = func(detail string) { t.Errorf("%s: it reports %s", name, detail) }
		preview, err := p.Preview(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if after := w.git(t, w.bare, "for-each-ref"); after != before || w.forge.writes != 0 {
			t.Errorf("%s: it made\n%s\nof\n%s", name, after, before)
		}
		described := false
		r.Describe = func(_ context.Context, c Change) (Text, error) {
			described = true
			if len(revision.Changed(c.Base, preview.Base)) != 0 || len(revision.Changed(c.Head, preview.Head)) != 0 || c.Base.Name != preview.Base.Name || c.Head.Name != preview.Head.Name {
				t.Errorf("%s: previewed is a change of %v, described one of %v", name, revision.Changed(preview.Base, preview.Head), revision.Changed(c.Base, c.Head))
			}
			return Text{}, errors.New("that is all")
		}
		if _, err := w.proposer().Propose(t.Context(), r); err == nil || !described {
			t.Errorf("%s: nothing was described: %v", name, err)
		}
	}
	gone := w.proposer()
	gone.Remote.URL = filepath.Join(t.TempDir(), "none")
	if _, err := gone.Preview(t.Context(), request(57)); err == nil {
		t.Error("a repository that is not there has a preview")
	}
}

func TestNothingIsPushedThatCannotBeDescribed(t *testing.T) {
	w := newWorld(t)
	r := request(57)
	broken := errors.New("cluster-aws cannot render")
	r.Describe = func(context.Context, Change) (Text, error) { return Text{}, broken }
	if _, err := w.proposer().Propose(t.Context(), r); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	if head := w.head(t, branch); head != "" || w.forge.writes != 0 {
		t.Errorf("the branch is at %s, and the forge was written to %d times", head, w.forge.writes)
	}
}

func TestScratchIsRemoved(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	w.propose(t, request(57))
	if _, err := w.proposer().Preview(t.Context(), request(58)); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "omnivision-propose-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestInterruptedProposalEndsAtOnce(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.forge.before = func(string) error {
		cancel()
		return forge.FromHTTP("call", 500, 0, errors.New("internal"))
	}
	if _, err := w.proposer().Propose(ctx, request(57)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestQuarantinedImageIsNotProposed(t *testing.T) {
	w := newWorld(t)
	list, err := fleet.AddQuarantine(nil, fleet.Quarantined{Digest: digestOf(57), App: app, Version: "0.1.0-57", Cluster: "cluster-aws", Reason: "Xid 31", Since: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, fleet.QuarantineFile, string(list), "Quarantine 57")
	again := request(57)
	again.Again = true
	for _, r := range []Request{request(57), again} {
		if _, err := w.proposer().Propose(t.Context(), r); !errors.Is(err, ErrQuarantined) || !strings.Contains(err.Error(), "Xid 31") {
			t.Errorf("proposing it (again: %v) gives %v", r.Again, err)
		}
	}
	if len(w.forge.open()) != 0 || w.head(t, branch) != "" {
		t.Errorf("open are %+v", w.forge.open())
	}
	w.propose(t, request(58))
	w.wantProposal(t, 58)
}

func TestFilesAreProposedOnceAndMoveWithTheBase(t *testing.T) {
	w := newWorld(t)
	const name = "revert/omnivision-worker/000000000039"
	files := func() Files {
		return Files{
			Branch: name, Base: w.head(t, "main"), Title: "Take it back", Body: "Because.\n\n" + RevertTrailer + ": " + app + " 0.1.0-57 " + digestOf(57), Time: time.Unix(1_800_000_000, 0),
			Edit: func(fs.FS) (map[string][]byte, error) {
				return map[string][]byte{fleet.QuarantineFile: []byte("spec: {}\n"), release: []byte("aiWorker: {}\n")}, nil
			},
		}
	}
	first, err := w.proposer().ProposeFiles(t.Context(), files())
	if err != nil {
		t.Fatal(err)
	}
	writes := w.forge.writes
	if again, err := w.proposer().ProposeFiles(t.Context(), files()); err != nil || again.Commit != first.Commit || w.forge.writes != writes {
		t.Errorf("again it is %+v, not %+v, with %d writes: %v", again, first, w.forge.writes-writes, err)
	}
	stale := files()
	w.edit(t, "README.md", "#", "# ", "Unrelated")
	if _, err := w.proposer().ProposeFiles(t.Context(), stale); !errors.Is(err, forge.Conflict) {
		t.Errorf("on a base that moved: %v", err)
	}
	moved, err := w.proposer().ProposeFiles(t.Context(), files())
	if err != nil || moved.Number != first.Number || w.git(t, w.bare, "rev-parse", name+"^") != w.head(t, "main") {
		t.Errorf("after the base moved it is %+v: %v", moved, err)
	}
	if got := w.git(t, w.bare, "diff", "--name-only", "main", name); got != release+"\n"+fleet.QuarantineFile {
		t.Errorf("it changes %q", got)
	}
	w.git(t, w.clone, "fetch", "--quiet", "origin")
	w.git(t, w.clone, "checkout", "--quiet", "-B", "mine", "origin/"+name)
	w.push(t, name, "A person's commit")
	w.edit(t, "README.md", "#", "# ", "Unrelated again")
	if _, err := w.proposer().ProposeFiles(t.Context(), files()); !errors.Is(err, ErrForeign) {
		t.Errorf("over a person's commit: %v", err)
	}
}
