package release

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/revision"
)

// released is where the worker's image in the first cluster is.
const released = "apps/omnivision-worker/cluster-aws.yaml"

// gitops is the project's own GitOps tree as a repository.
type gitops struct {
	t   testing.TB
	dir string
}

func newGitops(t testing.TB) gitops {
	t.Helper()
	g := gitops{t: t, dir: t.TempDir()}
	check(t, os.CopyFS(g.dir, os.DirFS("../../omnivision-gitops")))
	for _, file := range []string{"omnivision-worker/cluster-aws", "omnivision-worker/cluster-gcp", "omnivision-ui/cluster-aws", "omnivision-ui/cluster-gcp"} {
		g.edit("apps/"+file+".yaml", `digest: ""`, `digest: "sha256:`+strings.Repeat("1", 64)+`"`)
	}
	g.git("init", "--quiet", "--initial-branch=main")
	g.commit()
	return g
}

func (g gitops) git(args ...string) {
	g.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", g.dir, "-c", "user.name=dev", "-c", "user.email=dev@example.com"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("git %s: %v: %s", args[0], err, out)
	}
}

func (g gitops) commit() {
	g.t.Helper()
	g.git("add", "--all")
	g.git("commit", "--quiet", "-m", "a tree")
}

func (g gitops) edit(file, old, new string) {
	g.t.Helper()
	path := filepath.Join(g.dir, file)
	content, err := os.ReadFile(path)
	check(g.t, err)
	if !strings.Contains(string(content), old) {
		g.t.Fatalf("%s does not hold %q", file, old)
	}
	check(g.t, os.WriteFile(path, []byte(strings.Replace(string(content), old, new, 1)), 0o600))
}

// trees are the base, and what a release makes of it.
func (g gitops) trees(release fleet.Release) (base, head *revision.Tree) {
	g.t.Helper()
	repository, err := revision.Open(g.t.Context(), g.dir)
	check(g.t, err)
	commit, err := repository.Resolve(g.t.Context(), "main")
	check(g.t, err)
	base, err = repository.Tree(g.t.Context(), commit, "main")
	check(g.t, err)
	described, err := fleet.Load(base)
	check(g.t, err)
	app, err := described.App("omnivision-worker")
	check(g.t, err)
	before, err := base.ReadFile(released)
	check(g.t, err)
	after, err := fleet.SetRelease(before, app, release)
	check(g.t, err)
	check(g.t, os.WriteFile(filepath.Join(g.dir, released), after, 0o600))
	head, err = repository.WorkingTree(g.t.Context())
	check(g.t, err)
	head.Name = "origin/release/omnivision-worker/wave-1"
	return base, head
}

// warning is a source of charts that finds something else to say each time.
type warning struct {
	chart.Source
	times int
}

func (w *warning) Chart(ctx context.Context, ref chart.Reference) (*chart.Loaded, error) {
	loaded, err := w.Source.Chart(ctx, ref)
	if err != nil {
		return nil, err
	}
	w.times++
	said := *loaded
	said.Warning = fmt.Sprintf("the registry was away for the %d. time", w.times)
	return &said, nil
}

func TestProposalHoldsThePlanOfEachCluster(t *testing.T) {
	s := newSite(t)
	s.proposer.trees = newGitops(t).trees
	r := s.release()
	r.Charts = &warning{Source: chart.NewCheckout("../../charts/omnivision-platform")}
	w, _, err := s.run(r, "")
	check(t, err)
	text := s.proposer.text.Plan
	for _, want := range []string{"### Plan: 1 of 2 clusters changes", "| `cluster-aws` | changed |", "Untouched: `cluster-gcp`.", "Rollout", s.proposer.requests[0].Release.Digest} {
		if !strings.Contains(text, want) {
			t.Errorf("the plan lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "<!--") || len(text) > propose.MaxPlan {
		t.Errorf("the plan has %d bytes:\n%s", len(text), text)
	}
	// What is different each time is told to whoever runs it, and is not in the text.
	if strings.Contains(text, "was away") || !strings.Contains(strings.Join(w.told, "\n"), "the registry was away for the 1. time") {
		t.Errorf("told is %q, and the plan is\n%s", w.told, text)
	}
	_, _, err = s.run(r, "")
	check(t, err)
	if s.proposer.text.Plan != text {
		t.Errorf("the second run's plan is\n%s\nthe first one's is\n%s", s.proposer.text.Plan, text)
	}
}

func TestReleaseThatAClusterCannotRenderIsNotProposed(t *testing.T) {
	s, g := newSite(t), newGitops(t)
	g.edit("apps/omnivision-worker/values.yaml", "aiWorker:", "aiWorker:\n  nonsense: true")
	g.commit()
	s.proposer.trees = g.trees
	r := s.release()
	r.Charts = chart.NewCheckout("../../charts/omnivision-platform")
	_, _, err := s.run(r, "")
	if err == nil || !strings.Contains(err.Error(), "cluster-aws cannot render its Application omnivision-platform") || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error is %v", err)
	}
}

func TestReleaseWithoutItsChartIsNotProposed(t *testing.T) {
	s := newSite(t)
	s.proposer.trees = newGitops(t).trees
	r := s.release()
	away := errors.New("the registry is away")
	r.Charts = failing{away}
	_, _, err := s.run(r, "")
	if err == nil || !strings.Contains(err.Error(), "cluster-aws") || !strings.Contains(err.Error(), away.Error()) {
		t.Errorf("error is %v", err)
	}
}

type failing struct{ err error }

func (f failing) Chart(context.Context, chart.Reference) (*chart.Loaded, error) { return nil, f.err }

// asked tells when the image of a release is asked for.
type asked struct {
	digest string
	once   *sync.Once
	done   chan struct{}
}

func (a asked) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/manifests/"+a.digest) {
		a.once.Do(func() { close(a.done) })
	}
	return http.DefaultTransport.RoundTrip(r)
}

// patient gives its charts when the commits are being listed.
type patient struct {
	chart.Source
	listing <-chan struct{}
}

func (p patient) Chart(ctx context.Context, ref chart.Reference) (*chart.Loaded, error) {
	select {
	case <-p.listing:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return p.Source.Chart(ctx, ref)
}

func TestCommitsAreListedWhileThePlanIsRendered(t *testing.T) {
	s := newSite(t)
	s.proposer.trees = newGitops(t).trees
	older := "sha256:" + strings.Repeat("5", 64)
	s.proposer.runs = map[string]fleet.Release{"cluster-aws": {Tag: "0.1.0-0", Digest: older}}
	wait := asked{older, &sync.Once{}, make(chan struct{})}
	r := s.release()
	r.Registry = []remote.Option{remote.WithTransport(wait)}
	r.Charts = patient{chart.NewCheckout("../../charts/omnivision-platform"), wait.done}
	belt, err := r.Belt(s.store, &watcher{})
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = belt.Run(ctx, "")
	check(t, err)
	if !strings.Contains(s.proposer.text.Plan, "### Plan: 1 of 2 clusters changes") {
		t.Errorf("the plan is\n%s", s.proposer.text.Plan)
	}
}
