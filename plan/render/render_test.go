package render_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/omnivision/omnivision/plan/render"
)

var release = render.Release{Name: "demo", Namespace: "video", KubeVersion: "v1.37.2"}

// write lays out a chart; the keys are paths within it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "demo")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, files map[string]string) *render.Chart {
	t.Helper()
	if files["Chart.yaml"] == "" {
		files["Chart.yaml"] = "{apiVersion: v2, name: demo, version: 1.2.3, kubeVersion: '>=1.33.0-0'}"
	}
	chart, err := render.Load(write(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return chart
}

func values(t *testing.T, text string) render.Values {
	t.Helper()
	v, err := render.ParseValues("test values", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const configMap = `apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}, namespace: {{ .Release.Namespace }}}
data:
`

func TestLaterValueFilesOverrideEarlierOnes(t *testing.T) {
	chart := load(t, map[string]string{
		"values.yaml":       "{a: chart, b: chart, c: chart, deep: {one: 1, two: 1}}",
		"templates/cm.yaml": configMap + `  got: {{ printf "%s %s %s %v %v" .Values.a .Values.b .Values.c .Values.deep.one .Values.deep.two | quote }}`,
	})
	result, err := chart.Render(t.Context(), release, values(t, "{b: first, c: first, deep: {two: 2}}"), values(t, "{c: second}"))
	if err != nil {
		t.Fatal(err)
	}
	got := result.Objects[0].Object["data"].(map[string]any)["got"]
	if want := "chart first second 1 2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if result.Values["c"] != "second" {
		t.Errorf("the effective values have c: %v", result.Values["c"])
	}
}

func TestRendersForTheTargetNotForThisMachine(t *testing.T) {
	chart := load(t, map[string]string{
		"templates/cm.yaml": configMap + `  version: {{ .Capabilities.KubeVersion.Version }}
  custom: {{ .Capabilities.APIVersions.Has "argoproj.io/v1alpha1" | quote }}
  builtin: {{ .Capabilities.APIVersions.Has "apps/v1" | quote }}
  live: {{ len (lookup "v1" "Namespace" "" "kube-system") | quote }}
  dns: {{ getHostByName "localhost" | quote }}`,
	})
	with := release
	with.KubeVersion, with.APIVersions = "v1.34.1-gke.7", []string{"argoproj.io/v1alpha1"}
	result, err := chart.Render(t.Context(), with)
	if err != nil {
		t.Fatal(err)
	}
	data := result.Objects[0].Object["data"].(map[string]any)
	for key, want := range map[string]string{"version": "v1.34.1-gke.7", "custom": "true", "builtin": "true", "live": "0", "dns": ""} {
		if data[key] != want {
			t.Errorf("%s is %v, want %q", key, data[key], want)
		}
	}
	if result, err = chart.Render(t.Context(), release); err != nil {
		t.Fatal(err)
	}
	if got := result.Objects[0].Object["data"].(map[string]any)["custom"]; got != "false" {
		t.Errorf("another target's API versions leak into this one: %v", got)
	}
}

func TestKeepsHooksCRDsAndNotesApart(t *testing.T) {
	chart := load(t, map[string]string{
		"crds/a.yaml":         "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: a}}",
		"templates/NOTES.txt": "hello {{ .Release.Name }}",
		"templates/all.yaml": `
{apiVersion: v1, kind: Service, metadata: {name: s}}
---
# nothing but a comment
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: sa}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, annotations: {helm.sh/hook: test}}}
---
apiVersion: v1
kind: List
items: [{apiVersion: v1, kind: Secret, metadata: {name: s1}}, {apiVersion: v1, kind: Secret, metadata: {name: s2}}]
`,
	})
	result, err := chart.Render(t.Context(), release)
	if err != nil {
		t.Fatal(err)
	}
	ids := func(objects []render.Object) string {
		var all []string
		for _, o := range objects {
			all = append(all, o.ID())
		}
		return strings.Join(all, " ")
	}
	for name, c := range map[string]struct{ got, want string }{
		"objects": {ids(result.Objects), "ServiceAccount/sa Service/s Secret/s1 Secret/s2"},
		"hooks":   {ids(result.Hooks), "Pod/p"},
		"CRDs":    {ids(result.CRDs), "CustomResourceDefinition.apiextensions.k8s.io/a"},
		"notes":   {result.Notes, "hello demo"},
		"source":  {result.Objects[0].Source, "demo/templates/all.yaml"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q, want %q", name, c.got, c.want)
		}
	}
}

func TestOneChartRendersManyTimesAtOnce(t *testing.T) {
	chart := load(t, map[string]string{
		"Chart.yaml":                    "{apiVersion: v2, name: demo, version: 1.2.3, dependencies: [{name: sub, version: 1.0.0, repository: '', condition: sub.enabled}]}",
		"values.yaml":                   "{sub: {enabled: true}}",
		"charts/sub/Chart.yaml":         "{apiVersion: v2, name: sub, version: 1.0.0}",
		"charts/sub/templates/sub.yaml": "{apiVersion: v1, kind: Secret, metadata: {name: sub}}",
		"templates/cm.yaml":             configMap + "  a: b",
	})
	off := values(t, "{sub: {enabled: false}}")
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			var files []render.Values
			want := 2
			if i%2 == 0 {
				files, want = append(files, off), 1
			}
			result, err := chart.Render(context.Background(), release, files...)
			if err != nil {
				t.Error(err)
			} else if len(result.Objects) != want {
				t.Errorf("rendering %d has %d objects, want %d: renderings disturb each other", i, len(result.Objects), want)
			}
		})
	}
	wait.Wait()
}

func TestRefusals(t *testing.T) {
	with := func(change func(*render.Release)) render.Release {
		r := release
		change(&r)
		return r
	}
	cases := map[string]struct {
		release render.Release
		chart   map[string]string
		want    []string
	}{
		"no Kubernetes version": {with(func(r *render.Release) { r.KubeVersion = "" }), nil, []string{"Kubernetes version is needed", "v1.37.2"}},
		"too old a cluster":     {with(func(r *render.Release) { r.KubeVersion = "v1.32.9" }), nil, []string{"for Kubernetes >=1.33.0-0", "v1.32.9"}},
		"nonsense version":      {with(func(r *render.Release) { r.KubeVersion = "new" }), nil, []string{`"new"`}},
		"no name":               {with(func(r *render.Release) { r.Name = "" }), nil, []string{"needs a name"}},
		"bad name":              {with(func(r *render.Release) { r.Name = "De_mo" }), nil, []string{"De_mo"}},
		"no namespace":          {with(func(r *render.Release) { r.Namespace = "" }), nil, []string{"needs a namespace"}},
		"a key twice":           {release, map[string]string{"templates/a.yaml": "apiVersion: v1\nkind: Secret\nkind: Pod\n"}, []string{"demo/templates/a.yaml", `"kind" already set`}},
		"an object twice":       {release, map[string]string{"templates/a.yaml": "{apiVersion: v1, kind: Secret, metadata: {name: s}}", "templates/b.yaml": "{apiVersion: v1, kind: Secret, metadata: {name: s}}"}, []string{"both render Secret/s", "templates/a.yaml", "templates/b.yaml"}},
		"no kind":               {release, map[string]string{"templates/a.yaml": "{apiVersion: v1, metadata: {name: s}}"}, []string{"templates/a.yaml", "no kind"}},
		"the template fails":    {release, map[string]string{"templates/a.yaml": `{{ fail "because" }}`}, []string{"because"}},
		"the schema refuses":    {release, map[string]string{"values.schema.json": `{"required": ["colour"]}`}, []string{"colour"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			files := c.chart
			if files == nil {
				files = map[string]string{}
			}
			_, err := load(t, files).Render(t.Context(), c.release)
			if err == nil {
				t.Fatal("it rendered")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
		})
	}
}

func TestRefusesAChartWithoutItsDependencies(t *testing.T) {
	_, err := render.Load(write(t, map[string]string{
		"Chart.yaml": "{apiVersion: v2, name: demo, version: 1.2.3, dependencies: [{name: sub, version: 1.0.0, repository: 'oci://example.com'}]}",
	}))
	if err == nil || !strings.Contains(err.Error(), "sub") || !strings.Contains(err.Error(), "helm dependency build") {
		t.Errorf("got %v", err)
	}
}

func TestNamesTheValueFileThatCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(path, []byte("a: [1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{path, path + ".missing"} {
		if _, err := render.ReadValues(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("got %v", err)
		}
	}
}

func TestSaysWhetherTheClustersAPIVersionsCount(t *testing.T) {
	for text, want := range map[string]bool{
		`{{ .Capabilities.APIVersions.Has "traefik.io/v1alpha1" }}`: true,
		`{{ .Capabilities.KubeVersion.Version }}`:                   false,
	} {
		chart := load(t, map[string]string{"templates/cm.yaml": configMap + "  got: " + text})
		if got := chart.AsksForAPIVersions(); got != want {
			t.Errorf("%s: got %v", text, got)
		}
	}
}
