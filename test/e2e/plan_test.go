//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/diff"
	"github.com/omnivision/omnivision/plan/revision"
	"sigs.k8s.io/yaml"
)

// testPlanIsArgoCDs holds what a plan renders against what each cluster's Argo CD renders of
// the same commit: every Application, object by object.
func testPlanIsArgoCDs(t *testing.T) {
	g := clone(t)
	commit := g.run(t, "rev-parse", "HEAD")
	repository, err := revision.Open(t.Context(), g.dir)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := repository.Tree(t.Context(), commit, commit)
	if err != nil {
		t.Fatal(err)
	}
	charts := chart.NewCheckout(filepath.Join(root(t), "charts", "omnivision-platform"))
	for _, region := range regions {
		renderings, err := plan.Renderings(t.Context(), tree, region.cluster, plan.Options{Charts: charts})
		if err != nil {
			t.Fatal(err)
		}
		argocd := logIn(t, region.cluster, region.argocd)
		compared, objects, elsewhere := 0, 0, []string{}
		for _, ours := range renderings {
			theirs := argocd.manifests(t, ours.Application)
			only := same(t, region.cluster+"/"+ours.Application, ours.Objects, theirs)
			compared, objects = compared+1, objects+len(ours.Objects)
			if len(ours.Elsewhere) > 0 {
				elsewhere = append(elsewhere, ours.Application)
				continue // Argo CD has upstream's objects besides
			}
			for _, id := range only {
				t.Errorf("%s/%s: only Argo CD renders %s", region.cluster, ours.Application, id)
			}
		}
		t.Logf("%s: %d Applications with %d objects are as Argo CD renders them; of these not all is rendered here: %s", region.cluster, compared, objects, strings.Join(elsewhere, ", "))
		// What comes from upstream's repositories a plan compares by revision, and says so.
		if want := []string{"argo-rollouts", "argocd", "crds"}; !slices.Equal(elsewhere, want) {
			t.Errorf("%s: partly rendered here are %v, want %v", region.cluster, elsewhere, want)
		}
		if compared != len(renderings) || compared < 10 || objects < 90 {
			t.Errorf("%s: only %d Applications with %d objects were compared", region.cluster, compared, objects)
		}
	}
}

// same compares what two rendered, apart from what Argo CD writes on each object to know it
// again. It returns what only Argo CD has.
func same(t *testing.T, app string, ours, theirs []*unstructured.Unstructured) (only []string) {
	t.Helper()
	expected := map[string]map[string]any{}
	for _, o := range theirs {
		expected[identity(o)] = plainObject(o)
	}
	for _, o := range ours {
		want, known := expected[identity(o)]
		if !known {
			t.Errorf("%s: Argo CD does not render %s", app, identity(o))
			continue
		}
		delete(expected, identity(o))
		if got := plainObject(o); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s differs, Argo CD's first:\n%s", app, identity(o), diff.Unified(asYAML(want), asYAML(got)))
		}
	}
	return slices.Sorted(maps.Keys(expected))
}

func identity(o *unstructured.Unstructured) string {
	return strings.Join([]string{o.GroupVersionKind().Group, o.GetKind(), o.GetNamespace(), o.GetName()}, "/")
}

// plainObject is the object as JSON has it, without Argo CD's mark.
func plainObject(o *unstructured.Unstructured) map[string]any {
	copied := o.DeepCopy()
	annotations := copied.GetAnnotations()
	delete(annotations, "argocd.argoproj.io/tracking-id")
	if len(annotations) == 0 {
		annotations = nil
	}
	copied.SetAnnotations(annotations)
	data, err := json.Marshal(copied.Object)
	if err != nil {
		panic(err) // it came from JSON
	}
	var plain map[string]any
	if err := json.Unmarshal(data, &plain); err != nil {
		panic(err)
	}
	return plain
}

func asYAML(object map[string]any) string {
	out, err := yaml.Marshal(object)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// argoCD is the API of one cluster's.
type argoCD struct {
	cluster, address, token string
	namespaced              map[string]bool // by group and kind
}

// logIn takes the first password, which only the cluster's administrator can read.
func logIn(t *testing.T, cluster, address string) argoCD {
	t.Helper()
	encoded := kubectl(t, cluster, "get", "secret", "argocd-initial-admin-secret", "-n", "argocd", "-o", "jsonpath={.data.password}")
	password, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		t.Fatal(err)
	}
	api := argoCD{cluster: cluster, address: address, namespaced: map[string]bool{}}
	for line := range strings.Lines(kubectl(t, cluster, "api-resources", "--no-headers")) {
		fields := strings.Fields(line) // name, maybe short names, version, namespaced, kind
		if n := len(fields); n >= 4 {
			group, _, grouped := strings.Cut(fields[n-3], "/")
			if !grouped {
				group = ""
			}
			api.namespaced[group+"/"+fields[n-1]] = fields[n-2] == "true"
		}
	}
	var session struct{ Token string }
	if err := api.call(t, http.MethodPost, "/api/v1/session", map[string]string{"username": "admin", "password": string(password)}, &session); err != nil {
		t.Fatal(err)
	}
	api.token = session.Token
	return api
}

// manifests are what Argo CD applies of an Application at the revision that it follows: what
// its repo-server renders, with the namespace that its controller puts in where the cluster
// says that the kind has one, and without Helm's tests, which it never runs.
func (a argoCD) manifests(t *testing.T, app string) (objects []*unstructured.Unstructured) {
	t.Helper()
	var rendered struct{ Manifests []string }
	if err := a.call(t, http.MethodGet, "/api/v1/applications/"+app+"/manifests", nil, &rendered); err != nil {
		t.Fatalf("%s: %v", app, err)
	}
	namespace := kubectl(t, a.cluster, "get", "application", app, "-n", "argocd", "-o", "jsonpath={.spec.destination.namespace}")
	for _, manifest := range rendered.Manifests {
		var o unstructured.Unstructured
		if err := o.UnmarshalJSON([]byte(manifest)); err != nil {
			t.Fatalf("%s: %v", app, err)
		}
		if o.GetAnnotations()["helm.sh/hook"] == "test" {
			continue
		}
		if o.GetNamespace() == "" && a.namespaced[o.GroupVersionKind().Group+"/"+o.GetKind()] {
			o.SetNamespace(namespace)
		}
		objects = append(objects, &o)
	}
	return objects
}

func (a argoCD) call(t *testing.T, method, path string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, a.address+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if a.token != "" {
		request.Header.Set("Authorization", "Bearer "+a.token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, said)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(said, answer)
}
