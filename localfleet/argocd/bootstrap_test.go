package argocd

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet/mirror"
)

var update = flag.Bool("update", false, "write golden files")

var tree = os.DirFS("../../omnivision-gitops")

func clusters(t *testing.T) []fleet.Cluster {
	t.Helper()
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	return f.Clusters
}

var downloads sync.Map

// checkout is the upstream repository of a source, from its Go module.
func checkout(t *testing.T, source fleet.Source) string {
	t.Helper()
	if testing.Short() {
		t.Skip("downloads upstream's Go module")
	}
	name, err := mirror.Repo{URL: source.RepoURL}.Module(source.TargetRevision)
	if err != nil {
		t.Fatal(err)
	}
	if dir, ok := downloads.Load(name); ok {
		return dir.(string)
	}
	mod, err := mirror.New(t.TempDir(), true).Download(t.Context(), name)
	if err != nil {
		t.Skipf("no upstream files: %v", err)
	}
	downloads.Store(name, mod.Dir)
	return mod.Dir
}

func bootstrap(t *testing.T, opts Options) Bootstrap {
	t.Helper()
	cluster := clusters(t)[0]
	source, err := Source(tree, cluster)
	if err != nil {
		t.Fatal(err)
	}
	upstream := os.DirFS(checkout(t, source))
	if rendered.Installation == nil { // tests here run one after another
		if rendered, err = Render(tree, cluster, upstream, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return Bootstrap{Installation: rendered.Installation, Data: data(opts), Root: rendered.Root}
}

// rendered is the installation, which takes seconds to render and is the same in all tests.
var rendered Bootstrap

func TestFirstInstallationIsAsRecorded(t *testing.T) {
	var got bytes.Buffer
	for _, o := range bootstrap(t, Options{CA: []byte("PEM"), Hosts: []string{"github.com", "GHCR.io:443"}, WebhookSecret: "s"}).all() {
		fmt.Fprintf(&got, "%s %s/%s %s\n", o.GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName(), strings.Join(fleet.Images(o), " "))
	}
	golden := "testdata/bootstrap.txt"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("installs\n%s\nwant\n%s", got.String(), want)
	}
}

func (b Bootstrap) all() []*unstructured.Unstructured {
	return slices.Concat(b.Installation, b.Data, []*unstructured.Unstructured{b.Root})
}

// What Argo CD's sync renders later must be what was installed, or it would restart itself
// in the middle of its first sync. The other side is the real kustomize, on a checkout
// into which the Application's patches are written as Argo CD writes them.
func TestArgoCDFindsItselfInstalled(t *testing.T) {
	kustomize, err := exec.LookPath("kustomize")
	if err != nil {
		t.Skip("needs the kustomize binary in PATH")
	}
	cluster := clusters(t)[0]
	source, err := Source(tree, cluster)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.CopyFS(filepath.Join(work, "manifests"), os.DirFS(filepath.Join(checkout(t, source), "manifests"))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(work, source.Path, "kustomization.yaml")
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	patches, err := yaml.Marshal(map[string]any{"patches": source.Kustomize.Patches})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(src, patches...), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), kustomize, "build", filepath.Join(work, source.Path)).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, doc := range strings.Split(string(out), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		want[o.GetKind()+"/"+o.GetName()] = plain(t, o)
	}
	for _, o := range bootstrap(t, Options{}).Installation {
		if o.GetKind() == "AppProject" || o.GetKind() == "Namespace" {
			continue
		}
		key := o.GetKind() + "/" + o.GetName()
		if got := plain(t, o); got != want[key] {
			t.Errorf("%s is installed as\n%s\nand synced as\n%s", key, got, want[key])
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("%s is synced and not installed", key)
	}
}

// plain is an object without what Argo CD adds: the namespace and its mark.
func plain(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	o = o.DeepCopy()
	o.SetNamespace("")
	unstructured.RemoveNestedField(o.Object, "metadata", "annotations", trackingAnnotation)
	if len(o.GetAnnotations()) == 0 {
		unstructured.RemoveNestedField(o.Object, "metadata", "annotations")
	}
	text, err := yaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestInstalledObjectsCarryArgoCDsMark(t *testing.T) {
	want := map[string]string{
		"Deployment/argocd-server":  "argocd:apps/Deployment:argocd/argocd-server",
		"ConfigMap/argocd-cm":       "argocd:/ConfigMap:argocd/argocd-cm",
		"ClusterRole/argocd-server": "argocd:rbac.authorization.k8s.io/ClusterRole:argocd/argocd-server",
		"Namespace/argocd":          "omnivision-root:/Namespace:argocd/argocd",
		"AppProject/platform":       "omnivision-root:argoproj.io/AppProject:argocd/platform",
	}
	for _, o := range bootstrap(t, Options{}).Installation {
		key := o.GetKind() + "/" + o.GetName()
		got := o.GetAnnotations()[trackingAnnotation]
		if got == "" {
			t.Errorf("%s carries no mark", key)
		}
		if w, ok := want[key]; ok && got != w {
			t.Errorf("%s is marked %s, want %s", key, got, w)
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("%s is not installed", key)
	}
}

// Who owns a field decides whether a sync removes it.
func TestDataIsNoneOfTheSyncsFields(t *testing.T) {
	b := bootstrap(t, Options{CA: []byte("PEM"), Hosts: []string{"github.com", "ghcr.io:443"}, WebhookSecret: "s3cret"})
	installed := map[string]*unstructured.Unstructured{}
	for _, o := range b.Installation {
		installed[o.GetKind()+"/"+o.GetName()] = o
	}
	if len(b.Data) != 2 {
		t.Fatalf("%d objects of data", len(b.Data))
	}
	for _, o := range b.Data {
		base := installed[o.GetKind()+"/"+o.GetName()]
		if base == nil {
			t.Errorf("%s %s is not of the installation: nothing would remove it", o.GetKind(), o.GetName())
			continue
		}
		if _, has, _ := unstructured.NestedMap(base.Object, "data"); has {
			t.Errorf("%s %s has data in Git as well", o.GetKind(), o.GetName())
		}
	}
	ca, _, _ := unstructured.NestedStringMap(b.Data[0].Object, "data")
	if ca["github.com"] != "PEM" || ca["ghcr.io"] != "PEM" || len(ca) != 2 {
		t.Errorf("certificates are %v", ca)
	}
	if secret, _, _ := unstructured.NestedString(b.Data[1].Object, "data", "webhook.gogs.secret"); secret != "czNjcmV0" {
		t.Errorf("secret is %q", secret)
	}
}

func TestOnlyWhatIsUsedIsInstalled(t *testing.T) {
	for _, o := range bootstrap(t, Options{}).Installation {
		for _, unused := range []string{"dex", "notifications"} {
			if strings.Contains(o.GetName(), unused) {
				t.Errorf("%s %s is installed", o.GetKind(), o.GetName())
			}
		}
		if strings.Contains(o.GetName(), "applicationset") && o.GetKind() != "CustomResourceDefinition" {
			t.Errorf("%s %s is installed", o.GetKind(), o.GetName())
		}
		for _, image := range fleet.Images(o) {
			if strings.HasSuffix(image, ":latest") {
				t.Errorf("%s %s runs %s", o.GetKind(), o.GetName(), image)
			}
		}
	}
}

// Every namespace of the tree enforces Pod Security `restricted`: what does not meet it
// would never start.
func TestEveryComponentMeetsPodSecurityRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	apps, err := fleet.Applications(tree, clusters(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]int{}
	for _, app := range apps {
		if app.Name() == fleet.RootApplication || app.Name() == fleet.PlatformApplication {
			continue
		}
		for _, source := range app.AllSources() {
			var files fs.FS = tree
			if !strings.HasSuffix(source.RepoURL, "/omnivision-gitops.git") {
				files = os.DirFS(checkout(t, source))
			}
			objects := bootstrap(t, Options{}).Installation
			if app.Name() != Application {
				if objects, err = fleet.RenderSource(files, source, app.Spec.Destination.Namespace); err != nil {
					t.Fatal(err)
				}
			}
			for _, o := range objects {
				template, found, _ := unstructured.NestedMap(o.Object, "spec", "template")
				if !found || o.GetKind() == "CustomResourceDefinition" {
					continue
				}
				var pod struct {
					Metadata metav1.ObjectMeta `json:"metadata"`
					Spec     corev1.PodSpec    `json:"spec"`
				}
				if err := runtime.DefaultUnstructuredConverter.FromUnstructured(template, &pod); err != nil {
					t.Fatal(err)
				}
				pods[app.Name()]++
				for _, result := range evaluator.EvaluatePod(restricted, &pod.Metadata, &pod.Spec) {
					if !result.Allowed {
						t.Errorf("%s %s/%s: %s: %s", o.GetKind(), o.GetNamespace(), o.GetName(), result.ForbiddenReason, result.ForbiddenDetail)
					}
				}
				for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
					if c.Resources.Requests.Cpu().IsZero() || c.Resources.Limits.Memory().IsZero() {
						t.Errorf("%s %s/%s: container %s has no requests or no memory limit", o.GetKind(), o.GetNamespace(), o.GetName(), c.Name)
					}
					if c.ImagePullPolicy != corev1.PullIfNotPresent {
						t.Errorf("%s %s/%s: container %s cannot start without its registry", o.GetKind(), o.GetNamespace(), o.GetName(), c.Name)
					}
				}
			}
		}
	}
	if pods["argocd"] != 4 || pods["argo-rollouts"] != 1 || pods["traefik"] != 1 || pods["prometheus"] != 1 {
		t.Errorf("looked at %v", pods)
	}
}
