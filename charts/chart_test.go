package charts

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/template"

	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/charts/chartdoc"
	"github.com/omnivision/omnivision/plan/render"
)

var update = flag.Bool("update", false, "rewrite the golden renders and the README")

const (
	dir        = "omnivision-platform"
	kubernetes = "v1.37.2"
	namespace  = "omnivision"
)

var (
	release  = render.Release{Name: dir, Namespace: namespace, KubeVersion: kubernetes}
	platform = sync.OnceValues(func() (*render.Chart, error) { return render.Load(dir) })
)

// scenarios are the value files in ci, by name.
func scenarios(t *testing.T) map[string]render.Values {
	t.Helper()
	const suffix = "-values.yaml"
	paths, err := filepath.Glob(filepath.Join(dir, "ci", "*"+suffix))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no value files in ci: %v", err)
	}
	all := map[string]render.Values{}
	for _, path := range paths {
		files, err := render.ReadValues(path)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(path), suffix)] = files[0]
	}
	return all
}

// with renders a scenario, changed by more values.
func with(t *testing.T, scenario, override string) (*render.Result, error) {
	t.Helper()
	c, err := platform()
	if err != nil {
		t.Fatal(err)
	}
	files := []render.Values{scenarios(t)[scenario]}
	if files[0] == nil {
		t.Fatalf("there is no scenario %q", scenario)
	}
	more, err := render.ParseValues("the test's values", []byte(override))
	if err != nil {
		t.Fatal(err)
	}
	return c.Render(t.Context(), release, append(files, more)...)
}

func mustRender(t *testing.T, scenario, override string) *render.Result {
	t.Helper()
	result, err := with(t, scenario, override)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// find returns the one object with this ID, without its namespace.
func find(t *testing.T, result *render.Result, id string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range slices.Concat(result.Objects, result.Hooks) {
		if strings.TrimPrefix(o.ID(), namespace+"/") == id {
			return o.Unstructured
		}
	}
	t.Fatalf("%s was not rendered", id)
	return nil
}

// at follows a path such as spec.template.spec.containers.0.image.
func at(t *testing.T, o *unstructured.Unstructured, path string) any {
	t.Helper()
	var value any = o.Object
	for _, part := range strings.Split(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[strings.ReplaceAll(part, "~", ".")]
		case []any:
			var i int
			if _, err := fmt.Sscan(part, &i); err != nil || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}

func TestGolden(t *testing.T) {
	for name := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			result := mustRender(t, name, "")
			var got bytes.Buffer
			for _, o := range slices.Concat(result.Objects, result.Hooks) {
				text, err := yaml.Marshal(o.Object)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&got, "---\n# Source: %s\n%s", o.Source, text)
			}
			fmt.Fprintf(&got, "---\n# NOTES.txt\n%s", regexp.MustCompile(`(?m)^(.*)$`).ReplaceAllString(strings.TrimRight(result.Notes, "\n"), "# $1"))
			got.WriteString("\n")
			golden(t, filepath.Join("testdata", "golden", name+".yaml"), got.Bytes())
		})
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; `go generate ./charts` writes it", err)
	}
	if bytes.Equal(got, want) {
		return
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Fatalf("%s:%d: has %q, now it would be %q; if that is meant, `go generate ./charts` and look at the difference", path, i+1, wantLines[i], gotLines[i])
		}
	}
	t.Fatalf("%s: has %d lines, now it would have %d; if that is meant, `go generate ./charts` and look at the difference", path, len(wantLines), len(gotLines))
}

func TestReadme(t *testing.T) {
	metadata := readMetadata(t)
	data, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	values, err := chartdoc.Values(data)
	if err != nil {
		t.Fatalf("values.yaml: %v", err)
	}
	minimal, err := os.ReadFile(filepath.Join(dir, "ci", "gcp-minimal-values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, minimalText, _ := strings.Cut(string(minimal), "\n")
	tmpl, err := template.ParseFiles(filepath.Join(dir, "README.md.tmpl"))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err = tmpl.Execute(&got, map[string]any{
		"Name": metadata.Name, "Description": metadata.Description, "Version": metadata.Version, "KubeVersion": metadata.KubeVersion,
		"Minimal": minimalText, "Weights": weightRows(t), "Routed": routedRows(t), "Table": chartdoc.Table(values),
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join(dir, "README.md"), got.Bytes())
}

// weightRows takes the README's numbers from the chart, so that they are never
// other than what it says of itself.
func weightRows(t *testing.T) string {
	var rows strings.Builder
	for _, c := range []struct{ replicas, surge int }{{1, 1}, {2, 0}, {2, 1}, {4, 0}, {4, 1}, {10, 0}, {20, 0}} {
		result := mustRender(t, "aws-minimal", fmt.Sprintf("aiWorker: {replicas: %d, canary: {trafficRouting: none, maxSurge: %d}}", c.replicas, c.surge))
		line := at(t, find(t, result, "Rollout.argoproj.io/omnivision-platform-worker"), "metadata.annotations.omnivision~ai/effective-weights").(string)
		found := regexp.MustCompile(`(\d+ of \d+ Pods \(\d+%\))`).FindAllString(line, -1)
		if len(found) != 2 {
			t.Fatalf("unexpected weights %q", line)
		}
		fmt.Fprintf(&rows, "| %d | %d | %s | %s | %d |\n", c.replicas, c.surge, found[0], found[1], c.replicas+c.surge)
	}
	return rows.String()
}

// routedRows are the same where requests are shifted.
func routedRows(t *testing.T) string {
	var rows strings.Builder
	for _, replicas := range []int{1, 2, 4, 10, 20, 40} {
		var pods []string
		for _, dynamic := range []bool{false, true} {
			result := mustRender(t, "aws-minimal", fmt.Sprintf("aiWorker: {replicas: %d, canary: {dynamicStableScale: %t}}", replicas, dynamic))
			line := at(t, find(t, result, "Rollout.argoproj.io/omnivision-platform-worker"), "metadata.annotations.omnivision~ai/effective-weights").(string)
			canary := regexp.MustCompile(`by (\d+) of`).FindAllStringSubmatch(line, -1)
			peak := regexp.MustCompile(`up to (\d+) Pods`).FindStringSubmatch(result.Notes)
			if len(canary) != 2 || peak == nil {
				t.Fatalf("unexpected weights %q and notes\n%s", line, result.Notes)
			}
			if !dynamic {
				pods = append(pods, canary[0][1], canary[1][1])
			}
			pods = append(pods, peak[1])
		}
		fmt.Fprintf(&rows, "| %d | %s |\n", replicas, strings.Join(pods, " | "))
	}
	return rows.String()
}

func readMetadata(t *testing.T) chart.Metadata {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var metadata chart.Metadata
	if err := yaml.UnmarshalStrict(data, &metadata); err != nil {
		t.Fatal(err)
	}
	return metadata
}

func TestLintStrict(t *testing.T) {
	version, err := common.ParseKubeVersion(kubernetes)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			for _, m := range lint.RunAll(dir, values, namespace, lint.WithKubeVersion(version)).Messages {
				if m.Severity >= support.WarningSev {
					t.Error(m)
				}
			}
		})
	}
}

// A template that asks for the cluster's abilities renders differently where
// nobody told it (P4), and one that looks objects up can not be planned at all.
func TestTemplatesDependOnValuesAlone(t *testing.T) {
	forbidden := regexp.MustCompile(`\.Capabilities|\blookup\b|\b(rand\w+|now|uuidv4|gen\w+Cert\w*|genPrivateKey|getHostByName|derivePassword)\b`)
	inAction := regexp.MustCompile(`(?s)\{\{.*?\}\}`)
	err := filepath.WalkDir(filepath.Join(dir, "templates"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, action := range inAction.FindAllString(string(data), -1) {
			if found := forbidden.FindString(action); found != "" && !strings.HasPrefix(action, "{{/*") && !strings.HasPrefix(action, "{{- /*") {
				t.Errorf("%s uses %s", path, found)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := platform()
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range scenarios(t) {
		a, errA := c.Render(t.Context(), release, values)
		other := release
		other.KubeVersion, other.APIVersions = "v1.33.0", []string{"argoproj.io/v1alpha1", "traefik.io/v1alpha1", "gateway.networking.k8s.io/v1"}
		b, errB := c.Render(t.Context(), other, values)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		left, _ := json.Marshal(slices.Concat(a.Objects, a.Hooks))
		right, _ := json.Marshal(slices.Concat(b.Objects, b.Hooks))
		if !bytes.Equal(left, right) {
			t.Errorf("%s renders differently on Kubernetes 1.33", name)
		}
	}
}

func TestOneObjectPerFile(t *testing.T) {
	for name := range scenarios(t) {
		result := mustRender(t, name, "")
		sources := map[string]string{}
		for _, o := range slices.Concat(result.Objects, result.Hooks) {
			if first, twice := sources[o.Source]; twice {
				t.Errorf("%s: %s renders %s and %s", name, o.Source, first, o.ID())
			}
			sources[o.Source] = o.ID()
		}
	}
}
