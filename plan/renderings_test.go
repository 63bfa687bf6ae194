package plan_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/revision"
)

// What is rendered alone differs between two revisions in just the objects that their plan
// names.
func TestRenderingsDifferInWhatAPlanNames(t *testing.T) {
	r := newRepo(t)
	r.replace(workerIn+"cluster-aws.yaml", oldImage, newImage)
	r.replace("components/gate/manifests/kustomization.yaml", `digest: ""`, `digest: "`+newImage+`"`)
	base, head := r.trees()
	was, is := render(t, base, "cluster-aws"), render(t, head, "cluster-aws")
	if !slices.Equal(applications(was), applications(is)) || !slices.Contains(applications(is), "omnivision-platform") || !slices.Contains(applications(is), "omnivision-root") {
		t.Fatalf("rendered are %v, then %v", applications(was), applications(is))
	}
	var differ []string
	for name, objects := range is {
		for id, object := range objects {
			if !reflect.DeepEqual(was[name][id], object) {
				differ = append(differ, name+" "+id)
			}
		}
	}
	compared, err := plan.Compare(t.Context(), base, head, plan.Options{Charts: charts})
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, app := range compared.Clusters[0].Applications {
		for _, o := range app.Objects {
			named = append(named, app.Name+" "+o.Kind+" "+o.Name)
		}
	}
	slices.Sort(differ)
	slices.Sort(named)
	if len(named) < 2 || !slices.Equal(differ, named) {
		t.Errorf("the renderings differ in %q, the plan names %q", differ, named)
	}
}

func TestRenderingsSayWhatIsNotRendered(t *testing.T) {
	_, tree := newRepo(t).trees()
	renderings, err := plan.Renderings(t.Context(), tree, "cluster-gcp", plan.Options{Charts: charts})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range renderings {
		if fromUpstream := slices.Contains([]string{"argocd", "argo-rollouts", "crds"}, r.Application); fromUpstream != (len(r.Elsewhere) > 0) {
			t.Errorf("%s: elsewhere are %q", r.Application, r.Elsewhere)
		}
	}
	if _, err := plan.Renderings(t.Context(), tree, "cluster-x", plan.Options{Charts: charts}); err == nil || !strings.Contains(err.Error(), "it has cluster-aws") {
		t.Errorf("of an unknown cluster: %v", err)
	}
}

func render(t *testing.T, tree *revision.Tree, cluster string) map[string]map[string]*unstructured.Unstructured {
	t.Helper()
	renderings, err := plan.Renderings(t.Context(), tree, cluster, plan.Options{Charts: charts})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]*unstructured.Unstructured{}
	for _, r := range renderings {
		all[r.Application] = map[string]*unstructured.Unstructured{}
		for _, o := range r.Objects {
			all[r.Application][o.GetKind()+" "+o.GetName()] = o
		}
	}
	return all
}

func applications(rendered map[string]map[string]*unstructured.Unstructured) (names []string) {
	for name := range rendered {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
