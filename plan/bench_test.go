package plan_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/revision"
)

// grow puts many clusters like Oregon in the place of Oregon and Belgium.
func (r repo) grow(clusters int) {
	r.Helper()
	fleetFile := r.read("fleet.yaml")
	head, rest, _ := strings.Cut(fleetFile, "  - name: cluster-aws\n")
	_, tail, _ := strings.Cut(rest, "\n# apps/")
	one, _, _ := strings.Cut(rest, "\n  - name: cluster-gcp\n")
	files, err := os.ReadDir(filepath.Join(r.dir, "infrastructure/cluster-aws"))
	if err != nil {
		r.Fatal(err)
	}
	var all strings.Builder
	for i := range clusters {
		name := fmt.Sprintf("cluster-%03d", i)
		fmt.Fprintf(&all, "  - name: %s\n%s\n", name, one)
		for _, file := range files {
			r.write("infrastructure/"+name+"/"+file.Name(), strings.ReplaceAll(r.read("infrastructure/cluster-aws/"+file.Name()), "cluster-aws", name))
		}
		for _, app := range []string{"omnivision-worker", "omnivision-ui"} {
			r.write("apps/"+app+"/"+name+".yaml", r.read("apps/"+app+"/cluster-aws.yaml"))
		}
	}
	r.write("fleet.yaml", head+all.String()+"\n# apps/"+tail)
	for _, name := range []string{"cluster-aws", "cluster-gcp"} {
		r.remove("infrastructure/" + name)
		r.remove("apps/omnivision-worker/" + name + ".yaml")
		r.remove("apps/omnivision-ui/" + name + ".yaml")
	}
	r.commit()
}

func (r repo) read(file string) string {
	r.Helper()
	content, err := os.ReadFile(filepath.Join(r.dir, file))
	if err != nil {
		r.Fatal(err)
	}
	return string(content)
}

// everywhere changes what every cluster's worker gets.
func (r repo) everywhere() {
	r.replace("apps/omnivision-worker/values.yaml", "image: omnivision-worker", "image: omnivision-worker\n  minReadySeconds: 77")
}

// The benchmark plans such a fleet, and no other test does.
func TestAFleetThatGrewIsPlanned(t *testing.T) {
	r := newRepo(t)
	r.grow(3)
	r.everywhere()
	p, err := r.fromDisk()
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Clusters) != 3 || len(p.Failures()) != 0 {
		t.Fatalf("3 clusters:\n%s", said(p))
	}
	for _, c := range p.Clusters {
		if c.Status != plan.Changed || len(c.Applications) != 1 {
			t.Errorf("%s is %s: %+v", c.Name, c.Status, c.Applications)
		}
	}
}

// fromDisk plans as the command does: everything is read anew.
func (r repo) fromDisk() (*plan.Plan, error) {
	ctx := r.Context()
	repository, err := revision.Open(ctx, r.dir)
	if err != nil {
		return nil, err
	}
	commit, err := repository.Resolve(ctx, "HEAD")
	if err != nil {
		return nil, err
	}
	base, err := repository.Tree(ctx, commit, "HEAD")
	if err != nil {
		return nil, err
	}
	head, err := repository.WorkingTree(ctx)
	if err != nil {
		return nil, err
	}
	return plan.Compare(ctx, base, head, plan.Options{Charts: chart.NewCheckout(chartDir)})
}

// BenchmarkPlan plans a change of every cluster, from files on disk to the difference, and
// does with the helm binary what helm alone can do of it: render the platform of each
// cluster at both revisions.
func BenchmarkPlan(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(plan.GCPercent))
	for _, clusters := range []int{2, 100} {
		r := newRepo(b)
		if clusters > 2 {
			r.grow(clusters)
		}
		r.everywhere()
		b.Run(fmt.Sprintf("clusters=%d/omnivision", clusters), func(b *testing.B) {
			resetPeak()
			for b.Loop() {
				p, err := repo{b, r.dir}.fromDisk()
				if err != nil {
					b.Fatal(err)
				}
				if n := len(p.Clusters); n != clusters || p.Clusters[0].Status != plan.Changed {
					b.Fatalf("%d clusters:\n%s", n, said(p))
				}
			}
			b.ReportMetric(peakMegabytes(), "peak-MB")
		})
		b.Run(fmt.Sprintf("clusters=%d/helm-template", clusters), func(b *testing.B) {
			helm := helmBinary(b)
			_, head := r.trees()
			for b.Loop() {
				for _, cluster := range fleetOf(b, head).Clusters {
					for range 2 { // base and head
						helmTemplate(b, helm, r.dir, cluster)
					}
				}
			}
		})
	}
}

func fleetOf(t testing.TB, tree *revision.Tree) *fleet.Fleet {
	t.Helper()
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// helmBinary is the engine that the project builds; without it there is nothing to
// compare with.
func helmBinary(t testing.TB) string {
	t.Helper()
	engines := os.Getenv("OMNIVISION_ENGINES")
	if engines == "" {
		t.Skip("OMNIVISION_ENGINES is not set: there is no helm binary to compare with (make engines)")
	}
	helm := filepath.Join(engines, "helm")
	if _, err := os.Stat(helm); err != nil {
		t.Skipf("there is no helm binary to compare with (make engines): %v", err)
	}
	return helm
}

// helmTemplate runs helm as Argo CD runs it.
func helmTemplate(t testing.TB, helm, dir string, cluster fleet.Cluster) []byte {
	t.Helper()
	args := []string{"template", chartDir, "--name-template", "omnivision-platform", "--namespace", "omnivision",
		"--kube-version", cluster.KubernetesVersion, "--include-crds"}
	for _, file := range []string{
		"apps/omnivision-worker/values.yaml", "apps/omnivision-worker/" + cluster.Name + ".yaml",
		"apps/omnivision-ui/values.yaml", "apps/omnivision-ui/" + cluster.Name + ".yaml", cluster.OverridesFile(),
	} {
		args = append(args, "--values", filepath.Join(dir, file))
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), helm, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, stderr.String())
	}
	return out
}

// TestRendersWhatHelmTemplateRenders compares with the helm binary object by object, by
// planning a fleet that was not there before: everything is added.
func TestRendersWhatHelmTemplateRenders(t *testing.T) {
	helm := helmBinary(t)
	r := newRepo(t)
	whole := r.read("fleet.yaml")
	head, rest, _ := strings.Cut(whole, "  - name: cluster-gcp\n")
	_, tail, _ := strings.Cut(rest, "\n# apps/")
	r.write("fleet.yaml", head+"\n# apps/"+tail)
	r.commit()
	r.write("fleet.yaml", whole)
	_, tree := r.trees()
	cluster, err := fleetOf(t, tree).Cluster("cluster-gcp")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, o := range application(t, r.plan(), "cluster-gcp", "omnivision-platform").Objects {
		got[normal(t, added(o.Diff))] = true
	}
	wanted := 0
	for document := range strings.SplitSeq(string(helmTemplate(t, helm, r.dir, cluster)), "\n---\n") {
		// The line break belongs to the document: a block of text may end with it.
		text := normal(t, document+"\n")
		if text == "" || strings.Contains(document, "helm.sh/hook: test") {
			continue
		}
		wanted++
		if !got[text] {
			t.Errorf("helm renders this, and the plan does not:\n%s", text)
		}
	}
	if wanted != len(got) || wanted == 0 {
		t.Errorf("helm renders %d objects, the plan %d", wanted, len(got))
	}
}

// added is the text of an object that is added.
func added(unified string) string {
	_, body, _ := strings.Cut(unified, "\n")
	return strings.TrimPrefix(strings.ReplaceAll("\n"+body, "\n+", "\n"), "\n")
}

// normal is YAML without what means nothing.
func normal(t testing.TB, document string) string {
	t.Helper()
	var content map[string]any
	if err := yaml.Unmarshal([]byte(document), &content); err != nil {
		t.Fatal(err)
	}
	if len(content) == 0 {
		return ""
	}
	text, err := yaml.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var vmHWM = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// resetPeak makes the kernel forget the most memory that this process ever had.
func resetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

func peakMegabytes() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	if m := vmHWM.FindSubmatch(status); m != nil {
		kilobytes, _ := strconv.ParseFloat(string(m[1]), 64)
		return kilobytes / 1000
	}
	return 0
}
