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

// checkout is the upstream repository of a source, from its Go module, or the tree.
func checkout(t *testing.T, source fleet.Source) string {
	t.Helper()
	if strings.HasSuffix(source.RepoURL, "/omnivision-gitops.git") {
		return "../../omnivision-gitops"
	}
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

// installation is what the first cluster gets, rendered once: tests here run one after
// another.
func installation(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	if rendered == nil {
		upstream := func(source fleet.Source) (fs.FS, error) { return os.DirFS(checkout(t, source)), nil }
		var err error
		if rendered, err = Installation(tree, clusters(t)[0], upstream); err != nil {
			t.Fatal(err)
		}
	}
	return rendered
}

var rendered []*unstructured.Unstructured

func TestFirstInstallationIsAsRecorded(t *testing.T) {
	root, err := Root(tree, clusters(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := root.GetAnnotations()[trackingAnnotation], "omnivision-root:argoproj.io/Application:argocd/omnivision-root"; got != want {
		t.Errorf("the root is tracked as %q, want %q", got, want)
	}
	data := Data(Options{CA: []byte("PEM"), Hosts: []string{"github.com", "GHCR.io:443"}, WebhookSecret: "s"})
	var got bytes.Buffer
	for _, o := range slices.Concat(installation(t), data, []*unstructured.Unstructured{root}) {
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

// What Argo CD's sync renders later must be what was installed, or it would restart itself
// in the middle of its first sync. The other side is the real kustomize, on a checkout
// into which the Application's patches are written as Argo CD writes them.
func TestArgoCDFindsItselfInstalled(t *testing.T) {
	kustomize, err := exec.LookPath("kustomize")
	if err != nil {
		t.Skip("needs the kustomize binary in PATH")
	}
	source := kustomization(t)
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
	installed := map[string]string{}
	for _, o := range installation(t) {
		installed[o.GetKind()+"/"+o.GetName()] = plain(t, o)
	}
	docs := strings.Split(string(out), "\n---\n")
	if len(docs) < 20 {
		t.Errorf("kustomize rendered %d objects", len(docs))
	}
	for _, doc := range docs {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		if key := o.GetKind() + "/" + o.GetName(); installed[key] != plain(t, o) {
			t.Errorf("%s is installed as\n%s\nand synced as\n%s", key, installed[key], plain(t, o))
		}
	}
}

// kustomization is the source of Argo CD's own Application that patches upstream's files.
func kustomization(t *testing.T) fleet.Source {
	t.Helper()
	apps, err := fleet.Applications(tree, clusters(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, app := range apps {
		for _, source := range app.AllSources() {
			if app.Name() == Application && source.Kustomize != nil {
				return source
			}
		}
	}
	t.Fatal("Argo CD is patched nowhere")
	return fleet.Source{}
}

// The Application takes upstream's installation in parts: together they are all of it,
// but for what the patches leave out.
func TestPartsAreAllOfUpstreamsInstallation(t *testing.T) {
	for _, part := range []struct{ app, whole string }{{Application, "manifests/cluster-install"}, {"argo-rollouts", "manifests/cluster-install"}} {
		apps, err := fleet.Applications(tree, clusters(t)[0])
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]bool{}
		var from fleet.Source
		for _, app := range apps {
			for _, source := range app.AllSources() {
				if app.Name() != part.app && app.Name() != fleet.CRDsApplication {
					continue
				}
				if app.Name() == part.app {
					from = source
				}
				objects, err := fleet.RenderSource(os.DirFS(checkout(t, source)), source, "")
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range objects {
					have[o.GetKind()+"/"+o.GetName()] = true
				}
			}
		}
		whole, err := fleet.RenderSource(os.DirFS(checkout(t, from)), fleet.Source{Path: part.whole}, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range whole {
			component := o.GetLabels()["app.kubernetes.io/component"]
			unused := slices.Contains([]string{"dex-server", "notifications-controller", "applicationset-controller"}, component)
			if key := o.GetKind() + "/" + o.GetName(); !have[key] && !unused {
				t.Errorf("%s of upstream's %s is not installed", key, part.whole)
			}
		}
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
	for _, o := range installation(t) {
		key := o.GetKind() + "/" + o.GetName()
		got := o.GetAnnotations()[trackingAnnotation]
		if crd := o.GetKind() == "CustomResourceDefinition"; crd == (got != "") {
			t.Errorf("%s is marked %q: all are, but for CRDs", key, got)
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
	data := Data(Options{CA: []byte("PEM"), Hosts: []string{"github.com", "ghcr.io:443"}, WebhookSecret: "s3cret"})
	installed := map[string]*unstructured.Unstructured{}
	for _, o := range installation(t) {
		installed[o.GetKind()+"/"+o.GetName()] = o
	}
	if len(data) != 2 {
		t.Fatalf("%d objects of data", len(data))
	}
	for _, o := range data {
		base := installed[o.GetKind()+"/"+o.GetName()]
		if base == nil {
			t.Errorf("%s %s is not of the installation: nothing would remove it", o.GetKind(), o.GetName())
			continue
		}
		if _, has, _ := unstructured.NestedMap(base.Object, "data"); has {
			t.Errorf("%s %s has data in Git as well", o.GetKind(), o.GetName())
		}
	}
	ca, _, _ := unstructured.NestedStringMap(data[0].Object, "data")
	if ca["github.com"] != "PEM" || ca["ghcr.io"] != "PEM" || len(ca) != 2 {
		t.Errorf("certificates are %v", ca)
	}
	if secret, _, _ := unstructured.NestedString(data[1].Object, "data", "webhook.gogs.secret"); secret != "czNjcmV0" {
		t.Errorf("secret is %q", secret)
	}
}

func TestOnlyWhatIsUsedIsInstalled(t *testing.T) {
	for _, o := range installation(t) {
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
			objects, err := fleet.RenderSource(files, source, app.Spec.Destination.Namespace)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range objects {
				template, found, _ := unstructured.NestedMap(o.Object, "spec", "template")
				if !found || o.GetKind() == "CustomResourceDefinition" {
					continue
				}
				// Its mounts must reach the node, and it has a namespace of its own (P30).
				if o.GetNamespace() == "podlogs" && o.GetName() == "podlogs" {
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
