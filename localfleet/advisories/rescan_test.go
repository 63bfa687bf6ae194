package advisories

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/omnivision/omnivision/conveyor/rescan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/credentials"
	"github.com/omnivision/omnivision/gate/judge"
	"github.com/omnivision/omnivision/gate/policy"
	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/registry"
)

// realRegistry is CNCF's; trivy has found out whether engines may be missing.
func realRegistry(t *testing.T) string {
	t.Helper()
	address := freeport.Address(t)
	dir := t.TempDir()
	supervisor := &process.Supervisor{Dir: filepath.Join(dir, "supervisor")}
	server := registry.Server{Binary: filepath.Join(os.Getenv("OMNIVISION_ENGINES"), "registry"), Dir: filepath.Join(dir, "registry"), Address: address}
	t.Cleanup(func() { check(t, supervisor.Stop(context.Background(), registry.Name)) })
	check(t, server.Start(t.Context(), supervisor))
	return address
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const workflow = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"

// theGate is the gate's Judge, which wants the workflow's signature and a scan of the last month.
func theGate(t *testing.T, root []byte) *judge.Judge {
	t.Helper()
	document := func(kind, version, spec string) policy.Document {
		return policy.Document{Name: "platform", Raw: []byte("apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: platform}\nspec:\n" + spec)}
	}
	set, err := policy.Compile(policy.Sources{
		TrustedRoots: [][]byte{root},
		ClusterImagePolicies: []policy.Document{document("ClusterImagePolicy", "policy.sigstore.dev/v1beta1", `  images: [{glob: "**"}]
  authorities: [{name: conveyor, keyless: {identities: [{issuer: "https://token.actions.githubusercontent.com", subject: "`+workflow+`"}]}}]
`)},
		ReleasePolicies: []policy.Document{document("ReleasePolicy", "omnivision.ai/v1alpha1", "  images: [{glob: \"**\"}]\n  scan: {maxAge: 720h}\n")},
	})
	check(t, err)
	check(t, set.Usable())
	j := judge.New(judge.Options{Registry: credentials.Registry{Transport: credentials.NewTransport()}})
	j.Use(set)
	return j
}

// A release of five weeks ago does not start any more. The nightly rescan, with the real Trivy
// and the real registry, states that it is still clean, and it starts; of a vulnerable one it states nothing.
func TestRescanKeepsACleanReleaseStarting(t *testing.T) {
	b := newBed(t)
	clean, old := string(program(t, "v0.55.0")), string(program(t, "v0.16.0"))
	b.registry = realRegistry(t)
	nobodyElse(t)
	sigstore := signtest.NewSigstore(t)
	signer, err := sign.Keyless(t.Context(), sign.Services{Config: sigstore.Config, Root: sigstore}, signtest.Token(workflow))
	check(t, err)
	for app, files := range map[string]map[string]string{"clean": {"usr/local/bin/worker": clean}, "vulnerable": {"usr/local/bin/worker": old}} {
		t.Run(app, func(t *testing.T) {
			target := b.push(t, files)[0]
			image, err := name.NewDigest(target.Reference, name.Insecure)
			check(t, err)
			monthAgo := time.Now().Add(-35 * 24 * time.Hour)
			_, err = sign.Publish(t.Context(), signer, sign.Request{
				Digest: image.DigestStr(), Version: "0.1.0-57", Repositories: []name.Repository{image.Context()},
				Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "Dockerfile"},
				Platforms: []sign.Platform{{Platform: "linux/amd64", Digest: image.DigestStr(), SBOM: []byte(`{"bomFormat":"CycloneDX"}`),
					Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: monthAgo, Scanned: monthAgo, Result: []byte(`{"SchemaVersion":2}`)}}},
			}, func(string) {})
			check(t, err)
			says := func() string {
				// A gate that knows nothing: what it found out it would keep for ten minutes.
				verdict := theGate(t, sigstore.TrustedRoot(t)).Judge(t.Context(), gate.Image{Reference: image.String()})
				if verdict.Allowed {
					return "admitted"
				}
				return string(verdict.Denials[0].Reason)
			}
			if before := says(); before != string(gate.StaleScan) {
				t.Fatalf("before the rescan the gate says %s", before)
			}
			report, err := rescan.Rescan{Scanner: b.scanner, PlainHTTP: true, Attest: &rescan.Attestation{Signer: signer}}.Run(t.Context(), b.tree(image.DigestStr()), func(string) {})
			check(t, err)
			want := map[string][]string{"clean": {"clean", "stated", "admitted"}, "vulnerable": {"vulnerable", "", string(gate.StaleScan)}}[app]
			d := report.Deployed[0]
			if got := []string{string(d.Status), string(d.Attested), says()}; strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("after the rescan it is %q, want %q: %+v", got, want, d)
			}
		})
	}
}

// tree is a fleet of one cluster that is to run a worker.
func (b bed) tree(digest string) fstest.MapFS {
	return fstest.MapFS{
		"fleet.yaml": {Data: fmt.Appendf(nil, `apiVersion: omnivision.ai/v1
kind: Fleet
repository: https://forge.example/omnivision/gitops.git
branch: main
chart: {registry: registry.example/charts, name: platform}
clusters:
  - {name: oregon, displayName: Oregon, cloud: aws, region: us-west-2, wave: 1, kubernetesVersion: "1.37.2", imageRegistry: %s/omnivision, addresses: {ui: https://a.example, argocd: https://b.example}}
apps:
  - {name: omnivision-worker, repository: worker, valuePath: aiWorker}
`, b.registry)},
		"apps/omnivision-worker/oregon.yaml": {Data: fmt.Appendf(nil, "aiWorker:\n  tag: 0.1.0-57\n  digest: %s\n", digest)},
	}
}
