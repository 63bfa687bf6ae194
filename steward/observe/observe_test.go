package observe

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/steward"
)

var oregon = fleet.Cluster{Name: "cluster-aws", ImageRegistry: "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision"}

func git() steward.Git {
	return steward.Git{Fleet: &fleet.Fleet{Clusters: []fleet.Cluster{oregon}, Apps: []fleet.App{{Name: "omnivision-worker", Repository: "omnivision-worker"}, {Name: "omnivision-ui", Repository: "omnivision-ui"}}}}
}

func digest(d string) string { return "sha256:" + strings.Repeat(d, 64) }

// start watches a fake API server with the objects of a file.
func start(t *testing.T, file string, drain *Hardware, edits ...func([]*unstructured.Unstructured)) (*Cluster, *fake.FakeDynamicClient) {
	t.Helper()
	return startWith(t, file, Options{Drain: drain}, edits...)
}

func startWith(t *testing.T, file string, o Options, edits ...func([]*unstructured.Unstructured)) (*Cluster, *fake.FakeDynamicClient) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var objects []*unstructured.Unstructured
	for _, doc := range strings.Split(string(data), "\n---\n") {
		u := &unstructured.Unstructured{}
		data, err := yaml.YAMLToJSON([]byte(strings.ReplaceAll(strings.ReplaceAll(doc, "GOOD", digest("a")), "BAD", digest("b"))))
		if err != nil {
			t.Fatal(err)
		}
		if err := u.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, u)
	}
	for _, edit := range edits {
		edit(objects)
	}
	var all []runtime.Object
	for _, u := range objects {
		all = append(all, u)
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		rollouts: "RolloutList", analysisRuns: "AnalysisRunList", applications: "ApplicationList", replicaSets: "ReplicaSetList", pods: "PodList", nodes: "NodeList",
	}, all...)
	o.Name, o.Namespace, o.ArgoCD = "cluster-aws", "omnivision", "argocd"
	c, err := New(client, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c, client
}

func look(t *testing.T, c *Cluster) steward.Rollout {
	t.Helper()
	found, err := c.Look(t.Context(), git())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := found["omnivision-ui"]; ok {
		t.Error("a Rollout was found for an app that has none")
	}
	return found["omnivision-worker"]
}

func TestAbortedCanaryIsToldWithItsEvidence(t *testing.T) {
	c, _ := start(t, "aborted.yaml", nil)
	r := look(t, c)
	good, bad := fleet.Release{Tag: "0.1.0-1", Digest: digest("a")}, fleet.Release{Tag: "0.1.0-2", Digest: digest("b")}
	if r.Spec != bad || r.Stable != good || r.Phase != steward.Degraded || !r.HealthySince.IsZero() || r.Step != 1 || r.Steps != 4 || r.Weight != 5 || r.PodShare != 25 {
		t.Errorf("the Rollout is %+v", r)
	}
	if len(r.Aborts) != 1 {
		t.Fatalf("aborts are %+v", r.Aborts)
	}
	a := r.Aborts[0]
	if a.Release != bad || !a.Live || !a.At.Equal(time.Date(2026, 11, 27, 2, 0, 0, 0, time.UTC)) || !strings.Contains(a.Evidence.Reason, "worker-cuda-errors") {
		t.Errorf("the abort is %+v", a)
	}
	m := a.Evidence.Metrics
	if len(m) != 1 || m[0].Name != "worker-cuda-errors" || len(m[0].Values) != 2 || m[0].Values[1].Value != "[2]" || m[0].Values[1].Phase != "Failed" {
		t.Errorf("the metrics are %+v", m)
	}
	if pods := strings.Join(a.Evidence.Pods, "\n"); pods != "omnivision-worker-bbb-1 on gpu-0: Running, worker restarted 2 times\nomnivision-worker-bbb-2 on no node: Pending, Unschedulable: 0/3 nodes: Insufficient nvidia.com/gpu" {
		t.Errorf("the Pods are\n%s", pods)
	}
}

func TestAbortThatNobodySawIsToldByItsAnalysis(t *testing.T) {
	c, _ := start(t, "aborted.yaml", nil, func(objects []*unstructured.Unstructured) {
		rollout := objects[0] // someone has gone back since
		set(t, rollout, false, "status", "abort")
		set(t, rollout, "Healthy", "status", "phase")
		set(t, rollout, "aaa", "status", "currentPodHash")
		containers := []any{map[string]any{"name": "worker", "image": oregon.ImageRegistry + "/omnivision-worker:0.1.0-1@" + digest("a")}}
		if err := unstructured.SetNestedSlice(rollout.Object, containers, "spec", "template", "spec", "containers"); err != nil {
			t.Fatal(err)
		}
	})
	r := look(t, c)
	if len(r.Aborts) != 1 || r.Aborts[0].Live || r.Aborts[0].Digest != digest("b") || r.Aborts[0].At.IsZero() {
		t.Errorf("aborts are %+v", r.Aborts)
	}
	if r.HealthySince.IsZero() || r.Spec != r.Stable {
		t.Errorf("the Rollout is %+v", r)
	}
}

func TestAbortIsNotBlamedOnTheReleaseThatCameAfterIt(t *testing.T) {
	c, _ := start(t, "aborted.yaml", nil, func(objects []*unstructured.Unstructured) {
		objects[0].SetGeneration(8) // the controller has not seen this
		containers := []any{map[string]any{"name": "worker", "image": oregon.ImageRegistry + "/omnivision-worker:0.1.0-3@" + digest("c")}}
		if err := unstructured.SetNestedSlice(objects[0].Object, containers, "spec", "template", "spec", "containers"); err != nil {
			t.Fatal(err)
		}
	})
	r := look(t, c)
	if len(r.Aborts) != 1 || r.Aborts[0].Live || r.Aborts[0].Digest != digest("b") {
		t.Errorf("aborts are %+v", r.Aborts)
	}
}

func TestSpecThatTheControllerHasNotSeenIsNotHealthy(t *testing.T) {
	c, _ := start(t, "healthy.yaml", nil)
	if r := look(t, c); r.Phase != steward.Healthy || r.HealthySince.IsZero() || len(r.Aborts) != 0 || r.Trouble != "" {
		t.Errorf("the Rollout is %+v", r)
	}
	c, _ = start(t, "healthy.yaml", nil, func(objects []*unstructured.Unstructured) { objects[0].SetGeneration(8) })
	if r := look(t, c); r.Phase != steward.Progressing || !r.HealthySince.IsZero() {
		t.Errorf("the Rollout is %+v", r)
	}
}

func TestBrokenHardwareIsIsolatedAndTheCanaryGoesOn(t *testing.T) {
	prometheus := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query().Get("query")
		if !strings.Contains(query, `pod=~"omnivision-worker-bbb-[a-z0-9]+"`) || !strings.Contains(query, `xid=~"46|48|79"`) || !sinceTheAnalysis.MatchString(query) {
			t.Errorf("the query is %s", query)
		}
		_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"vector","result":[{"metric":{"pod":"omnivision-worker-bbb-1","node":"gpu-0","xid":"79"},"value":[1,"1"]}]}}`))
	}))
	defer prometheus.Close()
	hardware := &Hardware{Prometheus: prometheus.URL, Xids: []int{46, 48, 79}}
	paused := func(objects []*unstructured.Unstructured) {
		set(t, objects[0], false, "status", "abort")
		set(t, objects[0], "Paused", "status", "phase")
		if err := unstructured.SetNestedSlice(objects[0].Object, []any{map[string]any{"reason": "InconclusiveAnalysisRun"}}, "status", "pauseConditions"); err != nil {
			t.Fatal(err)
		}
	}
	c, client := start(t, "aborted.yaml", hardware, paused)
	r := look(t, c)
	if len(r.Faults) != 1 || r.Faults[0] != (steward.Fault{Node: "gpu-0", Pod: "omnivision-worker-bbb-1", Xid: "79"}) {
		t.Fatalf("faults are %+v", r.Faults)
	}
	if err := c.Do(t.Context(), steward.Isolate{Fault: r.Faults[0]}); err != nil {
		t.Fatal(err)
	}
	node, err := client.Resource(nodes).Get(t.Context(), "gpu-0", getOptions)
	if err != nil {
		t.Fatal(err)
	}
	if cordoned, _, _ := unstructured.NestedBool(node.Object, "spec", "unschedulable"); !cordoned {
		t.Error("the node is not cordoned")
	}
	evicted := ""
	for _, a := range client.Actions() {
		if create, ok := a.(clienttesting.CreateAction); ok && a.GetSubresource() == "eviction" {
			evicted += create.GetObject().(*unstructured.Unstructured).GetName() + " "
		}
	}
	if evicted != "omnivision-worker-bbb-1 " {
		t.Errorf("evicted are %q", evicted)
	}
	if err := c.Do(t.Context(), steward.Resume{App: "omnivision-worker", Rollout: "omnivision-worker"}); err != nil {
		t.Fatal(err)
	}
	last := client.Actions()[len(client.Actions())-1].(clienttesting.PatchAction)
	if last.GetSubresource() != "status" || string(last.GetPatch()) != `{"status":{"pauseConditions":null}}` {
		t.Errorf("the Rollout was patched by %s %s", last.GetSubresource(), last.GetPatch())
	}
	// When the Pod is gone from its node the fault is still known, and dealt with.
	c, _ = start(t, "aborted.yaml", hardware, paused, func(objects []*unstructured.Unstructured) {
		pod, node := objects[4], objects[6]
		pod.SetName("omnivision-worker-bbb-3")
		set(t, pod, "gpu-1", "spec", "nodeName")
		set(t, node, true, "spec", "unschedulable")
	})
	if r := look(t, c); len(r.Faults) != 1 || r.Faults[0] != (steward.Fault{Node: "gpu-0", Pod: "omnivision-worker-bbb-1", Xid: "79", Isolated: true}) {
		t.Errorf("after the eviction faults are %+v", r.Faults)
	}
}

// sinceTheAnalysis is the range of the query for faults: what was before the newest analysis
// began is dealt with.
var sinceTheAnalysis = regexp.MustCompile(`\[[1-9][0-9]*s\]\)\) > 0$`)

func TestResumeBeginsTheStepsPauseAnew(t *testing.T) {
	for step, want := range map[int64]string{
		0: `{"status":{"pauseConditions":null}}`, // no pause
		1: `{"status":{"currentStepIndex":0,"pauseConditions":null}}`,
		3: `{"status":{"currentStepIndex":2,"pauseConditions":null}}`,
		4: `{"status":{"pauseConditions":null}}`, // all steps are done
	} {
		c, client := start(t, "aborted.yaml", nil, func(objects []*unstructured.Unstructured) { set(t, objects[0], step, "status", "currentStepIndex") })
		if err := c.Do(t.Context(), steward.Resume{App: "omnivision-worker", Rollout: "omnivision-worker"}); err != nil {
			t.Fatal(err)
		}
		last := client.Actions()[len(client.Actions())-1].(clienttesting.PatchAction)
		if got := string(last.GetPatch()); got != want {
			t.Errorf("at step %d the patch is %s, want %s", step, got, want)
		}
	}
}

// A canary may change what is around the image that is stable: whatever ends it does not
// condemn that image, neither now nor when another one has become stable.
func TestFailedCanaryAroundTheStableImageIsNoAbortOfIt(t *testing.T) {
	for _, test := range []struct {
		name, stableThen string
		image            string // of the failed revision
		want             int
	}{
		{"another image", "aaa", "BAD", 1},
		{"the image that was stable", "aaa", "GOOD", 0},
		{"what was stable is gone", "zzz", "GOOD", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _ := start(t, "aborted.yaml", nil, func(objects []*unstructured.Unstructured) {
				set(t, objects[0], false, "status", "abort")
				set(t, objects[0], "ccc", "status", "currentPodHash")
				set(t, objects[0], "ccc", "status", "stableRS") // a third image
				image := strings.NewReplacer("BAD", "0.1.0-2@"+digest("b"), "GOOD", "0.1.0-1@"+digest("a")).Replace(test.image)
				containers := []any{map[string]any{"name": "worker", "image": oregon.ImageRegistry + "/omnivision-worker:" + image}}
				args := []any{map[string]any{"name": "canary-hash", "value": "bbb"}, map[string]any{"name": "stable-hash", "value": test.stableThen}}
				for _, list := range []struct {
					u     *unstructured.Unstructured
					value []any
					path  []string
				}{{objects[2], containers, []string{"spec", "template", "spec", "containers"}}, {objects[3], args, []string{"spec", "args"}}} {
					if err := unstructured.SetNestedSlice(list.u.Object, list.value, list.path...); err != nil {
						t.Fatal(err)
					}
				}
			})
			if r := look(t, c); len(r.Aborts) != test.want {
				t.Errorf("aborts are %+v, want %d", r.Aborts, test.want)
			}
		})
	}
}

func TestCanaryThatFindsNoNodeSaysWhy(t *testing.T) {
	c, _ := start(t, "aborted.yaml", nil)
	if r := look(t, c); r.Waiting != "0/3 nodes: Insufficient nvidia.com/gpu" {
		t.Errorf("it waits for %q", r.Waiting)
	}
	c, _ = start(t, "aborted.yaml", nil, func(objects []*unstructured.Unstructured) { set(t, objects[0], "bbb", "status", "stableRS") })
	if r := look(t, c); r.Waiting != "" {
		t.Errorf("without a canary it waits for %q", r.Waiting)
	}
}

func set(t *testing.T, u *unstructured.Unstructured, value any, path ...string) {
	t.Helper()
	if err := unstructured.SetNestedField(u.Object, value, path...); err != nil {
		t.Fatal(err)
	}
}

var getOptions = metav1.GetOptions{}

func TestWeightIsTheShareOfPodsWhereNothingRoutes(t *testing.T) {
	canary := func(status string, routed bool) func([]*unstructured.Unstructured) {
		return func(objects []*unstructured.Unstructured) {
			set(t, objects[0], int64(4), "status", "replicas")
			set(t, objects[0], int64(1), "status", "updatedReplicas")
			set(t, objects[0], status, "status", "currentPodHash")
			if routed {
				set(t, objects[0], map[string]any{"traefik": map[string]any{}}, "spec", "strategy", "canary", "trafficRouting")
			}
		}
	}
	for _, test := range []struct {
		name, current string
		routed        bool
		want          int
	}{{"by Pods", "bbb", false, 25}, {"by requests", "bbb", true, -1}} {
		c, _ := start(t, "aborted.yaml", nil, canary(test.current, test.routed))
		if r := look(t, c); r.PodShare != test.want {
			t.Errorf("%s: the share is %d, want %d", test.name, r.PodShare, test.want)
		}
	}
}
