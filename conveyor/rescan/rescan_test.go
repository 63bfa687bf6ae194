package rescan

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/scan"
)

// scanner says what it is told of each app, and keeps what it was asked.
type scanner struct {
	errors map[string]error // by app
	result scan.Result
	asked  []string
}

func (s *scanner) Scan(_ context.Context, app string, targets []scan.Target, report func(string)) (scan.Result, error) {
	asked := app
	for _, target := range targets {
		report(target.Platform)
		asked += " " + target.Platform
	}
	s.asked = append(s.asked, asked)
	if err := s.errors[app]; err != nil && !errors.As(err, new(*scan.VulnerableError)) {
		return scan.Result{}, err
	}
	return s.result, s.errors[app]
}

var clean = scan.Result{
	Scanner: "trivy 0.68.0", Database: scan.Database{Version: 2, UpdatedAt: time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)},
	Counts: map[scan.Severity]int{scan.Medium: 1},
}

var vulnerable = &scan.VulnerableError{Findings: []scan.Finding{
	{ID: "CVE-2023-39325", Severity: scan.High, Package: "golang.org/x/net", Installed: "v0.16.0", Fixed: "0.17.0", Where: "usr/local/bin/worker"},
	{ID: "CVE-2026-1", Severity: scan.High, Package: "libc6", Installed: "2.36", Where: "debian 12"},
}}

// world is a fleet of two clusters with a registry each, which serve one and the same
// image of worker and ui.
type world struct {
	oregon, belgium string // hosts of the registries
	tree            fstest.MapFS
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{oregon: serve(t, registry.New()), belgium: serve(t, registry.New())}
	digest := map[string]string{}
	for _, app := range []string{"worker", "ui"} {
		digest[app] = push(t, index(t), w.oregon+"/omnivision/"+app, w.belgium+"/omnivision/"+app)
	}
	w.tree = fstest.MapFS{"fleet.yaml": {Data: fmt.Appendf(nil, `apiVersion: omnivision.ai/v1
kind: Fleet
repository: https://forge.example/omnivision/gitops.git
branch: main
chart: {registry: registry.example/charts, name: platform}
clusters:
  - {name: oregon, displayName: Oregon, cloud: aws, region: us-west-2, wave: 1, kubernetesVersion: "1.37.2", imageRegistry: %s/omnivision, addresses: {ui: https://a.example, argocd: https://b.example}}
  - {name: belgium, displayName: Belgium, cloud: gcp, region: europe-west1, wave: 2, kubernetesVersion: "1.37.2", imageRegistry: %s/omnivision, addresses: {ui: https://c.example, argocd: https://d.example}}
apps:
  - {name: omnivision-worker, repository: worker, valuePath: aiWorker}
  - {name: omnivision-ui, repository: ui, valuePath: ui}
`, w.oregon, w.belgium)}}
	for _, cluster := range []string{"oregon", "belgium"} {
		w.deploy("omnivision-worker", "aiWorker", cluster, "0.1.0-57", digest["worker"])
		w.deploy("omnivision-ui", "ui", cluster, "0.1.0-55", digest["ui"])
	}
	return w
}

func (w world) deploy(app, key, cluster, tag, digest string) {
	w.tree["apps/"+app+"/"+cluster+".yaml"] = &fstest.MapFile{Data: fmt.Appendf(nil, "%s:\n  tag: %q\n  digest: %q\n", key, tag, digest)}
}

func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// index has two platforms, and an attestation as builders add it.
func index(t *testing.T) v1.ImageIndex {
	t.Helper()
	all := v1.ImageIndex(empty.Index)
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "unknown", Architecture: "unknown"}} {
		image, err := random.Image(64, 1)
		if err != nil {
			t.Fatal(err)
		}
		all = mutate.AppendManifests(all, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &p}})
	}
	return all
}

func push(t *testing.T, image v1.ImageIndex, repositories ...string) string {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, repository := range repositories {
		ref, err := name.NewDigest(repository+"@"+digest.String(), name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref, image); err != nil {
			t.Fatal(err)
		}
	}
	return digest.String()
}

func (w world) run(t *testing.T, s *scanner) Report {
	t.Helper()
	report, err := Rescan{Scanner: s, PlainHTTP: true}.Run(t.Context(), w.tree, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func statuses(r Report) string {
	var all []string
	for _, d := range r.Deployed {
		all = append(all, d.Cluster+" "+d.App+" "+string(d.Status))
	}
	return strings.Join(all, "\n")
}

func TestEveryClusterAndAppIsLookedAt(t *testing.T) {
	s := &scanner{result: clean}
	report := newWorld(t).run(t, s)
	want := `oregon omnivision-worker clean
oregon omnivision-ui clean
belgium omnivision-worker clean
belgium omnivision-ui clean`
	if statuses(report) != want || report.Scanner != "trivy 0.68.0" || report.Has(Vulnerable) || report.Has(Unknown) {
		t.Errorf("the report is %+v", report)
	}
	// What both regions run is scanned once, and attestations never.
	if want := []string{"omnivision-worker linux/amd64 linux/arm64", "omnivision-ui linux/amd64 linux/arm64"}; !slices.Equal(s.asked, want) {
		t.Errorf("scanned were %q", s.asked)
	}
}

// A component is looked at once, where every cluster pulls it from, if any cluster lists it.
func TestComponentsThatRunAreLookedAt(t *testing.T) {
	w, s := newWorld(t), &scanner{result: clean}
	gate := push(t, index(t), w.oregon+"/ours/gate")
	for _, component := range []string{"gate", "logs"} {
		w.tree["components/"+component+"/kustomization.yaml"] = &fstest.MapFile{Data: fmt.Appendf(nil, "resources: []\nimages:\n  - {name: %s/ours/%s, newTag: \"0.1.0-60\", digest: %q}\n", w.oregon, component, gate)}
	}
	for _, cluster := range []string{"oregon", "belgium"} {
		w.tree["infrastructure/"+cluster+"/kustomization.yaml"] = &fstest.MapFile{Data: []byte("resources: [application.yaml]\n")}
		w.tree["infrastructure/"+cluster+"/application.yaml"] = &fstest.MapFile{Data: []byte(`apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: gate, namespace: argocd}
spec:
  project: default
  source: {repoURL: "https://forge.example/omnivision/gitops.git", path: components/gate, targetRevision: main}
  destination: {server: "https://kubernetes.default.svc", namespace: gate}
`)}
	}
	report, err := Rescan{Scanner: s, PlainHTTP: true, Programs: []string{"omnivision-worker", "gate", "logs", "newer"}}.Run(t.Context(), w.tree, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if got := statuses(report); !strings.HasSuffix(got, "belgium omnivision-ui clean\nevery cluster gate clean") || report.Deployed[4].Tag != "0.1.0-60" {
		t.Errorf("the report is\n%s", got)
	}
	if len(s.asked) != 3 || s.asked[2] != "gate linux/amd64 linux/arm64" {
		t.Errorf("scanned were %q", s.asked)
	}
}

func TestVulnerableImageIsNamedInEveryClusterThatRunsIt(t *testing.T) {
	report := newWorld(t).run(t, &scanner{result: clean, errors: map[string]error{"omnivision-worker": vulnerable}})
	want := `oregon omnivision-worker vulnerable
oregon omnivision-ui clean
belgium omnivision-worker vulnerable
belgium omnivision-ui clean`
	if statuses(report) != want || !report.Has(Vulnerable) {
		t.Errorf("the report is\n%s", statuses(report))
	}
	if d := report.Deployed[2]; len(d.Findings) != 2 || d.Todo != "release it anew with newer golang.org/x/net; replace or except libc6: no fixed version yet" {
		t.Errorf("Belgium's worker is %+v", d)
	}
}

func TestImageThatIsGoneFromOneRegistryIsUnknownThere(t *testing.T) {
	w := newWorld(t)
	gone := strings.Replace(string(w.tree["fleet.yaml"].Data), w.belgium, serve(t, registry.New()), 1)
	w.tree["fleet.yaml"] = &fstest.MapFile{Data: []byte(gone)}
	report := w.run(t, &scanner{result: clean})
	if !report.Has(Unknown) || !report.Has(Clean) || report.Deployed[2].Status != Unknown || !strings.Contains(report.Deployed[2].Problem, "reading ") {
		t.Errorf("the report is %+v", report)
	}
}

// A scan that failed is tried again by the next cluster's registry.
func TestImageThatCannotBeScannedIsNeverCalledClean(t *testing.T) {
	s := &scanner{result: clean, errors: map[string]error{"omnivision-ui": errors.New("no package was recognised in it")}}
	report := newWorld(t).run(t, s)
	if report.Deployed[1].Status != Unknown || report.Deployed[3].Status != Unknown || len(s.asked) != 3 {
		t.Errorf("scanned were %q, the report is\n%s", s.asked, statuses(report))
	}
}

func TestAppThatWasNeverReleasedIsNotScanned(t *testing.T) {
	w, s := newWorld(t), &scanner{result: clean}
	for _, cluster := range []string{"oregon", "belgium"} {
		w.deploy("omnivision-ui", "ui", cluster, "0.1.0", "")
	}
	report := w.run(t, s)
	if report.Deployed[1].Status != Unreleased || len(s.asked) != 1 {
		t.Errorf("scanned were %q, the report is\n%s", s.asked, statuses(report))
	}
}

func TestClustersWithOtherImagesHaveFindingsOfTheirOwn(t *testing.T) {
	w, s := newWorld(t), &scanner{result: clean}
	older := push(t, index(t), w.belgium+"/omnivision/worker")
	w.deploy("omnivision-worker", "aiWorker", "belgium", "0.1.0-50", older)
	if w.run(t, s); len(s.asked) != 3 {
		t.Errorf("scanned were %q", s.asked)
	}
}

func TestStaleDatabaseEndsTheRescan(t *testing.T) {
	s := &scanner{errors: map[string]error{"omnivision-worker": fmt.Errorf("%w: it is of last week", scan.ErrStale)}}
	_, err := Rescan{Scanner: s, PlainHTTP: true}.Run(t.Context(), newWorld(t).tree, func(string) {})
	if !errors.Is(err, scan.ErrStale) || len(s.asked) != 1 {
		t.Errorf("scanned were %q, error is %v", s.asked, err)
	}
}

func TestRescanEndsWithItsContext(t *testing.T) {
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("it took longer than it may"))
	_, err := Rescan{Scanner: &scanner{result: clean}, PlainHTTP: true}.Run(over, newWorld(t).tree, func(string) {})
	if err == nil || err.Error() != "it took longer than it may" {
		t.Errorf("error is %v", err)
	}
}

func TestBrokenTreeIsAnError(t *testing.T) {
	w := newWorld(t)
	delete(w.tree, "apps/omnivision-ui/belgium.yaml")
	if _, err := (Rescan{Scanner: &scanner{result: clean}, PlainHTTP: true}).Run(t.Context(), w.tree, func(string) {}); err == nil || !strings.Contains(err.Error(), "apps/omnivision-ui/belgium.yaml") {
		t.Errorf("error is %v", err)
	}
}

func TestReportForPeopleSaysEachThingOnce(t *testing.T) {
	w := newWorld(t)
	w.deploy("omnivision-ui", "ui", "belgium", "0.1.0", "")
	excepted := clean
	excepted.Excepted = []scan.Excepted{{Finding: scan.Finding{ID: "CVE-2026-2"}, Expires: "2026-12-31"}}
	report := w.run(t, &scanner{result: excepted, errors: map[string]error{"omnivision-worker": vulnerable}})
	for i, digest := range []string{"sha256:0123456789abcdef", "sha256:fedcba9876543210", "sha256:0123456789abcdef"} {
		report.Deployed[i].Digest = digest
	}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	want := `CLUSTER  APP                IMAGE                  STATUS      STATED  FINDINGS              WHAT TO DO
oregon   omnivision-worker  0.1.0-57@0123456789ab  vulnerable  -       1 medium, 1 excepted  release it anew with newer golang.org/x/net; replace or except libc6: no fixed version yet
oregon   omnivision-ui      0.1.0-55@fedcba987654  clean       -       1 medium, 1 excepted  fix what is excepted, by 2026-12-31
belgium  omnivision-worker  0.1.0-57@0123456789ab  vulnerable  -       1 medium, 1 excepted  release it anew with newer golang.org/x/net; replace or except libc6: no fixed version yet
belgium  omnivision-ui      -                      unreleased  -       -                     nothing

trivy 0.68.0, database of 2026-11-24T06:00:00Z

omnivision-worker 0.1.0-57@0123456789ab has 2 findings of severity HIGH or CRITICAL:
  SEVERITY  ID              PACKAGE           INSTALLED  FIXED IN  WHERE
  HIGH      CVE-2023-39325  golang.org/x/net  v0.16.0    0.17.0    usr/local/bin/worker
  HIGH      CVE-2026-1      libc6             2.36       none yet  debian 12
Update what is affected, or add a reviewed exception with a reason and an end to components/policies/manifests/release-policy.yaml of the GitOps tree.
`
	if text.String() != want {
		t.Errorf("the report is\n%s\nwant\n%s", text.String(), want)
	}
}

func TestReportOfAProblemCannotSteerATerminal(t *testing.T) {
	report := Report{Deployed: []Deployed{{Cluster: "oregon", App: "worker", Status: Unknown, Problem: "trivy image:\n\x1b[2Jno\n"}}}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil || strings.Contains(text.String(), "\x1b") || !strings.Contains(text.String(), "worker in oregon: trivy image:\n  [2Jno\n") {
		t.Errorf("%q, %v", text.String(), err)
	}
}
