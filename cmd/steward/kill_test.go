package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
	localgitea "github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/gitea/giteatest"
	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/steward"
)

var killSeed = flag.Uint64("kill-seed", 0, "repeat the kills of this seed; without it each run has a seed of its own")

// asSteward makes the test's own program the steward: it can be killed like one.
const asSteward = "OMNIVISION_TEST_STEWARD"

var forgeInstance giteatest.Instance

func TestMain(m *testing.M) {
	if os.Getenv(asSteward) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
	}
	code := m.Run()
	forgeInstance.Close()
	os.Exit(code)
}

const worker = "omnivision-worker"

func workerBuild(n int) fleet.Release {
	return fleet.Release{Tag: fmt.Sprintf("0.1.0-%d", n), Digest: fmt.Sprintf("sha256:%012d%052d", n, 0)}
}

// The story of a bad release, which is taken back, and of a good one, which goes on to the
// next wave, told three times: once in peace, and twice with ten kills each, at the forge's
// door, before a request passes or after it did. All end in the same state.
func TestStewardIsKilledTwentyTimes(t *testing.T) {
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat it with: go test ./cmd/steward -run %s -kill-seed %d", t.Name(), seed)
	s := newStage(t, rand.New(rand.NewPCG(seed, 7))) //nolint:gosec // it must repeat
	abort, promotion := s.story(1, 0, 0)
	for n := 2; n <= 3; n++ {
		s.story(n, abort, promotion)
	}
	t.Logf("%d kills, %d of them before the part of the story was over", s.kills, s.midway)
	if s.kills != 20 || s.midway < 8 {
		t.Errorf("%d kills, %d of them midway: too few to prove anything", s.kills, s.midway)
	}
}

// stage is a real forge, a real API server, and the door between a steward and the forge.
type stage struct {
	t      *testing.T
	ctx    context.Context
	random *rand.Rand

	repo, source  forge.Repository
	commit        func(r fleet.Release) string // makes the commit that a release is built from
	sources       map[fleet.Release]string
	remote        propose.Remote
	cluster       dynamic.Interface
	args          []string
	door          door
	good          fleet.Release
	kills, midway int

	mu   sync.Mutex
	chat []string
}

func newStage(t *testing.T, random *rand.Rand) *stage {
	server := forgeInstance.Server(t)
	api := apiservertest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	s := &stage{t: t, ctx: ctx, random: random, good: workerBuild(1), sources: map[fleet.Release]string{}}

	must(t, server.EnsureOrganisation(ctx, "omnivision"))
	open := func(name, dir string) forge.Repository {
		full := forge.Name{Owner: "omnivision", Repository: name}
		must(t, server.EnsureRepository(ctx, full, localgitea.Work))
		_, err := server.PushTree(ctx, full, dir, "main", "Begin")
		must(t, err)
		repo, err := server.Forge(full)
		must(t, err)
		return repo
	}
	sourceDir := t.TempDir()
	s.commit = func(r fleet.Release) string {
		must(t, os.WriteFile(filepath.Join(sourceDir, "version"), []byte(r.Tag+"\n"), 0o644))
		s.source = open("omnivision", sourceDir)
		head, err := s.source.Head(ctx, "main")
		must(t, err)
		return head
	}
	s.repo = open("omnivision-gitops", s.tree())
	s.commit(s.good)
	must(t, s.repo.Protect(ctx, "main", forge.Protection{UpToDate: true}))
	s.remote = propose.Remote{URL: server.URL() + "omnivision/omnivision-gitops.git", Token: forge.TokenFile(server.TokenFile("fleet"))}

	s.prepareCluster(api)
	address, err := url.Parse(server.URL())
	must(t, err)
	s.door.forge = httputil.NewSingleHostReverseProxy(address)
	s.door.forge.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	front := httptest.NewServer(&s.door)
	t.Cleanup(front.Close)
	chat := httptest.NewServer(http.HandlerFunc(s.hear))
	t.Cleanup(chat.Close)
	notify := filepath.Join(t.TempDir(), "url")
	must(t, os.WriteFile(notify, []byte(chat.URL), 0o600))
	s.args = []string{
		"--cluster=cluster-aws", "--repository=" + front.URL + "/omnivision/omnivision-gitops.git", "--source-repository=" + front.URL + "/omnivision/omnivision.git",
		"--token-file=" + server.TokenFile("fleet"), "--kubeconfig=" + api.Kubeconfig, "--lease-namespace=omnivision-system", "--identity=steward-0",
		"--listen=127.0.0.1:0", "--dir=" + t.TempDir(), "--every=1s", "--loki=", "--prometheus=", "--notify-url-file=" + notify,
	}
	return s
}

func (s *stage) hear(_ http.ResponseWriter, r *http.Request) {
	var said struct{ Text string }
	if err := json.NewDecoder(r.Body).Decode(&said); err == nil {
		s.mu.Lock()
		s.chat = append(s.chat, said.Text)
		s.mu.Unlock()
	}
}

// tree is the GitOps repository with a first release, and everything merged by the steward.
func (s *stage) tree() string {
	dir := filepath.Join(s.t.TempDir(), "tree")
	must(s.t, os.CopyFS(dir, os.DirFS("../../omnivision-gitops")))
	app := fleet.App{Name: worker, ValuePath: "aiWorker"}
	edits := map[string]func([]byte) ([]byte, error){fleet.File: func(data []byte) ([]byte, error) {
		return bytes.ReplaceAll(data, []byte("autoMerge: []"), []byte("autoMerge: [revert, promote]")), nil
	}}
	for _, cluster := range []string{"cluster-aws", "cluster-gcp"} {
		edits[app.ReleaseFile(cluster)] = func(data []byte) ([]byte, error) { return fleet.SetRelease(data, app, s.good) }
	}
	for path, edit := range edits {
		data, err := os.ReadFile(filepath.Join(dir, path))
		must(s.t, err)
		data, err = edit(data)
		must(s.t, err)
		must(s.t, os.WriteFile(filepath.Join(dir, path), data, 0o644))
	}
	return dir
}

func (s *stage) prepareCluster(api *apiservertest.Server) {
	client, err := kubeapi.New(api.Config, "test")
	must(s.t, err)
	var objects []*unstructured.Unstructured
	for _, name := range []string{"omnivision", "argocd", "omnivision-system"} {
		objects = append(objects, object(s.t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+name+"}"))
	}
	for kind, plural := range map[string]string{"Rollout": "rollouts", "AnalysisRun": "analysisruns", "Application": "applications"} {
		objects = append(objects, crd(s.t, kind, plural))
	}
	must(s.t, client.Apply(s.ctx, time.Minute, objects...))
	s.cluster, err = dynamic.NewForConfig(api.Config)
	must(s.t, err)
}

// story has a bad release and then a good one. Without limits it is told in peace, and
// returns how many requests each half took; with them each half has five kills.
func (s *stage) story(n, abortRequests, promotionRequests int) (abort, promotion int) {
	bad, good := workerBuild(10*n), workerBuild(10*n+5)
	abort = s.half("the abort", abortRequests, s.aborts(bad))
	promotion = s.half("the promotion", promotionRequests, s.promotes(good))
	s.good = good
	return abort, promotion
}

// half has a steward killed in each fifth of its requests, and then lets one finish.
func (s *stage) half(what string, requests int, over func() error) int {
	const kills = 5
	for i := 0; i < kills && requests > 0; i++ {
		at := 1 + requests*i/kills + s.random.IntN(max(requests/kills, 1))
		s.life(at, s.random.IntN(2) == 0)
		err := over()
		s.kills++
		if err != nil {
			s.midway++
		}
		s.t.Logf("%s: killed at request %d of %d: %v", what, at, requests, err)
	}
	counted := s.finish(what, over)
	s.t.Logf("%s: over after %d requests of the last steward", what, counted)
	return counted
}

// life is a steward until its kill.
func (s *stage) life(at int, before bool) {
	kill := &kill{at: int32(at), before: before, now: make(chan struct{})} //nolint:gosec // small
	cmd, output := s.begin(kill)
	select {
	case <-kill.now:
	case <-s.ctx.Done():
		s.t.Fatalf("a steward never made %d requests; it said\n%s", at, output)
	}
	s.end(cmd)
}

// finish is a steward that nobody kills, until it has nothing to do.
func (s *stage) finish(what string, over func() error) int {
	kill := &kill{now: make(chan struct{})}
	cmd, output := s.begin(kill)
	defer s.end(cmd)
	for {
		made := int(kill.made.Load())
		err := over()
		if err == nil {
			return made
		}
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("%s: %v; the last steward said\n%s", what, err, output)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *stage) begin(k *kill) (*exec.Cmd, *output) {
	s.t.Helper()
	s.door.kill.Store(k)
	out := &output{}
	cmd := exec.Command(os.Args[0], s.args...) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), asSteward+"=1")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(s.t, cmd.Start())
	return cmd, out
}

// end kills as a container's end does: with the git that it may have started.
func (s *stage) end(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait() // it was killed
	s.door.pass.Wait()
}

// output is what a steward says, read while it speaks.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// kill is when a steward is to be killed.
type kill struct {
	at     int32 // the request; zero is never
	before bool  // it passes the door; otherwise its answer does not
	made   atomic.Int32
	once   sync.Once
	now    chan struct{}
}

// door stands before the forge.
type door struct {
	forge *httputil.ReverseProxy
	kill  atomic.Pointer[kill]
	pass  sync.WaitGroup
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.pass.Add(1)
	defer d.pass.Done()
	k := d.kill.Load()
	n := k.made.Add(1)
	if k.at == 0 || n < k.at {
		d.forge.ServeHTTP(w, r)
		return
	}
	if n == k.at && !k.before {
		// The forge does what it was asked for, though nobody is left to hear of it.
		d.forge.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithoutCancel(r.Context())))
	}
	k.once.Do(func() { close(k.now) })
	panic(http.ErrAbortHandler)
}

// release brings a build to the first wave as the conveyor does, and returns the commit on main.
func (s *stage) release(r fleet.Release) string {
	s.t.Helper()
	s.sources[r] = s.commit(r)
	p := &propose.Proposer{Forge: s.repo, Remote: s.remote, Base: "main"}
	result, err := p.Propose(s.ctx, propose.Request{App: worker, Wave: 1, Release: r, Time: time.Now(), Text: propose.Text{Facts: []propose.Fact{{Name: propose.SourceFact, Value: s.sources[r]}}}})
	must(s.t, err)
	var merged string
	until(s.t, s.ctx, "the merge of "+r.Tag, func() bool {
		merged, err = s.repo.MergePullRequest(s.ctx, result.Number, forge.Merge{})
		return err == nil
	})
	return merged
}

// aborts lets the canary of a release be aborted, and returns what is not yet as it has to be.
func (s *stage) aborts(bad fleet.Release) func() error {
	commit := s.release(bad)
	s.rollout(bad, true)
	return func() error {
		if err := s.desired(s.good, s.good); err != nil {
			return err
		}
		list, err := s.repo.ReadFile(s.ctx, "main", fleet.QuarantineFile)
		must(s.t, err)
		if n := strings.Count(string(list), bad.Digest); n != 1 {
			return fmt.Errorf("the quarantine names it %d times", n)
		}
		pull, err := s.pull(steward.RevertBranch(worker, bad.Digest))
		if err != nil {
			return err
		}
		return s.told(bad, commit, forge.Failure, "[ABORTED]", pull.URL)
	}
}

// promotes lets a release be healthy for an hour.
func (s *stage) promotes(good fleet.Release) func() error {
	s.release(good)
	s.rollout(good, false)
	return func() error {
		if err := s.desired(good, good); err != nil {
			return err
		}
		_, err := s.pull("release/" + worker + "/wave-2")
		return err
	}
}

// desired holds what Git wants of both clusters.
func (s *stage) desired(aws, gcp fleet.Release) error {
	app := fleet.App{Name: worker, ValuePath: "aiWorker"}
	for cluster, want := range map[string]fleet.Release{"cluster-aws": aws, "cluster-gcp": gcp} {
		data, err := s.repo.ReadFile(s.ctx, "main", app.ReleaseFile(cluster))
		must(s.t, err)
		if got, err := fleet.ParseRelease(cluster, data, app); err != nil || got != want {
			return fmt.Errorf("%s wants %s and not %s (%v)", cluster, got.Tag, want.Tag, err)
		}
	}
	return nil
}

// pull is the newest pull request of a branch, which has to be merged: of a revert's branch
// the only one, and none is open of any.
func (s *stage) pull(branch string) (forge.PullRequest, error) {
	open, err := s.repo.FindPullRequests(s.ctx, forge.Query{})
	must(s.t, err)
	all, err := s.repo.FindPullRequests(s.ctx, forge.Query{Head: branch, State: forge.All})
	must(s.t, err)
	switch {
	case len(open) > 0:
		return forge.PullRequest{}, fmt.Errorf("%d pull requests are open, among them %s", len(open), open[0].Head)
	case len(all) == 0:
		return forge.PullRequest{}, fmt.Errorf("%s has no pull request", branch)
	case strings.HasPrefix(branch, "revert/") && len(all) != 1:
		s.t.Errorf("%s has %d pull requests", branch, len(all))
	}
	for _, pr := range all {
		if pr.State != forge.Merged {
			return pr, fmt.Errorf("pull request %d of %s is %s", pr.Number, branch, pr.State)
		}
	}
	return all[0], nil
}

// told holds that both repositories' commits and the chat heard of it, with the link.
func (s *stage) told(r fleet.Release, commit string, state forge.StatusState, word, link string) error {
	for sha, repo := range map[string]forge.Repository{commit: s.repo, s.sources[r]: s.source} {
		statuses, err := repo.Statuses(s.ctx, sha)
		must(s.t, err)
		if !slices.ContainsFunc(statuses, func(st forge.Status) bool {
			return st.Context == steward.Context(worker, "cluster-aws") && st.State == state && st.URL == link
		}) {
			return fmt.Errorf("the statuses of %.8s are %+v, want %s with %s", sha, statuses, state, link)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.chat {
		if strings.Contains(text, word) && strings.Contains(text, r.Tag+"*") && strings.Contains(text, link) {
			return nil
		}
	}
	return fmt.Errorf("the chat never heard %s of %s with %s", word, r.Tag, link)
}

// rollout is what Argo Rollouts makes of a release: an abort by its analysis, or an hour of health.
func (s *stage) rollout(r fleet.Release, aborted bool) {
	s.t.Helper()
	hash := func(r fleet.Release) string { return "h" + strings.TrimPrefix(r.Tag, "0.1.0-") }
	image := func(r fleet.Release) string { return registry + "/" + worker + ":" + r.Tag + "@" + r.Digest }
	for _, release := range []fleet.Release{s.good, r} {
		s.put("apps", "replicasets", fmt.Sprintf(`
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: worker-%[1]s
  namespace: omnivision
  labels: {rollouts-pod-template-hash: %[1]s}
  ownerReferences: [{apiVersion: argoproj.io/v1alpha1, kind: Rollout, name: worker, uid: u}]
spec:
  selector: {matchLabels: {rollouts-pod-template-hash: %[1]s}}
  template:
    metadata: {labels: {rollouts-pod-template-hash: %[1]s}}
    spec: {containers: [{name: worker, image: "%[2]s"}]}
`, hash(release), image(release)))
	}
	ago := func(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }
	status, stable := fmt.Sprintf(`{phase: Healthy, conditions: [{type: Healthy, status: "True", lastTransitionTime: %q}]`, ago(time.Hour)), hash(r)
	if aborted {
		status, stable = fmt.Sprintf(`{phase: Degraded, abort: true, abortedAt: %q, message: "Xid 31 under the canary"`, ago(0)), hash(s.good)
		s.put("argoproj.io", "analysisruns", fmt.Sprintf(`
apiVersion: argoproj.io/v1alpha1
kind: AnalysisRun
metadata:
  name: worker-%[1]s
  namespace: omnivision
  labels: {rollouts-pod-template-hash: %[1]s}
  ownerReferences: [{apiVersion: argoproj.io/v1alpha1, kind: Rollout, name: worker, uid: u}]
status: {phase: Failed, completedAt: %[2]q, metricResults: [{name: worker-cuda-errors, phase: Failed}]}
`, hash(r), ago(0)))
	}
	rollout := func(status string) string {
		return fmt.Sprintf(`
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: worker, namespace: omnivision}
spec: {strategy: {canary: {steps: [{setWeight: 5}]}}, template: {spec: {containers: [{name: worker, image: "%s"}]}}}
%s
`, image(r), status)
	}
	generation := s.put("argoproj.io", "rollouts", rollout(""))
	s.put("argoproj.io", "rollouts", rollout(fmt.Sprintf(`status: %s, observedGeneration: "%d", currentPodHash: %s, stableRS: %s}`, status, generation, hash(r), stable)))
}

// put makes an object be so, its status included, and returns its generation.
func (s *stage) put(group, resource, text string) int64 {
	s.t.Helper()
	o := object(s.t, text)
	client := s.cluster.Resource(schema.GroupVersionResource{Group: group, Version: strings.TrimPrefix(o.GetAPIVersion(), group+"/"), Resource: resource}).Namespace(o.GetNamespace())
	have, err := client.Create(s.ctx, o, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		have, err = client.Get(s.ctx, o.GetName(), metav1.GetOptions{})
		must(s.t, err)
		o.SetResourceVersion(have.GetResourceVersion())
		have, err = client.Update(s.ctx, o, metav1.UpdateOptions{})
	}
	must(s.t, err)
	if o.Object["status"] != nil {
		o.SetResourceVersion(have.GetResourceVersion())
		have, err = client.UpdateStatus(s.ctx, o, metav1.UpdateOptions{})
		must(s.t, err)
	}
	return have.GetGeneration()
}
