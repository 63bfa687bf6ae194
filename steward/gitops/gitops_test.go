package gitops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/steward"
)

const app = "omnivision-worker"

var source = strings.Repeat("5c", 20)

func build(n int) fleet.Release {
	return fleet.Release{Tag: fmt.Sprintf("0.1.0-%d", n), Digest: fmt.Sprintf("sha256:%064x", n)}
}

// fakeCluster is what a test says that a cluster says.
type fakeCluster map[string]steward.Rollout

func (c fakeCluster) Look(context.Context, steward.Git) (map[string]steward.Rollout, error) {
	return c, nil
}
func (fakeCluster) Do(context.Context, steward.Action) error { return nil }

func healthy(r fleet.Release, since time.Time) fakeCluster {
	return fakeCluster{app: {Name: "worker", Phase: steward.Healthy, Spec: r, Stable: r, HealthySince: since}}
}

type bench struct {
	*fakeForge
	t   *testing.T
	now time.Time
}

func newBench(t *testing.T) *bench {
	b := &bench{fakeForge: newFake(t), t: t, now: time.Now()}
	for _, cluster := range []string{"cluster-aws", "cluster-gcp"} {
		b.release(cluster, build(1))
	}
	return b
}

// release merges an image into a cluster's file, as a person's commit.
func (b *bench) release(cluster string, r fleet.Release) {
	b.t.Helper()
	f := fleet.App{Name: app, ValuePath: "aiWorker"}
	b.write(b.t, f.ReleaseFile(cluster), func(src string) string {
		out, err := fleet.SetRelease([]byte(src), f, r)
		if err != nil {
			b.t.Fatal(err)
		}
		return string(out)
	}, "Release "+r.Tag)
}

func (b *bench) autoMerge(kind string) {
	b.write(b.t, fleet.File, func(src string) string { return strings.Replace(src, "autoMerge: []", "autoMerge: ["+kind+"]", 1) }, "Merge by itself")
}

// step lets a steward that was just started look and act once.
func (b *bench) step(cluster string, here fakeCluster) steward.Result {
	b.t.Helper()
	s := &steward.Steward{
		Name: cluster, Cluster: here, Clock: func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler),
		Repository: &Repository{Forge: b, Source: b, Base: "main", Dir: b.t.TempDir(), Remote: propose.Remote{URL: b.bare, Name: "OmniVision steward", Email: "steward@omnivision.invalid"}},
	}
	result, err := s.Step(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

func (b *bench) wants(cluster string, r fleet.Release) {
	b.t.Helper()
	if got := b.file(b.t, "apps/"+app+"/"+cluster+".yaml"); !strings.Contains(got, r.Digest) || !strings.Contains(got, `"`+r.Tag+`"`) {
		b.t.Errorf("%s wants\n%s\nnot %s", cluster, got, r.Tag)
	}
}

func aborted(bad, stable fleet.Release, at time.Time) fakeCluster {
	return fakeCluster{app: {Name: "worker", Phase: steward.Degraded, Spec: bad, Stable: stable, Aborts: []steward.Abort{{
		Release: bad, At: at, Live: true,
		Evidence: steward.Evidence{
			Reason:  "Metric \"worker-cuda-errors\" assessed Failed",
			Metrics: []steward.Metric{{Name: "worker-cuda-errors", Phase: "Failed", Values: []steward.Value{{At: at, Value: "[2]", Phase: "Failed"}}}},
			Pods:    []string{"worker-abc on gpu-0: Running | `x`"},
		},
	}}}}
}

func TestAbortBecomesARevertWithQuarantineAndEvidence(t *testing.T) {
	b := newBench(t)
	b.release("cluster-aws", build(2))
	bad := aborted(build(2), build(1), b.now)
	b.step("cluster-aws", bad)
	open := b.open()
	if len(open) != 1 || open[0].Head != steward.RevertBranch(app, build(2).Digest) {
		t.Fatalf("open are %+v", open)
	}
	for _, want := range []string{"worker-cuda-errors", "| `[2]` | `Failed` |", "worker-abc on gpu-0", build(2).Digest, "Closing this changes nothing"} {
		if !strings.Contains(open[0].Body, want) {
			t.Errorf("the text lacks %q:\n%s", want, open[0].Body)
		}
	}
	if got := run(t, b.bare, "diff", "--name-only", "main", open[0].Head); got != "apps/"+app+"/cluster-aws.yaml\n"+fleet.QuarantineFile {
		t.Errorf("it changes %q", got)
	}
	head := b.branch(open[0].Head)
	b.step("cluster-aws", bad)
	if b.branch(open[0].Head) != head || len(b.pulls) != 1 {
		t.Error("repeated, it was made anew")
	}
	b.write(t, "README.md", func(s string) string { return s + "\n" }, "Unrelated")
	b.step("cluster-gcp", healthy(build(1), b.now)) // any steward keeps it on top of the base
	if parent := run(t, b.bare, "rev-parse", open[0].Head+"^"); parent != b.branch("main") {
		t.Error("it does not follow the base")
	}
	b.autoMerge("revert")
	b.step("cluster-aws", bad)
	b.step("cluster-aws", bad)
	b.wants("cluster-aws", build(1))
	if len(b.open()) != 0 || !strings.Contains(b.file(t, fleet.QuarantineFile), build(2).Digest) {
		t.Errorf("open are %+v, the list is\n%s", b.open(), b.file(t, fleet.QuarantineFile))
	}
	tree := os.DirFS(b.clone)
	run(t, b.clone, "fetch", "--quiet", "origin")
	run(t, b.clone, "reset", "--quiet", "--hard", "origin/main")
	if problems := fleet.Validate(tree); len(problems) > 0 {
		t.Errorf("the tree is invalid: %v", problems)
	}
	b.step("cluster-aws", healthy(build(1), b.now))
	if len(b.pulls) != 1 {
		t.Errorf("afterwards pull requests are %+v", b.pulls)
	}
}

func TestHealthyWaveIsHandedOnAndReported(t *testing.T) {
	b := newBench(t)
	b.autoMerge("promote")
	body := "- " + propose.SourceFact + ": `" + source + "`\n\nOmniVision-Release: " + app + " " + build(2).Tag + " " + build(2).Digest
	b.pulls = append(b.pulls, forge.PullRequest{Number: 1, Head: "release/" + app + "/wave-1", Base: "main", State: forge.Merged, Body: body})
	b.release("cluster-aws", build(2))
	b.step("cluster-aws", healthy(build(2), b.now.Add(-10*time.Minute)))
	if len(b.open()) != 0 {
		t.Fatalf("after 10m of 30m open are %+v", b.open())
	}
	landed := b.branch("main")
	if got := b.statuses[landed][steward.Context(app, "cluster-aws")]; got.State != forge.Pending || !strings.HasPrefix(got.Description, "healthy: since ") {
		t.Errorf("the report is %+v", got)
	}
	b.step("cluster-aws", healthy(build(2), b.now.Add(-31*time.Minute)))
	open := b.open()
	if len(open) != 1 || open[0].Head != "release/"+app+"/wave-2" || !strings.Contains(open[0].Body, source) {
		t.Fatalf("after 31m open are %+v", open)
	}
	b.step("cluster-aws", healthy(build(2), b.now.Add(-31*time.Minute)))
	b.wants("cluster-gcp", build(2))
	b.step("cluster-gcp", healthy(build(2), b.now))
	overall := b.statuses[source][steward.DoneContext(app)]
	if overall.State != forge.Success || !strings.HasPrefix(overall.Description, "Deployment successful: 0.1.0-2 runs in cluster-aws, cluster-gcp") {
		t.Errorf("the source's commit says %+v", overall)
	}
	if d := b.deployments[len(b.deployments)-1]; d.SHA != source || d.State != forge.Deployed || d.Environment != "cluster-gcp/"+app || d.EnvironmentURL == "" {
		t.Errorf("the last deployment is %+v", d)
	}
	writes := fmt.Sprint(len(b.deployments), len(b.pulls))
	b.step("cluster-gcp", healthy(build(2), b.now))
	if fmt.Sprint(len(b.deployments), len(b.pulls)) != writes {
		t.Error("what was told is told again")
	}
}

func TestLaterWaveOfACondemnedImageIsWithdrawn(t *testing.T) {
	b := newBench(t)
	b.release("cluster-aws", build(2))
	soaked := healthy(build(2), b.now.Add(-time.Hour))
	b.step("cluster-aws", soaked)
	if len(b.open()) != 1 {
		t.Fatalf("open are %+v", b.pulls)
	}
	b.step("cluster-aws", aborted(build(2), build(1), b.now))
	if pr := b.pulls[0]; pr.State != forge.Closed || !strings.HasPrefix(pr.Body, withdrawnNote) {
		t.Errorf("the next wave's pull request is %+v", pr)
	}
	if open := b.open(); len(open) != 1 || !strings.HasPrefix(open[0].Head, "revert/") {
		t.Errorf("open are %+v", open)
	}
}

func TestPersonsCommitOnTheBranchIsLeftAlone(t *testing.T) {
	b := newBench(t)
	b.autoMerge("revert")
	b.release("cluster-aws", build(2))
	bad := aborted(build(2), build(1), b.now)
	b.step("cluster-aws", bad)
	branch := b.open()[0].Head
	run(t, b.clone, "fetch", "--quiet", "origin")
	run(t, b.clone, "checkout", "--quiet", "-B", "mine", "origin/"+branch)
	run(t, b.clone, "commit", "--quiet", "--allow-empty", "-m", "Wait")
	run(t, b.clone, "push", "--quiet", "origin", "HEAD:"+branch)
	head := b.branch(branch)
	b.step("cluster-aws", bad)
	if b.branch(branch) != head || len(b.open()) != 1 {
		t.Error("the steward touched, or merged, a branch with a person's commit")
	}
}

func TestBranchThatChangesMoreIsNotMerged(t *testing.T) {
	b := newBench(t)
	b.autoMerge("revert")
	b.release("cluster-aws", build(2))
	bad := aborted(build(2), build(1), b.now)
	b.step("cluster-aws", bad)
	branch := b.open()[0].Head
	message := run(t, b.bare, "show", "--no-patch", "--format=%B", branch)
	run(t, b.clone, "fetch", "--quiet", "origin")
	run(t, b.clone, "checkout", "--quiet", "-B", "mine", "origin/"+branch)
	if err := os.WriteFile(b.clone+"/extra.yaml", []byte("a: b\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, b.clone, "add", "--all")
	run(t, b.clone, "commit", "--quiet", "--amend", "-m", message)
	run(t, b.clone, "push", "--quiet", "--force", "origin", "HEAD:"+branch)
	b.step("cluster-aws", bad)
	if got := run(t, b.bare, "diff", "--name-only", "main", branch); strings.Contains(got, "extra.yaml") || b.pulls[0].State != forge.Open {
		t.Errorf("the branch changes %q, the pull request is %s", got, b.pulls[0].State)
	}
}

func TestLiftedQuarantineIsReadFromHistory(t *testing.T) {
	b := newBench(t)
	add := func(n int) func(string) string {
		return func(src string) string {
			var have []byte
			if src != "" {
				have = []byte(src)
			}
			out, err := fleet.AddQuarantine(have, fleet.Quarantined{Digest: build(n).Digest, App: app, Since: b.now})
			if err != nil {
				t.Fatal(err)
			}
			return string(out)
		}
	}
	b.write(t, fleet.QuarantineFile, add(7), "Quarantine 7")
	one := b.file(t, fleet.QuarantineFile) + "\n"
	b.write(t, fleet.QuarantineFile, add(8), "Quarantine 8")
	b.write(t, fleet.QuarantineFile, func(string) string { return one }, "Lift 8")
	r := &Repository{Forge: b, Base: "main", Dir: t.TempDir(), Remote: propose.Remote{URL: b.bare}}
	git, err := r.Look(t.Context(), "cluster-aws")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := git.Lifted[build(8).Digest]; !ok || len(git.Lifted) != 1 || !git.Quarantine.Has(build(7).Digest) {
		t.Errorf("lifted are %v, quarantined %v", git.Lifted, git.Quarantine)
	}
	w := git.Apps[app].Wanted["cluster-aws"]
	if w.Release != build(1) || len(w.Before) != 1 || w.Since.IsZero() {
		t.Errorf("wanted is %+v", w)
	}
}

// downForge does not answer, for as long as it is down.
type downForge struct {
	*fakeForge
	down bool
}

func (f *downForge) FindPullRequests(ctx context.Context, q forge.Query) ([]forge.PullRequest, error) {
	if f.down {
		return nil, &forge.Error{Code: forge.Unavailable, Op: "find pull requests"}
	}
	return f.fakeForge.FindPullRequests(ctx, q)
}

func TestAbortWhileTheForgeIsDownReachesGitWhenItIsBack(t *testing.T) {
	b := newBench(t)
	b.release("cluster-aws", build(2))
	down := &downForge{fakeForge: b.fakeForge, down: true}
	here := aborted(build(2), build(1), b.now)
	s := &steward.Steward{
		Name: "cluster-aws", Cluster: here, Log: slog.New(slog.DiscardHandler),
		Repository: &Repository{Forge: down, Base: "main", Dir: t.TempDir(), Remote: propose.Remote{URL: b.bare}},
	}
	for range 3 {
		if _, err := s.Step(t.Context()); !errors.Is(err, forge.Unavailable) {
			t.Fatalf("while it is down the step says %v", err)
		}
	}
	down.down = false
	// Meanwhile a person released something newer over it: only the analysis tells of the abort.
	b.release("cluster-aws", build(3))
	rollout := here[app]
	rollout.Spec, rollout.Phase, rollout.Aborts[0].Live = build(3), steward.Progressing, false
	here[app] = rollout
	if _, err := s.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	open := b.open()
	if len(open) != 1 || run(t, b.bare, "diff", "--name-only", "main", open[0].Head) != fleet.QuarantineFile {
		t.Errorf("open are %+v: it is to quarantine build 2, and to leave build 3 alone", open)
	}
}

func TestRevertIsClosedWithACommentWhenItsQuarantineIsLifted(t *testing.T) {
	b := newBench(t)
	b.release("cluster-aws", build(2))
	before := b.file(t, fleet.QuarantineFile) + "\n"
	b.write(t, fleet.QuarantineFile, func(src string) string {
		out, err := fleet.AddQuarantine([]byte(src), fleet.Quarantined{Digest: build(2).Digest, App: app, Version: build(2).Tag, Cluster: "cluster-gcp", Reason: "a person's doubt", Since: b.now})
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}, "Quarantine build 2")
	b.fakeForge.now = time.Now().Add(-time.Hour) // when its pull request is opened
	here := healthy(build(2), b.now)
	b.step("cluster-aws", here)
	if open := b.open(); len(open) != 1 || open[0].Head != steward.RevertBranch(app, build(2).Digest) {
		t.Fatalf("open are %+v", open)
	}
	b.write(t, fleet.QuarantineFile, func(string) string { return before }, "Lift it: it was the driver")
	b.fakeForge.now = time.Now()
	b.step("cluster-aws", here)
	b.step("cluster-gcp", healthy(build(1), b.now))
	if pr := b.pulls[0]; pr.State != forge.Closed || !withdrawn(pr.Body) || !strings.Contains(b.comments["withdrawn"], "was lifted while this was open") || len(b.pulls) != 1 {
		t.Errorf("there are %d pull requests, the first is %s: %s; the comments are %v", len(b.pulls), pr.State, pr.Body, b.comments)
	}
	b.wants("cluster-aws", build(2))
}
