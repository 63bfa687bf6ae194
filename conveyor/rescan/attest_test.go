package rescan

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// released is a world in which Oregon's worker is a release, signed and scanned.
type released struct {
	world
	signer *sign.Signer
	image  name.Digest // of the only platform
	result scan.Result // of a scan today
}

const nothingFound = `{"SchemaVersion":2}`

func newReleased(t *testing.T) released {
	t.Helper()
	w := released{world: newWorld(t)}
	image := index(t)
	digest := push(t, image, w.oregon+"/omnivision/worker")
	w.deploy("omnivision-worker", "aiWorker", "oregon", "0.1.0-58", digest)
	for _, other := range []struct{ app, key, cluster string }{{"omnivision-ui", "ui", "oregon"}, {"omnivision-ui", "ui", "belgium"}, {"omnivision-worker", "aiWorker", "belgium"}} {
		w.deploy(other.app, other.key, other.cluster, "0.1.0", "")
	}
	private, _ := signtest.Key(t)
	var err error
	if w.signer, err = sign.WithKey(private); err != nil {
		t.Fatal(err)
	}
	repository, err := name.NewRepository(w.oregon+"/omnivision/worker", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := image.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	platform := manifest.Manifests[0].Digest.String()
	w.image = repository.Digest(platform)
	w.result = clean
	w.result.Scanned = time.Now().UTC().Truncate(time.Second)
	w.result.Images = []scan.Image{{Platform: "linux/amd64", Digest: platform, Report: json.RawMessage(nothingFound)}}
	w.release(t, repository, digest, manifest)
	return w
}

// release states what the conveyor does, with a scan of a month ago.
func (w released) release(t *testing.T, repository name.Repository, digest string, manifest *v1.IndexManifest) {
	t.Helper()
	old := time.Now().Add(-31 * 24 * time.Hour)
	_, err := sign.Publish(t.Context(), w.signer, sign.Request{
		Digest: digest, Version: "0.1.0-58", Repositories: []name.Repository{repository},
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "Dockerfile"},
		Platforms: []sign.Platform{{
			Platform: "linux/amd64", Digest: manifest.Manifests[0].Digest.String(), SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: old, Scanned: old, Result: json.RawMessage(nothingFound)},
		}},
	}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
}

func (w released) rescan(t *testing.T, s *scanner, now time.Time) Deployed {
	t.Helper()
	look := Rescan{Scanner: s, PlainHTTP: true, Attest: &Attestation{Signer: w.signer, Now: func() time.Time { return now }}}
	report, err := look.Run(t.Context(), w.tree, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return report.Deployed[0]
}

// scans counts the statements of scans, and says when the last one ended.
func (w released) scans(t *testing.T) (count int, last time.Time) {
	t.Helper()
	believed, _, err := w.signer.Policy().Image(t.Context(), w.image)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range believed {
		if s.PredicateType == verify.Scan {
			count++
		}
	}
	found, _, err := verify.FindLastScan(believed)
	if err != nil {
		t.Fatal(err)
	}
	return count, found.Finished
}

func TestCleanImageGetsAStatementOnceAWeek(t *testing.T) {
	w := newReleased(t)
	for i, step := range []struct {
		after time.Duration
		want  Attested
		scans int
	}{{0, Stated, 2}, {24 * time.Hour, Recent, 2}, {8 * 24 * time.Hour, Stated, 3}} {
		now := time.Now().Add(step.after)
		w.result.Scanned = now.UTC().Truncate(time.Second)
		w.result.Database.UpdatedAt = w.result.Scanned
		d := w.rescan(t, &scanner{result: w.result}, now)
		if count, last := w.scans(t); d.Attested != step.want || d.Problem != "" || count != step.scans || step.want == Stated && !last.Equal(w.result.Scanned) {
			t.Errorf("%d: %s, %s; there are %d scans, the last of %s", i, d.Attested, d.Problem, count, last)
		}
	}
}

// Another finding is another fact, however young the last statement is: admission has exceptions of its own.
func TestNewFindingIsStatedAtOnce(t *testing.T) {
	w := newReleased(t)
	w.rescan(t, &scanner{result: w.result}, time.Now())
	w.result.Images[0].Report = json.RawMessage(`{"SchemaVersion":2,"Results":[{"Target":"debian","Class":"os-pkgs","Type":"debian","Packages":[{"Name":"libc6","Version":"2"}],
		"Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","PkgName":"libc6","InstalledVersion":"2","Severity":"HIGH"}]}]}`)
	w.result.Scanned = w.result.Scanned.Add(time.Minute)
	if d := w.rescan(t, &scanner{result: w.result}, time.Now()); d.Attested != Stated {
		t.Errorf("the statement is %s: %s", d.Attested, d.Problem)
	}
}

func TestOnlyWhatIsCleanAndOursIsStated(t *testing.T) {
	t.Run("vulnerable", func(t *testing.T) {
		w := newReleased(t)
		d := w.rescan(t, &scanner{result: w.result, errors: map[string]error{"omnivision-worker": vulnerable}}, time.Now())
		if count, _ := w.scans(t); d.Status != Vulnerable || d.Attested != "" || count != 1 {
			t.Errorf("%+v, and there are %d scans", d, count)
		}
	})
	t.Run("signed by somebody else", func(t *testing.T) {
		w := newReleased(t)
		private, _ := signtest.Key(t)
		var err error
		if w.signer, err = sign.WithKey(private); err != nil {
			t.Fatal(err)
		}
		d := w.rescan(t, &scanner{result: w.result}, time.Now())
		if count, _ := w.scans(t); d.Attested != Unstated || !strings.Contains(d.Problem, "only a release of its own") || count != 0 {
			t.Errorf("%+v, and there are %d scans", d, count)
		}
		report := Report{Deployed: []Deployed{d}}
		var text strings.Builder
		if err := report.WriteText(&text); err != nil || !report.Unstated() || !strings.Contains(text.String(), fmt.Sprintf("%s in %s: %s", d.App, d.Cluster, "stating")) {
			t.Errorf("the report does not say it: %v\n%s", err, text.String())
		}
	})
}
