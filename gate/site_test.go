package gate_test

import (
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/gate/credentials"
	gatejudge "github.com/omnivision/omnivision/gate/judge"
	"github.com/omnivision/omnivision/gate/policy"
)

// site is a registry in process with images that the conveyor's identity signed.
type site struct {
	repository name.Repository
	root       []byte // the trusted root of who signs
	signer     *sign.Signer
}

const workflow = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"

func newSite(t testing.TB) *site {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(server.Close)
	repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://") + "/omnivision-worker")
	check(t, err)
	sigstore := signtest.NewSigstore(t)
	signer, err := sign.Keyless(t.Context(), sign.Services{Config: sigstore.Config, Root: sigstore}, signtest.Token(workflow))
	check(t, err)
	return &site{repository, sigstore.TrustedRoot(t), signer}
}

// push adds an index of two platforms, and returns its digest and theirs.
func (s *site) push(t testing.TB, tag string) (digest string, platforms []string) {
	t.Helper()
	index := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"amd64", "arm64"} {
		image, err := random.Image(20, 1)
		check(t, err)
		hash, err := image.Digest()
		check(t, err)
		platforms = append(platforms, hash.String())
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	hash, err := index.Digest()
	check(t, err)
	check(t, remote.WriteIndex(s.repository.Tag(tag), index))
	return hash.String(), platforms
}

// release pushes and states what the conveyor does; it returns repository:tag@digest.
func (s *site) release(t testing.TB, version string) string {
	t.Helper()
	digest, platforms := s.push(t, version)
	scanned := time.Now().Add(-time.Hour)
	request := sign.Request{Digest: digest, Version: version, Repositories: []name.Repository{s.repository},
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "Dockerfile"}}
	for _, platform := range platforms {
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: "linux/amd64", Digest: platform, SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: scanned, Scanned: scanned, Result: json.RawMessage(`{"SchemaVersion":2}`)},
		})
	}
	_, err := sign.Publish(t.Context(), s.signer, request, func(string) {})
	check(t, err)
	return s.repository.Tag(version).String() + "@" + digest
}

// realJudge is the gate's own, with the fleet's kinds of policies: signed by the workflow, freshly scanned. It keeps
// size digests; 0 is as many as in production.
func realJudge(root []byte, size int) (*gatejudge.Judge, error) {
	document := func(kind, version, spec string) policy.Document {
		return policy.Document{Name: "platform", Raw: []byte("apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: platform}\nspec:\n" + spec)}
	}
	set, err := policy.Compile(policy.Sources{
		TrustedRoots: [][]byte{root},
		ClusterImagePolicies: []policy.Document{document("ClusterImagePolicy", "policy.sigstore.dev/v1beta1", `  images: [{glob: "**"}]
  authorities: [{name: conveyor, keyless: {identities: [{issuer: "https://token.actions.githubusercontent.com", subject: "`+workflow+`"}]}}]
`)},
		ReleasePolicies: []policy.Document{document("ReleasePolicy", "omnivision.ai/v1alpha1", `  images: [{glob: "**/omnivision-*"}]
  scan: {maxAge: 720h}
`)},
	})
	if err != nil {
		return nil, err
	}
	j := gatejudge.New(gatejudge.Options{Registry: credentials.Registry{Transport: credentials.NewTransport()}, Size: size})
	j.Use(set)
	return j, nil
}
