package inject

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	namespace = "omnivision"
	image     = "ghcr.io/fluent/fluent-operator/fluent-bit:4.1.1@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

type fakeCluster struct {
	labels    map[string]string
	driver    bool
	err       error
	driverErr error
}

func (f fakeCluster) NamespaceLabels(context.Context, string) (map[string]string, error) {
	return f.labels, f.err
}
func (f fakeCluster) DriverInstalled(context.Context) (bool, error) { return f.driver, f.driverErr }

// restricted is a cluster as ours are.
func restricted() fakeCluster {
	return fakeCluster{driver: true, labels: map[string]string{NamespaceLabel: NamespaceEnabled, "pod-security.kubernetes.io/enforce": "restricted"}}
}

// open is a cluster without the driver, and a namespace without Pod Security.
func open() fakeCluster {
	return fakeCluster{labels: map[string]string{NamespaceLabel: NamespaceEnabled}}
}

func config() Config {
	c := DefaultConfig()
	c.Image, c.Cluster, c.Region = image, "cluster-aws", "us-west-2"
	return c
}

func injector(t testing.TB, cluster Cluster) *Injector {
	t.Helper()
	i, err := New(config(), cluster, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func creation() *admissionv1.AdmissionRequest {
	return &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Namespace: namespace}
}

func mutated(t testing.TB, cluster Cluster, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out := pod.DeepCopy()
	if err := injector(t, cluster).Mutate(t.Context(), creation(), out); err != nil {
		t.Fatal(err)
	}
	if inserted, operations := inserted(t, cluster, pod); operations != nil && !equality.Semantic.DeepEqual(inserted, sent(t, out)) {
		t.Fatalf("Insert makes another Pod than Mutate, by %s", operations)
	}
	return out
}

func read(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(text, &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

// cases are the Pods of testdata/<name>.yaml; the injected ones are beside them as <name>.golden.yaml.
var cases = []struct {
	name    string
	cluster fakeCluster
	result  Result
}{
	{"worker", restricted(), Injected},
	{"job", restricted(), Injected},
	{"guaranteed", restricted(), Injected},
	{"sidecars", restricted(), Injected},
	{"opted-out", restricted(), OptedOut},
	{"hostnetwork", open(), InjectedHostPath},
}

func TestInjectedPodsAreAsRecorded(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pod := mutated(t, c.cluster, read(t, c.name+".yaml"))
			if got := pod.Annotations[StatusAnnotation]; got != string(c.result) {
				t.Errorf("status %q, want %q", got, c.result)
			}
			text, err := yaml.Marshal(pod)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", c.name+".golden.yaml")
			if *update {
				if err := os.WriteFile(golden, text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(text) != string(want) {
				t.Errorf("differs from %s; look at the difference of go test ./gate/inject -update\n%s", golden, text)
			}
		})
	}
}

// P30: the sidecar itself breaks no rule of Pod Security restricted, in no Pod that fits it without.
func TestInjectedPodsFitPodSecurityRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := podsecurity.LevelVersion{Level: podsecurity.LevelRestricted, Version: podsecurity.LatestVersion()}
	refusals := func(pod *corev1.Pod) (why []string) {
		for _, r := range evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec) {
			if !r.Allowed {
				why = append(why, r.ForbiddenReason+": "+r.ForbiddenDetail)
			}
		}
		return why
	}
	for _, name := range []string{"worker", "job", "guaranteed", "sidecars"} {
		if why := refusals(read(t, name+".yaml")); why != nil {
			t.Fatalf("%s does not fit as it is, and would prove nothing: %v", name, why)
		}
		if why := refusals(mutated(t, restricted(), read(t, name+".yaml"))); why != nil {
			t.Errorf("%s: %v", name, why)
		}
	}
	if refusals(mutated(t, open(), read(t, "worker.yaml"))) == nil {
		t.Error("hostPath passes: the check proves nothing")
	}
}

// Whatever another webhook does before or after, and however often this one is called (P29).
func TestInjectingAgainChangesNothing(t *testing.T) {
	for _, c := range cases {
		once := mutated(t, c.cluster, read(t, c.name+".yaml"))
		if twice := mutated(t, c.cluster, once); !reflect.DeepEqual(once, twice) {
			t.Errorf("%s: the second time it is another Pod", c.name)
		}
	}
}

func TestSidecarIsFirstAlsoAfterAnotherWebhook(t *testing.T) {
	pod := mutated(t, restricted(), read(t, "worker.yaml"))
	mesh := corev1.Container{Name: "mesh", Image: "mesh"}
	pod.Spec.InitContainers = append([]corev1.Container{mesh}, pod.Spec.InitContainers...)
	// The service account's admission plugin runs again, too.
	pod.Spec.InitContainers[1].VolumeMounts = append(pod.Spec.InitContainers[1].VolumeMounts, corev1.VolumeMount{Name: "kube-api-access", MountPath: "/elsewhere"})
	again := mutated(t, restricted(), pod)
	var names []string
	for _, c := range again.Spec.InitContainers {
		names = append(names, c.Name)
	}
	if strings.Join(names, " ") != ContainerName+" mesh fetch-model" {
		t.Errorf("init containers %v", names)
	}
	if n := len(again.Spec.InitContainers[0].VolumeMounts); n != 4 {
		t.Errorf("%d mounts, want the sidecar's own 4", n)
	}
}

// A container or a volume under the sidecar's name that is not the sidecar does not stay.
func TestForgedSidecarIsReplaced(t *testing.T) {
	pod := read(t, "worker.yaml")
	pod.Annotations = map[string]string{StatusAnnotation: string(Injected)}
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: ContainerName, Image: "evil"})
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: logsVolume, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
	if forged, honest := mutated(t, restricted(), pod), mutated(t, restricted(), read(t, "worker.yaml")); !reflect.DeepEqual(forged, honest) {
		t.Error("something of the forged sidecar is left")
	}
}

func TestOnlyPodsThatAreCreatedInLabelledNamespaces(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		request *admissionv1.AdmissionRequest
		cluster fakeCluster
	}{
		"an update":                     {&admissionv1.AdmissionRequest{Operation: admissionv1.Update, Namespace: namespace}, restricted()},
		"an ephemeral container":        {&admissionv1.AdmissionRequest{Operation: admissionv1.Create, SubResource: "ephemeralcontainers"}, restricted()},
		"a namespace without the label": {creation(), fakeCluster{driver: true}},
		"another value of the label":    {creation(), fakeCluster{driver: true, labels: map[string]string{NamespaceLabel: "disabled"}}},
		"a namespace that is not known": {creation(), fakeCluster{driver: true, err: errors.New("cache is not synced")}},
		"a driver that is not known":    {&admissionv1.AdmissionRequest{Operation: admissionv1.Create, DryRun: &yes}, fakeCluster{labels: restricted().labels, driverErr: errors.New("no answer")}},
	} {
		pod := read(t, "worker.yaml")
		before := pod.DeepCopy()
		if err := injector(t, c.cluster).Mutate(t.Context(), c.request, pod); err != nil || !reflect.DeepEqual(before, pod) {
			t.Errorf("%s: error %v, changed %t", name, err, !reflect.DeepEqual(before, pod))
		}
	}
}

func TestPodsWithoutASidecarSayWhy(t *testing.T) {
	baseline := fakeCluster{labels: map[string]string{NamespaceLabel: NamespaceEnabled, "pod-security.kubernetes.io/enforce": "baseline"}}
	for _, c := range []struct {
		cluster fakeCluster
		change  func(*corev1.Pod)
		want    Result
	}{
		{baseline, func(*corev1.Pod) {}, NoDriver},
		{restricted(), func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }, StaticPod},
		{restricted(), func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, Windows},
		{restricted(), func(p *corev1.Pod) { p.Annotations = map[string]string{OptOutAnnotation: OptOut} }, OptedOut},
		{restricted(), func(p *corev1.Pod) { p.Annotations = map[string]string{OptOutAnnotation: "maybe"} }, Injected},
	} {
		pod := read(t, "worker.yaml")
		c.change(pod)
		i := injector(t, c.cluster)
		if err := i.Mutate(t.Context(), creation(), pod); err != nil {
			t.Fatal(err)
		}
		has := pod.Spec.InitContainers[0].Name == ContainerName
		if pod.Annotations[StatusAnnotation] != string(c.want) || has != (c.want == Injected) {
			t.Errorf("status %q, sidecar %t, want %q", pod.Annotations[StatusAnnotation], has, c.want)
		}
		if got := testutil.ToFloat64(i.pods.WithLabelValues(namespace, string(c.want))); got != 1 {
			t.Errorf("%s counted %v times", c.want, got)
		}
	}
}

func TestDryRunIsInjectedAndNotCounted(t *testing.T) {
	yes, pod, i := true, read(t, "worker.yaml"), injector(t, restricted())
	request := creation()
	request.DryRun = &yes
	if err := i.Mutate(t.Context(), request, pod); err != nil || pod.Spec.InitContainers[0].Name != ContainerName {
		t.Errorf("a dry run does not show what would happen (%v)", err)
	}
	if n := testutil.CollectAndCount(i.pods); n != 0 {
		t.Errorf("%d results counted", n)
	}
}

func TestMutateLeavesTheRequestsOwnObjectsAlone(t *testing.T) {
	pod := read(t, "worker.yaml")
	pod.Annotations = map[string]string{"a": "b"}
	shared := *pod // as a shallow copy shares maps and slices
	if err := injector(t, restricted()).Mutate(t.Context(), creation(), pod); err != nil {
		t.Fatal(err)
	}
	if len(shared.Annotations) != 1 || len(shared.Spec.InitContainers) != 1 || shared.Spec.InitContainers[0].Name == ContainerName {
		t.Error("what another holds was changed")
	}
}

func TestWorkloadIsWhatPeopleCallIt(t *testing.T) {
	controlled := func(kind, name string, labels map[string]string) *corev1.Pod {
		yes := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod", Labels: labels, OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: name, Controller: &yes}}}}
	}
	for _, c := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{controlled("ReplicaSet", "ui-7d9f", map[string]string{"pod-template-hash": "7d9f"}), "ui"},
		{controlled("ReplicaSet", "worker-65b9", map[string]string{"rollouts-pod-template-hash": "65b9"}), "worker"},
		{controlled("ReplicaSet", "by-hand", nil), "by-hand"},
		{controlled("ReplicaSet", "-x", map[string]string{"pod-template-hash": "x"}), Unknown},
		{controlled("StatefulSet", "loki", nil), "loki"},
		{controlled("Job", "backup-29390400", nil), "backup"},
		{controlled("Job", "migrate-2", nil), "migrate-2"},
		{controlled("Node", "gpu-0", nil), "pod"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "debug-"}}, "debug"},
		{&corev1.Pod{}, Unknown},
		{controlled("Weird", "a,cluster=x", nil), Unknown},
	} {
		if got := workload(c.pod); got != c.want {
			t.Errorf("workload of %v is %q, want %q", c.pod.OwnerReferences, got, c.want)
		}
	}
}

func TestVersionIsTheApplications(t *testing.T) {
	for image, want := range map[string]string{
		"registry:5000/ui":                   Unknown,
		"registry:5000/ui:1.4.0":             "1.4.0",
		"registry:5000/ui:1.4.0@sha256:1234": "1.4.0",
		"ui@sha256:1234":                     Unknown,
		"ui:a,b=c":                           Unknown,
		"":                                   Unknown,
	} {
		if got := version(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: image}}}}); got != want {
			t.Errorf("version of %q is %q, want %q", image, got, want)
		}
	}
	labelled := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/version": "2.0"}}}
	if got := version(labelled); got != "2.0" {
		t.Errorf("version %q, want the label's", got)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"a tag alone":          func(c *Config) { c.Image = "fluent-bit:5.1" },
		"no cluster":           func(c *Config) { c.Cluster = "" },
		"a list in a label":    func(c *Config) { c.Region = "a,b=c" },
		"a buffer without end": func(c *Config) { c.BufferLimit = resource.Quantity{} },
		"no memory limit":      func(c *Config) { c.Resources.Limits = nil },
	} {
		c := config()
		change(&c)
		if _, err := New(c, restricted(), nil, nil); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// Any Pod: no panic, the same result however often, first in line, and nothing but the sidecar's is changed.
func FuzzInject(f *testing.F) {
	for _, c := range cases {
		text, err := json.Marshal(read(f, c.name+".yaml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, true)
	}
	f.Add([]byte(`{"spec":{"volumes":[{"name":"omnivision-logs"}],"initContainers":[{"name":"omnivision-fluent-bit"}]}}`), false)
	f.Fuzz(func(t *testing.T, text []byte, driver bool) {
		var pod corev1.Pod
		if json.Unmarshal(text, &pod) != nil {
			return
		}
		cluster := open()
		cluster.driver = driver
		once := mutated(t, cluster, &pod)
		if twice := mutated(t, cluster, once); !reflect.DeepEqual(once, twice) {
			t.Fatal("the second time it is another Pod")
		}
		if strings.HasPrefix(once.Annotations[StatusAnnotation], string(Injected)) && once.Spec.InitContainers[0].Name != ContainerName {
			t.Error("the sidecar is not first")
		}
		if !reflect.DeepEqual(pod.Spec.Containers, once.Spec.Containers) {
			t.Error("the application's containers were changed")
		}
	})
}

func BenchmarkMutate(b *testing.B) {
	i, pod := injector(b, restricted()), read(b, "worker.yaml")
	for b.Loop() {
		if err := i.Mutate(b.Context(), creation(), pod.DeepCopy()); err != nil {
			b.Fatal(err)
		}
	}
}
