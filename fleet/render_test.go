package fleet

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What an Application adds as components is rendered, and what they are made of refreshes it.
func TestComponentsOfAnApplicationAreRendered(t *testing.T) {
	const manifests, role = "components/steward/manifests", "components/steward/drain/cluster-role.yaml"
	for _, components := range [][]string{nil, {"../drain"}} {
		objects, read, err := renderSource(os.DirFS("../omnivision-gitops"), Source{Path: manifests, Kustomize: &Kustomize{Components: components}}, "omnivision-system")
		if err != nil {
			t.Fatal(err)
		}
		want := len(components) > 0
		var drains, may bool
		for _, o := range objects {
			may = may || o.GetKind() == "ClusterRole" && o.GetName() == "omnivision-steward-drain"
			if o.GetKind() == "Deployment" {
				drains = slices.Contains(arguments(t, o), "--drain-broken-nodes")
			}
		}
		if drains != want || may != want || slices.Contains(read, role) != want {
			t.Errorf("components %v: the flag is there: %t, the rights are: %t, read is %v", components, drains, may, read)
		}
	}
}

// What docs/canary.md says of opting in to the draining of nodes works, in that cluster alone.
func TestOneClusterOptsInToTheDrainingOfNodes(t *testing.T) {
	const file, patches = "infrastructure/cluster-aws/kustomization.yaml", "patches:\n  - path: platform.yaml\n"
	doc, err := os.ReadFile("../docs/canary.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(doc), "```yaml\n"+patches)
	snippet, _, found := strings.Cut(after, "```\n")
	if !found {
		t.Fatal("docs/canary.md does not say how")
	}
	tree := tree(t)
	replace(t, tree, file, patches, patches+snippet)
	for _, p := range Validate(tree) {
		t.Error(p)
	}
	for _, c := range load(t, tree).Clusters {
		if got, want := slices.Contains(arguments(t, stewardOf(t, tree, c)), "--drain-broken-nodes"), c.Name == "cluster-aws"; got != want {
			t.Errorf("the steward of %s drains: %t, want %t", c.Name, got, want)
		}
	}
}

// stewardOf is a cluster's Deployment of the steward.
func stewardOf(t *testing.T, tree fs.FS, c Cluster) *unstructured.Unstructured {
	t.Helper()
	apps, err := Applications(tree, c)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(apps, func(a Application) bool { return a.Name() == "steward" })
	if i < 0 {
		t.Fatalf("%s has no steward", c.Name)
	}
	objects, err := RenderSource(tree, *apps[i].Spec.Source, "omnivision-system")
	if err != nil {
		t.Fatal(err)
	}
	i = slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Deployment" })
	if i < 0 {
		t.Fatalf("the steward of %s has no Deployment", c.Name)
	}
	return objects[i]
}

func arguments(t *testing.T, deployment *unstructured.Unstructured) []string {
	t.Helper()
	containers, _, err := unstructured.NestedSlice(deployment.Object, "spec", "template", "spec", "containers")
	if err != nil || len(containers) == 0 {
		t.Fatalf("the Deployment has no containers: %v", err)
	}
	container, ok := containers[0].(map[string]any)
	if !ok {
		t.Fatalf("a container is %T", containers[0])
	}
	args, _, err := unstructured.NestedStringSlice(container, "args")
	if err != nil {
		t.Fatal(err)
	}
	return args
}
