package judge

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
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

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	workflow    = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"
	pullRequest = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/pull/7/merge"
	evil        = "https://github.com/omnivision/omnivision/.github/workflows/evil.yaml@refs/heads/main"
)

// counting is a registry that counts and can die.
type counting struct {
	http.Handler
	requests atomic.Int64
	reads    sync.Map // of manifests, by path: *atomic.Int64
	dead     atomic.Bool
	change   atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.requests.Add(1)
	if c.dead.Load() {
		panic(http.ErrAbortHandler) // the connection is cut
	}
	if change := c.change.Load(); change != nil && (*change)(w, r) {
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodGet {
		count, _ := c.reads.LoadOrStore(r.URL.Path, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
	}
	c.Handler.ServeHTTP(w, r)
}

// site is a registry, a Sigstore and a gate that trusts the workflow.
type site struct {
	t        testing.TB
	registry *counting
	host     string
	sigstore *signtest.Sigstore
	root     []byte
	judge    *Judge
	mu       sync.Mutex
	now      time.Time
}

// anonymous reads without credentials, and does not try again.
type anonymous struct{}

func (anonymous) Options(context.Context, gate.Image) ([]remote.Option, error) {
	return []remote.Option{remote.WithRetryBackoff(remote.Backoff{Steps: 1})}, nil
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, sigstore: signtest.NewSigstore(t), now: time.Now()}
	s.root = s.sigstore.TrustedRoot(t)
	s.registry = &counting{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))}
	server := httptest.NewUnstartedServer(s.registry)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	s.restart(nil)
	return s
}

// restart is a new gate, with what a store kept.
func (s *site) restart(store Store) {
	s.judge = New(Options{Registry: anonymous{}, Store: store, Now: s.clock})
	s.use(keyless(workflow), rules)
	check(s.t, s.judge.Load(s.t.Context()))
}

func (s *site) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *site) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

const rules = "  images: [{glob: \"**/omnivision-*\"}]\n  scan: {maxAge: 720h}\n"

func keyless(subject string) string {
	return "  images: [{glob: \"**\"}]\n  authorities: [{name: conveyor, keyless: {identities: [{issuer: \"https://token.actions.githubusercontent.com\", subject: \"" + subject + "\"}]}}]\n"
}

func imagePolicy(name, spec string) policy.Document {
	return policy.Document{Name: name, Raw: []byte("apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: " + name + "}\nspec:\n" + spec)}
}

func releasePolicy(name, spec string) policy.Document {
	return policy.Document{Name: name, Raw: []byte("apiVersion: omnivision.ai/v1alpha1\nkind: ReleasePolicy\nmetadata: {name: " + name + "}\nspec:\n" + spec)}
}

// use makes these the policies: one about signatures, and ours.
func (s *site) use(signatures string, releases ...string) {
	s.t.Helper()
	sources := policy.Sources{TrustedRoots: [][]byte{s.root}}
	if signatures != "" {
		sources.ClusterImagePolicies = []policy.Document{imagePolicy("release", signatures)}
	}
	for i, spec := range releases {
		sources.ReleasePolicies = append(sources.ReleasePolicies, releasePolicy([]string{"platform", "lists", "more"}[i], spec))
	}
	s.compile(sources)
}

func (s *site) compile(sources policy.Sources) {
	s.t.Helper()
	set, err := policy.Compile(sources)
	check(s.t, err)
	s.judge.Use(set)
}

func (s *site) keyless(subject string) *sign.Signer {
	s.t.Helper()
	signer, err := sign.Keyless(s.t.Context(), sign.Services{Config: s.sigstore.Config, Root: s.sigstore}, signtest.Token(subject))
	check(s.t, err)
	return signer
}

func (s *site) repository(path string) name.Repository {
	s.t.Helper()
	repository, err := name.NewRepository(s.host + "/" + path)
	check(s.t, err)
	return repository
}

// image is an index with two platforms in a repository.
type image struct {
	repository name.Repository
	digest     string
	platforms  []string
}

func (i image) at() string { return i.repository.Digest(i.digest).String() }

func (s *site) push(path, tag string) image {
	s.t.Helper()
	index := v1.ImageIndex(empty.Index)
	var platforms []string
	for _, arch := range []string{"amd64", "arm64"} {
		one, err := random.Image(20, 1)
		check(s.t, err)
		digest, err := one.Digest()
		check(s.t, err)
		platforms = append(platforms, digest.String())
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	digest, err := index.Digest()
	check(s.t, err)
	out := image{s.repository(path), digest.String(), platforms}
	check(s.t, remote.WriteIndex(out.repository.Tag(tag), index))
	return out
}

const (
	clean      = `{"SchemaVersion":2}`
	vulnerable = `{"SchemaVersion":2,"Results":[{"Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","PkgName":"x","Severity":"HIGH"},{"VulnerabilityID":"CVE-2026-2","PkgName":"x","Severity":"LOW"}]}]}`
)

// sign states of an image what the conveyor does.
func (s *site) sign(signer *sign.Signer, of image, version, report string, scanned time.Time) {
	s.t.Helper()
	request := sign.Request{
		Digest: of.digest, Version: version, Repositories: []name.Repository{of.repository},
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "Dockerfile"},
	}
	for _, digest := range of.platforms {
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: "linux/amd64", Digest: digest, SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: scanned, Scanned: scanned, Result: json.RawMessage(report)},
		})
	}
	_, err := sign.Publish(s.t.Context(), signer, request, func(string) {})
	check(s.t, err)
}

// release is an image as the conveyor leaves it.
func (s *site) release(path, version string) image {
	s.t.Helper()
	of := s.push(path, version)
	s.sign(s.keyless(workflow), of, version, clean, s.now.Add(-time.Hour))
	return of
}

func (s *site) ask(reference string) gate.Verdict {
	asked := gate.Image{Reference: reference, Namespace: "omnivision"}
	known, ok := s.judge.Known(asked)
	v := s.judge.Judge(s.t.Context(), asked)
	if ok && !reflect.DeepEqual(known, v) {
		s.t.Errorf("%s: without waiting it says %s, and then %s", reference, show(known), show(v))
	}
	return v
}

// want fails unless the verdict is to admit ("+source") or to refuse for a reason, with a
// part of its message after a colon.
func (s *site) want(reference, want string) gate.Verdict {
	s.t.Helper()
	v := s.ask(reference)
	if source, ok := strings.CutPrefix(want, "+"); ok {
		if !v.Allowed || len(v.Denials) > 0 || source != "" && string(v.Source) != source {
			s.t.Errorf("%s: want %s, got %s", reference, want, show(v))
		}
		return v
	}
	reason, message, _ := strings.Cut(want, ": ")
	if v.Allowed || len(v.Denials) == 0 || string(v.Denials[0].Reason) != reason || !strings.Contains(v.Denials[0].Message, message) {
		s.t.Errorf("%s: want %s, got %s", reference, want, show(v))
	}
	for _, d := range v.Denials {
		if d.Next == "" || d.Message == "" || strings.ContainsAny(d.Message, "\n\r") {
			s.t.Errorf("%s: the denial is no use: %+v", reference, d)
		}
	}
	return v
}

func show(v gate.Verdict) string {
	return fmt.Sprintf("allowed %t, %s, denials %+v, warnings %+v", v.Allowed, v.Source, v.Denials, v.Warnings)
}

// bundles are those beside an image.
func bundles(t testing.TB, of image) [][]byte {
	t.Helper()
	all, err := referrers.Bundles(t.Context(), of.repository.Digest(of.digest))
	check(t, err)
	return all
}
