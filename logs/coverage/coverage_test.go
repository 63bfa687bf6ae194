package coverage

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/logs/loki"
)

const namespace = "omnivision"

var now = time.Date(2026, 11, 27, 3, 0, 0, 0, time.UTC)

func up(name string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
}

// pod runs one container "main" for ten minutes, with a sidecar that runs.
func pod(name string, changes ...func(*corev1.Pod)) corev1.Pod {
	yes := true
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name), CreationTimestamp: metav1.NewTime(now.Add(-10 * time.Minute)), OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "r", UID: "r", Controller: &yes}}},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{{Name: inject.ContainerName}}, Containers: []corev1.Container{{Name: "main"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			InitContainerStatuses: []corev1.ContainerStatus{up(inject.ContainerName)}, ContainerStatuses: []corev1.ContainerStatus{up("main")}},
	}
	for _, change := range changes {
		change(&p)
	}
	return p
}

func bare(p *corev1.Pod) { p.Spec.InitContainers, p.Status.InitContainerStatuses = nil, nil }

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{key: value} }
}

func TestEachGapIsNamedWithItsReason(t *testing.T) {
	down := func(state corev1.ContainerState) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = state }
	}
	pods := []corev1.Pod{
		pod("delivers"),
		pod("silent"),
		pod("slipped", bare),
		pod("forged", bare, annotated(inject.StatusAnnotation, string(inject.Injected))),
		pod("quits", bare, annotated(inject.OptOutAnnotation, inject.OptOut)),
		pod("static", bare, annotated(corev1.MirrorPodAnnotationKey, "x")),
		pod("driverless", bare, annotated(inject.StatusAnnotation, string(inject.NoDriver))),
		pod("crashes", down(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}})),
		pod("ended", down(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}})),
		pod("young", bare, func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Second)) }),
		pod("done", bare, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("leaving", bare, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: now} }),
		pod("elsewhere", bare, func(p *corev1.Pod) { p.Namespace = "other" }),
		pod("stopped", func(p *corev1.Pod) { p.Status.ContainerStatuses[0].State = corev1.ContainerState{} }),
	}
	r := Assess(namespace, pods, map[loki.Source]bool{{Namespace: namespace, Pod: "delivers", Container: "main"}: true}, now, 30*time.Second)
	var got []string
	for _, c := range append(r.Gaps, r.Quiet...) {
		got = append(got, c.Pod+" "+string(c.Reason))
	}
	want := []string{"crashes sidecar-not-running", "driverless not-injectable", "ended sidecar-not-running", "forged no-sidecar", "quits opted-out", "slipped no-sidecar", "static not-injectable", "silent nothing-delivered"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("gaps:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r.Running != 9 || r.Covered != 2 || r.Delivered != 1 || r.Complete() {
		t.Errorf("%+v", r)
	}
	if r := Assess(namespace, []corev1.Pod{pod("a"), pod("b", bare, annotated(inject.OptOutAnnotation, inject.OptOut))}, nil, now, 0); !r.Complete() {
		t.Error("a Pod that opted out makes a gap")
	}
}

type delivery struct{ err error }

func (d delivery) Delivered(context.Context, string, time.Duration) (map[loki.Source]bool, error) {
	return map[loki.Source]bool{{Namespace: namespace, Pod: "good", Container: "main"}: true}, d.err
}

// labelled is the namespace, which wants its Pods repaired or not.
func labelled(evict bool) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{inject.NamespaceLabel: inject.NamespaceEnabled}}}
	if evict {
		n.Annotations = map[string]string{RepairAnnotation: Evict}
	}
	return n
}

func watcher(t *testing.T, d delivery, evict bool) (*Watcher, client.Client, *record.FakeRecorder) {
	t.Helper()
	good, slipped, alone := pod("good"), pod("slipped", bare), pod("alone", bare, func(p *corev1.Pod) { p.OwnerReferences = nil })
	c := fake.NewClientBuilder().WithObjects(labelled(evict),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, &good, &slipped, &alone).Build()
	events := record.NewFakeRecorder(10)
	w, err := NewWatcher(c, d, events, Options{}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return w, c, events
}

func TestGapsAreExportedRaisedAndRepaired(t *testing.T) {
	w, c, events := watcher(t, delivery{}, true)
	reports, err := w.Measure(t.Context(), now)
	if err != nil || len(reports) != 1 || reports[0].Running != 3 || reports[0].Covered != 1 {
		t.Fatalf("%+v, %v", reports, err)
	}
	for state, want := range map[string]float64{"running": 3, "covered": 1, "delivered": 1, "no-sidecar": 2, "opted-out": 0} {
		if got := testutil.ToFloat64(w.containers.WithLabelValues(namespace, state)); got != want {
			t.Errorf("%s is %v, want %v", state, got, want)
		}
	}
	close(events.Events)
	raised := map[string]int{}
	for e := range events.Events {
		raised[strings.Fields(e)[1]]++
	}
	if raised["LogsNotShipped"] != 2 || raised["EvictedForLogging"] != 1 {
		t.Errorf("events %v", raised)
	}
	var left corev1.Pod
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "slipped"}, &left); !apierrors.IsNotFound(err) {
		t.Errorf("the Pod that slipped through is still there (%v)", err)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "alone"}, &left); err != nil {
		t.Errorf("a Pod that nobody would make again was evicted (%v)", err)
	}
}

func TestNothingIsEvictedUnlessAsked(t *testing.T) {
	w, c, _ := watcher(t, delivery{}, false)
	if _, err := w.Measure(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "slipped"}, &corev1.Pod{}); err != nil {
		t.Error(err)
	}
}

func TestWithoutLokiNothingIsClaimedOfDelivery(t *testing.T) {
	w, _, _ := watcher(t, delivery{errors.New("no answer")}, false)
	reports, err := w.Measure(t.Context(), now)
	if err != nil || len(reports) != 1 || reports[0].Unknown != "no answer" || reports[0].Covered != 1 || len(reports[0].Quiet) != 0 {
		t.Fatalf("%+v, %v", reports, err)
	}
	if n := testutil.CollectAndCount(w.containers); n != 6 {
		t.Errorf("%d states exported, want all but delivered", n)
	}
	if testutil.ToFloat64(w.failures.WithLabelValues(namespace)) != 1 {
		t.Error("the failure is not counted")
	}
}

// measure looks again, so long after the first time, and returns the Events.
func measure(t *testing.T, w *Watcher, events *record.FakeRecorder, after time.Duration) (raised []string) {
	t.Helper()
	if _, err := w.Measure(t.Context(), now.Add(after)); err != nil {
		t.Fatal(err)
	}
	for len(events.Events) > 0 {
		raised = append(raised, strings.Fields(<-events.Events)[1])
	}
	return raised
}

func TestAGapThatLastsIsNotRaisedAllTheTime(t *testing.T) {
	w, _, events := watcher(t, delivery{}, false)
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 2}, {time.Minute, 0}, {9 * time.Minute, 0}, {10 * time.Minute, 2}} {
		if got := measure(t, w, events, step.after); len(got) != step.want {
			t.Errorf("after %s: %q, want %d", step.after, got, step.want)
		}
	}
}

func exists(t *testing.T, c client.Client, name string) bool {
	t.Helper()
	err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &corev1.Pod{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// The webhook is away, or does not see a controller's Pods: evicting them again and again would only do harm.
func TestAControllerWhoseNewPodSlipsThroughAgainIsLeftAlone(t *testing.T) {
	w, c, events := watcher(t, delivery{}, true)
	second := pod("second", bare)
	if err := c.Create(t.Context(), &second); err != nil {
		t.Fatal(err)
	}
	measure(t, w, events, 0)
	if exists(t, c, "second") || !exists(t, c, "slipped") {
		t.Fatal("not one of two Pods was evicted, the first by name")
	}
	again := pod("again", bare, func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(time.Second)) })
	if err := c.Create(t.Context(), &again); err != nil {
		t.Fatal(err)
	}
	measure(t, w, events, time.Minute)
	if !exists(t, c, "slipped") || !exists(t, c, "again") {
		t.Error("evicted although evicting does not help")
	}
	measure(t, w, events, 2*time.Hour)
	if exists(t, c, "slipped") && exists(t, c, "again") {
		t.Error("never tried again")
	}
}

func TestWhatWouldLoseByAnEvictionStays(t *testing.T) {
	for name, changes := range map[string][]func(*corev1.Pod){
		"a Job's Pod":                     {func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "Job" }},
		"a Pod whose fellow is not ready": {},
	} {
		t.Run(name, func(t *testing.T) {
			w, c, events := watcher(t, delivery{}, true)
			mine := pod("mine", append([]func(*corev1.Pod){bare, func(p *corev1.Pod) { p.OwnerReferences[0].UID = "mine" }}, changes...)...)
			fellow := pod("fellow", func(p *corev1.Pod) {
				p.OwnerReferences[0].UID = "mine"
				if len(changes) == 0 {
					p.Status.Phase, p.Status.Conditions = corev1.PodPending, nil
				}
			})
			for _, p := range []*corev1.Pod{&mine, &fellow} {
				if err := c.Create(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			measure(t, w, events, 0)
			if measure(t, w, events, time.Minute); !exists(t, c, "mine") || exists(t, c, "slipped") {
				t.Error("the wrong Pod was evicted, or none")
			}
		})
	}
}

func TestWhatIsNotMeasuredAnyMoreIsNotExported(t *testing.T) {
	w, c, events := watcher(t, delivery{}, false)
	measure(t, w, events, 0)
	if n := testutil.CollectAndCount(w.containers); n != 7 {
		t.Errorf("%d states, want 7", n)
	}
	var ns corev1.Namespace
	if err := c.Get(t.Context(), client.ObjectKey{Name: namespace}, &ns); err != nil {
		t.Fatal(err)
	}
	ns.Labels = nil
	if err := c.Update(t.Context(), &ns); err != nil {
		t.Fatal(err)
	}
	measure(t, w, events, time.Minute)
	if n := testutil.CollectAndCount(w.containers); n != 0 {
		t.Errorf("%d states of a namespace that is no longer labelled", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Start(ctx); err != nil || testutil.CollectAndCount(w.containers) != 0 {
		t.Errorf("a replica that no longer leads exports; %v", err)
	}
}

func TestPercentIsNeverRoundedUpToAll(t *testing.T) {
	for want, sum := range map[int]Sum{
		99:  {Namespaces: 1, Running: 1001, Covered: 999, OptedOut: 1, Missing: 1},
		100: {Namespaces: 1, Running: 3, Covered: 2, OptedOut: 1},
	} {
		if got := sum.Percent(); got != want {
			t.Errorf("%d %%, want %d: %s", got, want, sum)
		}
	}
}
