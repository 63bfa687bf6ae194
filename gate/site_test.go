package gate_test

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
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
	sigstore   *signtest.Sigstore
	root       []byte // the trusted root of who signs
	signer     *sign.Signer
	change     atomic.Pointer[func([]byte) []byte] // of manifests, on their way
}

const workflow = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{sigstore: signtest.NewSigstore(t)}
	server := httptest.NewServer(s.tampering(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))))
	t.Cleanup(server.Close)
	var err error
	s.repository, err = name.NewRepository(strings.TrimPrefix(server.URL, "http://") + "/omnivision-worker")
	check(t, err)
	s.root = s.sigstore.TrustedRoot(t)
	s.signer = s.signerOf(t, workflow)
	return s
}

// signerOf signs by an identity.
func (s *site) signerOf(t testing.TB, identity string) *sign.Signer {
	t.Helper()
	signer, err := sign.Keyless(t.Context(), sign.Services{Config: s.sigstore.Config, Root: s.sigstore}, signtest.Token(identity))
	check(t, err)
	return signer
}

// tampering changes manifests on their way, while somebody does.
func (s *site) tampering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		change := s.change.Load()
		if change == nil || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/manifests/") {
			next.ServeHTTP(w, r)
			return
		}
		recorded := httptest.NewRecorder()
		next.ServeHTTP(recorded, r)
		for key, values := range recorded.Header() {
			if key != "Content-Length" {
				w.Header()[key] = values
			}
		}
		w.WriteHeader(recorded.Code)
		_, _ = w.Write((*change)(recorded.Body.Bytes())) // the gate may have given up
	})
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
	s.state(t, s.signer, digest, platforms, version, time.Now().Add(-time.Hour))
	return s.repository.Tag(version).String() + "@" + digest
}

// state is what a signer says of an image, with a scan of some time.
func (s *site) state(t testing.TB, signer *sign.Signer, digest string, platforms []string, version string, scanned time.Time) {
	t.Helper()
	request := sign.Request{Digest: digest, Version: version, Repositories: []name.Repository{s.repository},
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "Dockerfile"}}
	for _, platform := range platforms {
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: "linux/amd64", Digest: platform, SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: scanned, Scanned: scanned, Result: json.RawMessage(`{"SchemaVersion":2}`)},
		})
	}
	_, err := sign.Publish(t.Context(), signer, request, func(string) {})
	check(t, err)
}

// realJudge is the gate's own, with the fleet's kinds of policies: signed by the workflow, freshly scanned. It keeps
// size digests; 0 is as many as in production.
func realJudge(root []byte, size int) (*gatejudge.Judge, error) {
	set, err := realPolicies(root, "")
	if err != nil {
		return nil, err
	}
	j := gatejudge.New(gatejudge.Options{Registry: credentials.Registry{Transport: credentials.NewTransport()}, Size: size})
	j.Use(set)
	return j, nil
}

// realPolicies are those, with more of a ReleasePolicy.
func realPolicies(root []byte, more string) (*policy.Set, error) {
	document := func(kind, version, spec string) policy.Document {
		return policy.Document{Name: "platform", Raw: []byte("apiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: platform}\nspec:\n" + spec)}
	}
	return policy.Compile(policy.Sources{
		TrustedRoots: [][]byte{root},
		ClusterImagePolicies: []policy.Document{document("ClusterImagePolicy", "policy.sigstore.dev/v1beta1", `  images: [{glob: "**"}]
  authorities: [{name: conveyor, keyless: {identities: [{issuer: "https://token.actions.githubusercontent.com", subject: "`+workflow+`"}]}}]
`)},
		ReleasePolicies: []policy.Document{document("ReleasePolicy", "omnivision.ai/v1alpha1", `  images: [{glob: "**/omnivision-*"}]
  scan: {maxAge: 720h}
`+more)},
	})
}
