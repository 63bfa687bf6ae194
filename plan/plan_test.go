package plan_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/report"
	"github.com/omnivision/omnivision/plan/revision"
)

const (
	chartDir = "../charts/omnivision-platform"
	oldImage = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	newImage = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	workerIn = "apps/omnivision-worker/"
)

// charts is the checkout's chart, loaded once for all tests.
var charts = chart.NewCheckout(chartDir)

// repo is a Git repository with this project's own GitOps tree, in which every app has
// been released.
type repo struct {
	testing.TB
	dir string
}

func newRepo(t testing.TB) repo {
	t.Helper()
	r := repo{t, t.TempDir()}
	if err := os.CopyFS(r.dir, os.DirFS("../omnivision-gitops")); err != nil {
		t.Fatal(err)
	}
	for _, app := range []string{"omnivision-worker", "omnivision-ui"} {
		for _, cluster := range []string{"cluster-aws", "cluster-gcp"} {
			r.replace("apps/"+app+"/"+cluster+".yaml", `digest: ""`, `digest: "`+oldImage+`"`)
		}
	}
	r.git("init", "-q", "-b", "main")
	r.commit()
	return r
}

func (r repo) git(args ...string) string {
	r.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r repo) commit() {
	r.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "-m", "a change")
}

func (r repo) write(file, content string) {
	r.Helper()
	path := filepath.Join(r.dir, file)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		r.Fatal(err)
	}
}

// replace fails when there is nothing to replace.
func (r repo) replace(file, old, new string) {
	r.Helper()
	content, err := os.ReadFile(filepath.Join(r.dir, file))
	if err != nil {
		r.Fatal(err)
	}
	if !bytes.Contains(content, []byte(old)) {
		r.Fatalf("%s does not contain %q", file, old)
	}
	r.write(file, strings.ReplaceAll(string(content), old, new))
}

func (r repo) remove(file string) {
	r.Helper()
	if err := os.RemoveAll(filepath.Join(r.dir, file)); err != nil {
		r.Fatal(err)
	}
}

// trees are HEAD and the working tree.
func (r repo) trees() (base, head *revision.Tree) {
	r.Helper()
	repository, err := revision.Open(r.Context(), r.dir)
	if err != nil {
		r.Fatal(err)
	}
	commit, err := repository.Resolve(r.Context(), "HEAD")
	if err != nil {
		r.Fatal(err)
	}
	if base, err = repository.Tree(r.Context(), commit, "main"); err != nil {
		r.Fatal(err)
	}
	if head, err = repository.WorkingTree(r.Context()); err != nil {
		r.Fatal(err)
	}
	return base, head
}

func (r repo) compare(source plan.ChartSource) (*plan.Plan, error) {
	r.Helper()
	base, head := r.trees()
	return plan.Compare(r.Context(), base, head, plan.Options{Charts: source})
}

func (r repo) plan() *plan.Plan {
	r.Helper()
	p, err := r.compare(charts)
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// said is the plan in short: each cluster with its Applications and objects.
func said(p *plan.Plan) string {
	var lines []string
	for _, c := range p.Clusters {
		lines = append(lines, fmt.Sprintf("%s %s", c.Name, c.Status))
		for _, a := range c.Applications {
			lines = append(lines, fmt.Sprintf("  %s %s", a.Name, a.Status))
			for _, s := range a.Sources {
				lines = append(lines, fmt.Sprintf("    source %s %s %s>%s", s.What, s.Change, s.Before, s.After))
			}
			for _, o := range a.Objects {
				lines = append(lines, fmt.Sprintf("    %s %s", o.Change, o.ID))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func asJSON(t testing.TB, p *plan.Plan) string {
	t.Helper()
	var b bytes.Buffer
	if err := report.JSON(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func expect(t *testing.T, p *plan.Plan, want string) {
	t.Helper()
	if got := said(p); got != strings.TrimSpace(want) {
		t.Errorf("the plan is\n%s\nwant\n%s", got, strings.TrimSpace(want))
	}
}

func application(t *testing.T, p *plan.Plan, cluster, app string) plan.Application {
	t.Helper()
	for _, c := range p.Clusters {
		for _, a := range c.Applications {
			if c.Name == cluster && a.Name == app {
				return a
			}
		}
	}
	t.Fatalf("the plan has no %s in %s:\n%s", app, cluster, said(p))
	return plan.Application{}
}

func TestReleaseInOneClusterLeavesTheOtherUntouched(t *testing.T) {
	r := newRepo(t)
	r.replace(workerIn+"cluster-aws.yaml", oldImage, newImage)
	p := r.plan()
	expect(t, p, `
cluster-aws changed
  omnivision-platform changed
    changed ReleasePolicy.omnivision.ai/omnivision-platform
    changed omnivision/Rollout.argoproj.io/omnivision-platform-worker
cluster-gcp untouched`)
	found := false
	objects := application(t, p, "cluster-aws", "omnivision-platform").Objects // what admission is told, and the Rollout
	for _, f := range objects[len(objects)-1].Fields {
		was, _ := f.Before.(string)
		is, _ := f.After.(string)
		found = found || strings.HasSuffix(f.Path, ".image") && strings.HasSuffix(was, oldImage) && strings.HasSuffix(is, newImage)
	}
	if !found {
		t.Errorf("no field tells the image's move: %v", objects)
	}
}

// refuses is a source that must not be asked.
type refuses struct{ testing.TB }

func (r refuses) Chart(_ context.Context, ref chart.Reference) (*chart.Loaded, error) {
	r.Errorf("the chart %s was asked for", ref)
	return nil, errors.New("not asked for")
}

func TestWhatIsTheSameIsNotRendered(t *testing.T) {
	cases := map[string]func(repo){
		"nothing":    func(repo) {},
		"a document": func(r repo) { r.write("README.md", "other words") },
		"a comment": func(r repo) {
			r.replace("components/argocd/application.yaml", "# Argo CD manages itself.", "# Argo CD manages itself!")
		},
		"an unused file": func(r repo) { r.write("unused/x.yaml", "a: b") },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			change(r)
			p, err := r.compare(refuses{t})
			if err != nil {
				t.Fatal(err)
			}
			if p.Changed() {
				t.Errorf("clusters change:\n%s", said(p))
			}
		})
	}
}

// versions has the checkout's chart under several versions.
type versions map[string]*chart.Checkout

func (v versions) Chart(ctx context.Context, ref chart.Reference) (*chart.Loaded, error) {
	if c := v[ref.Version]; c != nil {
		return c.Chart(ctx, ref)
	}
	return nil, fmt.Errorf("no version %s", ref.Version)
}

func TestChartVersionIsEachClustersOwn(t *testing.T) {
	next := filepath.Join(t.TempDir(), "omnivision-platform")
	if err := os.CopyFS(next, os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	chartFile := repo{t, next}
	chartFile.replace("Chart.yaml", "version: 0.1.0", "version: 0.2.0")
	chartFile.write("templates/extra.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\n")
	r := newRepo(t)
	r.replace("infrastructure/cluster-gcp/platform.yaml", `targetRevision: "0.1.0"`, `targetRevision: "0.2.0"`)
	p, err := r.compare(versions{"0.1.0": charts, "0.2.0": chart.NewCheckout(next)})
	if err != nil {
		t.Fatal(err)
	}
	got := said(p)
	for _, want := range []string{
		"cluster-aws untouched\ncluster-gcp changed\n  omnivision-platform changed\n",
		"added omnivision/ConfigMap/extra",
		"omnivision-root changed\n    changed argocd/Application.argoproj.io/omnivision-platform",
	} {
		if !strings.Contains(got+"\n", want) && !strings.Contains(got, want) {
			t.Errorf("the plan lacks %q:\n%s", want, got)
		}
	}
	if len(p.Charts) != 2 {
		t.Errorf("charts are %v", p.Charts)
	}
}

func TestMoveOfAThirdPartyTagIsReported(t *testing.T) {
	r := newRepo(t)
	r.replace("components/argo-rollouts/application.yaml", "targetRevision: v1.10.2", "targetRevision: v1.10.3")
	r.replace("components/crds/application.yaml", "targetRevision: v3.6.12", "targetRevision: v3.6.13")
	one := `
  argo-rollouts changed
    source manifests changed v1.10.2>v1.10.3
    source manifests/base changed v1.10.2>v1.10.3
  crds changed
    source docs/content/reference/dynamic-configuration changed v3.6.12>v3.6.13
  omnivision-root changed
    changed argocd/Application.argoproj.io/argo-rollouts
    changed argocd/Application.argoproj.io/crds`
	expect(t, r.plan(), "cluster-aws changed"+one+"\ncluster-gcp changed"+one)
}

func TestOwnManifestsAreRenderedOnceForAllClusters(t *testing.T) {
	r := newRepo(t)
	r.replace("components/traefik/manifests/service.yaml", "kind: Service", "kind: Service # a comment alone")
	r.write("components/traefik/manifests/more.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: more}\n")
	r.replace("components/traefik/manifests/kustomization.yaml", "  - service.yaml", "  - service.yaml\n  - more.yaml")
	one := "\n  traefik changed\n    added traefik/ConfigMap/more"
	expect(t, r.plan(), "cluster-aws changed"+one+"\ncluster-gcp changed"+one)
}

func TestBrokenFilesAreNamedWithTheirLine(t *testing.T) {
	cases := map[string]struct {
		file, content string
		want          string
	}{
		"YAML that does not parse": {"apps/omnivision-ui/values.yaml", "ui:\n  image: [a\n", "apps/omnivision-ui/values.yaml:"},
		"a key twice":              {"apps/omnivision-ui/values.yaml", "ui: {}\n\nui: {}\n", `apps/omnivision-ui/values.yaml:3: key "ui" is already in line 1`},
		"an unknown key":           {"fleet.yaml", "apiVersion: omnivision.ai/v1\nkind: Fleet\ncolour: red\n", `fleet.yaml:3: unknown key "colour"`},
		"a kustomization in error": {"infrastructure/cluster-gcp/kustomization.yaml", "resources: [absent.yaml]\n", "infrastructure/cluster-gcp/kustomization.yaml: kustomize: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			r.write(c.file, c.content)
			_, err := r.compare(charts)
			var problems plan.Problems
			if !errors.As(err, &problems) || problems.Revision != "the working tree" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("in the base", func(t *testing.T) {
		r := newRepo(t)
		r.write("apps/omnivision-ui/values.yaml", "ui: [\n")
		r.commit()
		r.write("apps/omnivision-ui/values.yaml", "ui: {}\n")
		if _, err := r.compare(charts); err == nil || !strings.Contains(err.Error(), "main does not hold") || !strings.Contains(err.Error(), "--base") {
			t.Errorf("got %v", err)
		}
	})
}

// A plan is made of what strangers propose: nothing in it may reach out.
func TestNothingIsFetchedForAProposedChange(t *testing.T) {
	const url = "https://192.0.2.1/x.yaml"
	for name, line := range map[string]string{
		"a resource":    "resources:\n  - " + url,
		"a patch":       "patches:\n  - path: " + url,
		"a generator":   "configMapGenerator:\n  - name: x\n    files:\n      - key=" + url,
		"a replacement": "replacements:\n  - path: " + url,
		"a schema":      "openapi:\n  path: " + url,
		"a Git base":    "resources:\n  - git@192.0.2.1:a/b.git",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			r.write("components/traefik/manifests/kustomization.yaml", line+"\n")
			if _, err := r.compare(charts); err == nil || !strings.Contains(err.Error(), "fetches") {
				t.Errorf("got %v", err)
			}
			r.remove("components/traefik/manifests/kustomization.yaml")
			r.write("components/traefik/manifests/Kustomization", line+"\n")
			if _, err := r.compare(charts); err == nil || !strings.Contains(err.Error(), "fetches") {
				t.Errorf("in a file named Kustomization: %v", err)
			}
		})
	}
	t.Run("another registry", func(t *testing.T) {
		r := newRepo(t)
		for _, file := range []string{"fleet.yaml", "infrastructure/cluster-aws/platform.yaml"} {
			r.replace(file, "ghcr.io/omnivision/charts", "evil.example.com/charts")
		}
		p, err := r.compare(refuses{t})
		if err != nil {
			t.Fatal(err)
		}
		app := application(t, p, "cluster-aws", "omnivision-platform")
		if len(app.Sources) != 1 || !strings.Contains(app.Sources[0].Reason, "ghcr.io/omnivision/charts") || len(app.Objects) != 0 {
			t.Errorf("got %+v", app)
		}
	})
}

func TestRefusedValuesFailTheirClusterAlone(t *testing.T) {
	r := newRepo(t)
	r.replace("infrastructure/cluster-gcp/values-overrides.yaml", "cloudProvider: gcp", "cloudProvider: gcp\n  colour: red")
	r.replace(workerIn+"cluster-aws.yaml", oldImage, newImage)
	p := r.plan()
	if got := application(t, p, "cluster-gcp", "omnivision-platform"); got.Status != plan.Failed || !strings.Contains(got.Error, "colour") {
		t.Errorf("got %s %q", got.Status, got.Error)
	}
	if got := application(t, p, "cluster-aws", "omnivision-platform"); len(got.Objects) != 2 {
		t.Errorf("the other cluster's plan is lost:\n%s", said(p))
	}
	if got := p.Failures(); !slices.Equal(got, []string{"cluster-gcp/omnivision-platform"}) {
		t.Errorf("failures are %v", got)
	}
}

func TestFirstReleaseAddsEverything(t *testing.T) {
	r := newRepo(t)
	r.replace(workerIn+"cluster-aws.yaml", oldImage, "")
	r.commit()
	r.replace(workerIn+"cluster-aws.yaml", `digest: ""`, `digest: "`+newImage+`"`)
	app := application(t, r.plan(), "cluster-aws", "omnivision-platform")
	if len(app.Notes) != 1 || !strings.Contains(app.Notes[0], "aiWorker.digest is empty") {
		t.Errorf("notes are %q", app.Notes)
	}
	for _, o := range app.Objects {
		if o.Change != "added" {
			t.Errorf("%s is %s", o.ID, o.Change)
		}
	}
}

func TestSecretsAreMaskedEverywhere(t *testing.T) {
	r := newRepo(t)
	generator := func(value string) string {
		return "secretGenerator:\n  - name: token\n    options: {disableNameSuffixHash: true}\n    literals: [changing=" + value + ", constant=stays-the-same]\n"
	}
	kustomization := "components/traefik/manifests/kustomization.yaml"
	content, err := os.ReadFile(filepath.Join(r.dir, kustomization))
	if err != nil {
		t.Fatal(err)
	}
	r.write(kustomization, string(content)+generator("hunter2"))
	r.commit()
	r.write(kustomization, string(content)+generator("correct-horse"))
	p := r.plan()
	var out bytes.Buffer
	if err := report.Text(&out, p, false); err != nil {
		t.Fatal(err)
	}
	all := out.String() + report.Markdown(p, 0) + asJSON(t, p)
	// As they are, and in base64.
	for _, secret := range []string{"hunter2", "aHVudGVyMg", "correct-horse", "Y29ycmVjdC1ob3JzZQ", "stays-the-same", "c3RheXMtdGhlLXNhbWU"} {
		if strings.Contains(all, secret) {
			t.Errorf("the plan shows %q", secret)
		}
	}
	for _, want := range []string{"-  changing: (masked)\n", "+  changing: (masked, changed)\n", "   constant: (masked)\n"} {
		if !strings.Contains(strings.ReplaceAll(out.String(), "\n    ", "\n"), want) {
			t.Errorf("the diff lacks %q:\n%s", want, out.String())
		}
	}
}

func TestClustersComeAndGo(t *testing.T) {
	r := newRepo(t)
	fleetFile, err := os.ReadFile(filepath.Join(r.dir, "fleet.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(fleetFile), "  - name: cluster-gcp\n")
	_, tail, _ := strings.Cut(rest, "\n# apps/")
	r.write("fleet.yaml", head+"\n# apps/"+tail)
	p := r.plan()
	if got := said(p); got != "cluster-aws untouched\ncluster-gcp removed" {
		t.Errorf("removing:\n%s", got)
	}
	r.commit()
	r.write("fleet.yaml", string(fleetFile))
	p = r.plan()
	if got := said(p); !strings.HasPrefix(got, "cluster-aws untouched\ncluster-gcp added\n  argo-rollouts added\n    source manifests added >v1.10.2\n") ||
		!strings.Contains(got, "added omnivision/Rollout.argoproj.io/omnivision-platform-worker") {
		t.Errorf("adding:\n%s", got)
	}
}

func TestDeletingAnApplicationSaysWhatBecomesOfItsObjects(t *testing.T) {
	r := newRepo(t)
	r.replace("components/kustomization.yaml", "  - prometheus\n", "")
	p := r.plan()
	app := application(t, p, "cluster-aws", "prometheus")
	if app.Status != plan.Removed || !strings.Contains(app.Notes[0], "keeps running") {
		t.Errorf("got %+v", app)
	}
	r.replace("components/kustomization.yaml", "  - namespaces\n", "")
	for _, o := range application(t, r.plan(), "cluster-gcp", "omnivision-root").Objects {
		if o.Kind == "Namespace" && !strings.Contains(o.Note, "Prune=confirm") {
			t.Errorf("%s goes without a word: %q", o.ID, o.Note)
		}
	}
}

func TestHelmOptionsOfTheApplicationCount(t *testing.T) {
	r := newRepo(t)
	r.replace("infrastructure/cluster-aws/platform.yaml", "        releaseName: omnivision-platform\n",
		"        releaseName: omnivision-platform\n        valuesObject: {ui: {minReadySeconds: 55}}\n        parameters: [{name: 'aiWorker.podAnnotations.note', value: 'a,b', forceString: true}]\n")
	app := application(t, r.plan(), "cluster-aws", "omnivision-platform")
	text := app.Error
	for _, o := range app.Objects {
		text += o.Diff
	}
	for _, want := range []string{"+  minReadySeconds: 55\n", "note: a,b\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the plan lacks %q:\n%s", want, text)
		}
	}
}

func TestOptionsThatAreNotRenderedAreSaid(t *testing.T) {
	r := newRepo(t)
	r.replace("infrastructure/cluster-aws/platform.yaml", "        releaseName: omnivision-platform\n",
		"        releaseName: omnivision-platform\n        fileParameters: [{name: a, path: b}]\n")
	r.replace("components/prometheus/application.yaml", "    path: components/prometheus/manifests\n",
		"    path: components/prometheus/manifests\n    kustomize: {namePrefix: x-}\n")
	p := r.plan()
	for app, want := range map[string]string{"omnivision-platform": "it uses helm.fileParameters", "prometheus": "it uses kustomize.namePrefix"} {
		got := application(t, p, "cluster-aws", app)
		if len(got.Sources) != 1 || !strings.Contains(got.Sources[0].Reason, want) || len(got.Objects) != 0 || len(got.Notes) != 1 {
			t.Errorf("%s: %+v", app, got)
		}
	}
}

func TestTheSameComparisonHasTheSameOutput(t *testing.T) {
	r := newRepo(t)
	r.replace("apps/omnivision-ui/values.yaml", "image: omnivision-ui", "image: omnivision-ui\n  minReadySeconds: 44")
	r.replace("components/prometheus/manifests/prometheus.yml", "scrape_interval:", "# changed\n  scrape_interval:")
	first := asJSON(t, r.plan())
	for range 5 {
		if again := asJSON(t, r.plan()); again != first {
			t.Fatal("two plans of the same revisions differ")
		}
	}
}

func TestOneVersionIsLoadedOnce(t *testing.T) {
	var source counting
	once := chart.NewOnce(&source)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			_, _ = once.Chart(t.Context(), chart.Reference{Name: "a", Version: "1"})
		})
	}
	group.Wait()
	if source.asked != 1 {
		t.Errorf("it was asked %d times", source.asked)
	}
}

type counting struct{ asked int }

func (c *counting) Chart(context.Context, chart.Reference) (*chart.Loaded, error) {
	c.asked++
	return nil, errors.New("none")
}

// Production code never depends on the rehearsal.
func TestImportsNothingOfTheLocalFleet(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", "./...").Output()
	if err != nil {
		t.Skipf("go list does not work here: %v", err)
	}
	for _, path := range strings.Fields(string(out)) {
		if strings.HasPrefix(path, "github.com/omnivision/omnivision/localfleet") {
			t.Errorf("plan imports %s", path)
		}
	}
}

func TestJSONHasNoNullLists(t *testing.T) {
	r := newRepo(t)
	var decoded map[string]any
	if err := json.Unmarshal([]byte(asJSON(t, r.plan())), &decoded); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"files", "charts", "warnings", "clusters"} {
		if _, ok := decoded[key].([]any); !ok {
			t.Errorf("%s is %v", key, decoded[key])
		}
	}
}
