//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
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
			if len(ours.Elsewhere) > 0 {
				elsewhere = append(elsewhere, ours.Application)
				continue
			}
			theirs := argocd.manifests(t, ours.Application)
			same(t, region.cluster+"/"+ours.Application, ours.Objects, theirs)
			compared, objects = compared+1, objects+len(theirs)
		}
		t.Logf("%s: %d Applications with %d objects are as Argo CD renders them; not rendered here: %s", region.cluster, compared, objects, strings.Join(elsewhere, ", "))
		// What comes from upstream's repositories is compared by revision, and said so.
		if want := []string{"argo-rollouts", "argocd", "crds"}; !slices.Equal(elsewhere, want) {
			t.Errorf("%s: not rendered here are %v, want %v", region.cluster, elsewhere, want)
		}
		if compared < 6 || objects < 50 {
			t.Errorf("%s: only %d Applications with %d objects were compared", region.cluster, compared, objects)
		}
	}
}

// same compares what two rendered, apart from what Argo CD writes on each object to know it
// again.
func same(t *testing.T, app string, ours, theirs []*unstructured.Unstructured) {
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
	for id := range expected {
		t.Errorf("%s: only Argo CD renders %s", app, id)
	}
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
type argoCD struct{ address, token string }

// logIn takes the first password, which only the cluster's administrator can read.
func logIn(t *testing.T, cluster, address string) argoCD {
	t.Helper()
	encoded := kubectl(t, cluster, "get", "secret", "argocd-initial-admin-secret", "-n", "argocd", "-o", "jsonpath={.data.password}")
	password, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		t.Fatal(err)
	}
	api := argoCD{address: address}
	var session struct{ Token string }
	if err := api.call(t, http.MethodPost, "/api/v1/session", map[string]string{"username": "admin", "password": string(password)}, &session); err != nil {
		t.Fatal(err)
	}
	api.token = session.Token
	return api
}

// manifests are what Argo CD renders of an Application at the revision that it follows.
func (a argoCD) manifests(t *testing.T, app string) (objects []*unstructured.Unstructured) {
	t.Helper()
	var rendered struct{ Manifests []string }
	if err := a.call(t, http.MethodGet, "/api/v1/applications/"+app+"/manifests", nil, &rendered); err != nil {
		t.Fatalf("%s: %v", app, err)
	}
	for _, manifest := range rendered.Manifests {
		var o unstructured.Unstructured
		if err := o.UnmarshalJSON([]byte(manifest)); err != nil {
			t.Fatalf("%s: %v", app, err)
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
