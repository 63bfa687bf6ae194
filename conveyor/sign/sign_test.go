package sign

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/sign"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/conveyor/verify"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is registries with one image of two platforms.
type site struct {
	request Request
	// failAfter is the number of manifests that may still be written; negative is any.
	failAfter atomic.Int64
	writes    atomic.Int64 // that were taken
	// meet, if set, is called with the registry's name before a manifest is taken.
	meet func(registry string)
	lose bool // what is written
}

func newSite(t *testing.T, registries int) *site {
	t.Helper()
	s := &site{}
	s.failAfter.Store(-1)
	index, err := random.Index(20, 1, 2)
	check(t, err)
	digest, err := index.Digest()
	check(t, err)
	for i := range registries {
		// One with the referrers API, one without (P38).
		handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(i%2 == 0))
		server := httptest.NewServer(s.counting(handler))
		t.Cleanup(server.Close)
		repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/omnivision-worker", name.Insecure)
		check(t, err)
		check(t, remote.WriteIndex(repository.Tag("0.1.0-57"), index))
		s.request.Repositories = append(s.request.Repositories, repository)
	}
	manifest, err := index.IndexManifest()
	check(t, err)
	s.request.Digest, s.request.Version = digest.String(), "0.1.0-57"
	begin := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	s.request.Origin = Origin{
		Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "cmd/worker/Dockerfile",
		Invocation: "https://github.com/omnivision/omnivision/actions/runs/1",
	}
	for i, m := range manifest.Manifests {
		s.request.Platforms = append(s.request.Platforms, Platform{
			Platform: []string{"linux/amd64", "linux/arm64"}[i], Digest: m.Digest.String(), SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`),
			Scan: ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: begin, Scanned: begin, Result: json.RawMessage(`{"SchemaVersion":2}`)},
		})
	}
	s.writes.Store(0)
	return s
}

func (s *site) counting(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256:") {
			if s.meet != nil {
				s.meet(r.Host)
			}
			if s.failAfter.Load() >= 0 && s.failAfter.Add(-1) < 0 {
				s.failAfter.Store(0)
				http.Error(w, "the disk is full", http.StatusInsufficientStorage)
				return
			}
			s.writes.Add(1)
		}
		if s.lose && r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			w.WriteHeader(http.StatusCreated)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func keySigner(t *testing.T) *Signer {
	t.Helper()
	private, _ := signtest.Key(t)
	s, err := WithKey(private)
	check(t, err)
	return s
}

const workflow = "conveyor@omnivision.ai"

func keylessSigner(t *testing.T, s *signtest.Sigstore) *Signer {
	t.Helper()
	signer, err := Keyless(t.Context(), Services{Config: s.Config, Root: s}, signtest.Token(workflow))
	check(t, err)
	return signer
}

func nothing(string) {}

// types of what is believed about a digest, sorted.
func types(t *testing.T, p verify.Policy, image name.Digest) []string {
	t.Helper()
	believed, refused, err := p.Image(t.Context(), image)
	check(t, err)
	if len(refused) > 0 {
		t.Errorf("of %s these are refused: %v", image, refused)
	}
	var all []string
	for _, s := range believed {
		all = append(all, s.PredicateType)
	}
	slices.Sort(all)
	return all
}

func TestEveryDigestOfEveryRepositoryIsSigned(t *testing.T) {
	authority := signtest.NewSigstore(t)
	for name, signer := range map[string]*Signer{"without a key": keylessSigner(t, authority), "with a key": keySigner(t)} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 2)
			result, err := Publish(t.Context(), signer, s.request, nothing)
			check(t, err)
			if result.Statements != 10 || result.Signer != signer.Identity() {
				t.Errorf("result is %+v", result)
			}
			for _, repository := range s.request.Repositories {
				if got, want := types(t, signer.Policy(), repository.Digest(s.request.Digest)), []string{verify.Signature, verify.Provenance}; !slices.Equal(got, sorted(want)) {
					t.Errorf("the index in %s has %v", repository, got)
				}
				for _, p := range s.request.Platforms {
					if got, want := types(t, signer.Policy(), repository.Digest(p.Digest)), []string{verify.Signature, verify.Provenance, verify.SBOM, verify.Scan}; !slices.Equal(got, sorted(want)) {
						t.Errorf("%s in %s has %v", p.Platform, repository, got)
					}
				}
			}
			check(t, Check(t.Context(), signer.Policy(), s.request))
		})
	}
	if authority.Certificates != 1 {
		t.Errorf("one release took %d certificates", authority.Certificates)
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }

func TestKeylessSignatureNamesWorkflowRepositoryVersionAndTime(t *testing.T) {
	authority := signtest.NewSigstore(t)
	signer, s := keylessSigner(t, authority), newSite(t, 1)
	_, err := Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	repository := s.request.Repositories[0]
	believed, _, err := signer.Policy().Image(t.Context(), repository.Digest(s.request.Digest))
	check(t, err)
	for _, statement := range believed {
		if statement.Signer.Subject != workflow || statement.Signer.Issuer != authority.Issuer || time.Since(statement.Time).Abs() > time.Hour {
			t.Errorf("%s is by %s at %s", statement.PredicateType, statement.Signer, statement.Time)
		}
		switch statement.PredicateType {
		case verify.Signature:
			if statement.Annotations[verify.RepositoryAnnotation] != repository.String() || statement.Annotations[verify.VersionAnnotation] != "0.1.0-57" {
				t.Errorf("the signature says %v", statement.Annotations)
			}
		case verify.Provenance:
			for _, want := range []string{`"builder":{"id":"` + workflow + `"}`, `"gitCommit":"` + s.request.Origin.Commit + `"`, `"invocationId":"https://github.com/omnivision/omnivision/actions/runs/1"`} {
				if !strings.Contains(string(statement.Predicate), want) {
					t.Errorf("the provenance lacks %s:\n%s", want, statement.Predicate)
				}
			}
		}
	}
}

func TestSummarySaysWhatIsKnownOfAnImage(t *testing.T) {
	signer, s := keylessSigner(t, signtest.NewSigstore(t)), newSite(t, 1)
	_, err := Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	image := s.request.Repositories[0].Digest(s.request.Platforms[0].Digest)
	believed, _, err := signer.Policy().Image(t.Context(), image)
	check(t, err)
	got, err := verify.Summarize(believed)
	check(t, err)
	want := verify.Summary{
		Signer: signer.Identity(), Signed: got.Signed, Repository: image.Context().String(), Version: "0.1.0-57",
		Source: s.request.Origin.Source, Commit: s.request.Origin.Commit, Builder: workflow, Invocation: s.request.Origin.Invocation,
		Scanner: "pkg:github/aquasecurity/trivy 0.68.0", Database: s.request.Platforms[0].Scan.DatabaseUpdated, Components: 0,
	}
	if got != want || got.Signed.IsZero() {
		t.Errorf("the summary is\n%+v, want\n%+v", got, want)
	}
	if got, err := verify.Summarize(nil); err != nil || got != (verify.Summary{Components: -1}) {
		t.Errorf("of nothing it is %+v, %v", got, err)
	}
	if _, err := verify.Summarize([]verify.Statement{{PredicateType: verify.Provenance, Predicate: json.RawMessage(`[]`)}}); err == nil {
		t.Error("a predicate of another shape was taken")
	}
}

func TestRepeatedRunSignsNothingAgain(t *testing.T) {
	signer, s := keySigner(t), newSite(t, 2)
	_, err := Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	writes := s.writes.Load()
	_, err = Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	if again := s.writes.Load() - writes; again != 0 {
		t.Errorf("the second run wrote %d manifests", again)
	}
}

// The registry fails at the first manifest, in the next site at the second, and so on.
func TestRunThatFailedAnywhereIsFinishedByTheNext(t *testing.T) {
	signer := keySigner(t)
	for at := range int64(20) {
		s := newSite(t, 2)
		s.failAfter.Store(at)
		if _, err := Publish(t.Context(), signer, s.request, nothing); err == nil || !strings.Contains(err.Error(), "attaching") {
			t.Fatalf("failing at manifest %d: %v", at, err)
		}
		if err := Check(t.Context(), signer.Policy(), s.request); err == nil || !strings.Contains(err.Error(), "has no statement") {
			t.Errorf("after a failure at %d the check says %v", at, err)
		}
		s.failAfter.Store(-1)
		_, err := Publish(t.Context(), signer, s.request, nothing)
		check(t, err)
		check(t, Check(t.Context(), signer.Policy(), s.request))
		if s.writes.Load() != 20 {
			t.Errorf("after a failure at %d both runs wrote %d manifests", at, s.writes.Load())
		}
	}
}

func TestWhatTheRegistryLostIsNotDone(t *testing.T) {
	s := newSite(t, 2)
	s.lose = true
	if _, err := Publish(t.Context(), keySigner(t), s.request, nothing); err == nil || !strings.Contains(err.Error(), "reading back what was signed") {
		t.Errorf("error is %v", err)
	}
}

// Each registry waits until something is attached in the other.
func TestImagesAreLookedAfterAtTheSameTime(t *testing.T) {
	s := newSite(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	arrived := map[string]chan struct{}{}
	var once [2]sync.Once
	for _, repository := range s.request.Repositories {
		arrived[repository.RegistryStr()] = make(chan struct{})
	}
	s.meet = func(registry string) {
		for i, repository := range s.request.Repositories {
			if repository.RegistryStr() == registry {
				once[i].Do(func() { close(arrived[registry]) })
				continue
			}
			select {
			case <-arrived[repository.RegistryStr()]:
			case <-ctx.Done():
			}
		}
	}
	_, err := Publish(ctx, keySigner(t), s.request, nothing)
	check(t, err)
}

func TestOthersAreNotBelieved(t *testing.T) {
	authority := signtest.NewSigstore(t)
	signer, s := keylessSigner(t, authority), newSite(t, 1)
	_, err := Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	image := s.request.Repositories[0].Digest(s.request.Digest)
	for name, policy := range map[string]verify.Policy{
		"another workflow":      {Root: authority, Identity: verify.Identity{Subject: "other@omnivision.ai", Issuer: authority.Issuer}},
		"a longer name":         {Root: authority, Identity: verify.Identity{Subject: workflow + ".evil.com", Issuer: authority.Issuer}},
		"a shorter name":        {Root: authority, Identity: verify.Identity{Subject: "conveyor", Issuer: authority.Issuer}},
		"another issuer":        {Root: authority, Identity: verify.Identity{Subject: workflow, Issuer: "https://accounts.google.com"}},
		"another authority":     {Root: signtest.NewSigstore(t), Identity: signer.Identity()},
		"a key":                 keySigner(t).Policy(),
		"nobody in particular":  {Root: authority},
		"no issuer":             {Root: authority, Identity: verify.Identity{Subject: workflow}},
		"an identity, no roots": {Identity: signer.Identity()},
	} {
		believed, refused, err := policy.Image(t.Context(), image)
		check(t, err)
		if len(believed) != 0 || len(refused) != 2 {
			t.Errorf("%s is believed: %+v, refused %v", name, believed, refused)
		}
		if err := Check(t.Context(), policy, s.request); err == nil {
			t.Errorf("%s passes the check", name)
		}
	}
}

func TestSignatureCopiedFromAnotherRepositoryIsRefused(t *testing.T) {
	signer, s := keySigner(t), newSite(t, 1)
	_, err := Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	from := s.request.Repositories[0]
	to, err := name.NewRepository(from.RegistryStr()+"/omnivision/omnivision-ui", name.Insecure)
	check(t, err)
	index, err := remote.Index(from.Digest(s.request.Digest))
	check(t, err)
	check(t, remote.WriteIndex(to.Tag("0.1.0-57"), index))
	bundles, err := referrers.Bundles(t.Context(), from.Digest(s.request.Digest))
	check(t, err)
	for _, bundle := range bundles {
		check(t, referrers.Attach(t.Context(), to.Digest(s.request.Digest), bundle, "copied"))
	}
	believed, refused, err := signer.Policy().Image(t.Context(), to.Digest(s.request.Digest))
	check(t, err)
	if len(refused) != 1 || !strings.Contains(refused[0].Error(), from.String()) {
		t.Errorf("refused are %v", refused)
	}
	for _, statement := range believed {
		if statement.PredicateType == verify.Signature {
			t.Error("the copied signature is believed")
		}
	}
}

func TestStatementAboutAnotherImageIsRefused(t *testing.T) {
	signer, s := keySigner(t), newSite(t, 1)
	_, err := Publish(t.Context(), signer, s.request, nothing)
	check(t, err)
	repository := s.request.Repositories[0]
	bundles, err := referrers.Bundles(t.Context(), repository.Digest(s.request.Digest))
	check(t, err)
	other := repository.Digest(s.request.Platforms[0].Digest)
	before := types(t, signer.Policy(), other)
	for _, bundle := range bundles {
		check(t, referrers.Attach(t.Context(), other, bundle, "moved"))
	}
	check(t, referrers.Attach(t.Context(), other, []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`), "broken"))
	believed, refused, err := signer.Policy().Image(t.Context(), other)
	check(t, err)
	if len(believed) != len(before) || len(refused) != 3 {
		t.Errorf("believed are %d, want %d; refused are %v", len(believed), len(before), refused)
	}
}

func TestChartIsSignedWithoutAScan(t *testing.T) {
	s, signer := newSite(t, 2), keySigner(t)
	request := s.request
	request.Platforms, request.Origin.Dockerfile, request.Origin.Chart = nil, "", "charts/omnivision-platform"
	result, err := Publish(t.Context(), signer, request, func(string) {})
	check(t, err)
	check(t, Check(t.Context(), signer.Policy(), request))
	if result.Statements != 2 {
		t.Errorf("%d statements were made, want signature and provenance", result.Statements)
	}
	for what, change := range map[string]func(*Request){
		"neither":       func(r *Request) { r.Origin.Chart = "" },
		"both":          func(r *Request) { r.Platforms = s.request.Platforms },
		"a Dockerfile":  func(r *Request) { r.Origin.Dockerfile = "Dockerfile" },
		"no repository": func(r *Request) { r.Repositories = nil },
	} {
		bad := request
		change(&bad)
		if _, err := Publish(t.Context(), signer, bad, func(string) {}); err == nil {
			t.Errorf("%s was signed", what)
		}
	}
}

func TestNothingUnscannedIsSigned(t *testing.T) {
	for name, change := range map[string]func(*Platform){
		"no scan": func(p *Platform) { p.Scan.Result = nil },
		"no SBOM": func(p *Platform) { p.SBOM = nil },
	} {
		s := newSite(t, 1)
		change(&s.request.Platforms[1])
		if _, err := Publish(t.Context(), keySigner(t), s.request, nothing); err == nil || !strings.Contains(err.Error(), "nothing unscanned is signed") {
			t.Errorf("%s: error is %v", name, err)
		}
		if s.writes.Load() != 0 {
			t.Errorf("%s: something was written", name)
		}
	}
}

func TestWhatDoesNotVerifyIsNotPublished(t *testing.T) {
	authority := signtest.NewSigstore(t)
	signer, s := keylessSigner(t, authority), newSite(t, 1)
	signer.policy.Root = signtest.NewSigstore(t) // the root of another Sigstore
	_, err := Publish(t.Context(), signer, s.request, nothing)
	if err == nil || !strings.Contains(err.Error(), "check that trusted root and signing config belong together") || s.writes.Load() != 0 {
		t.Errorf("error is %v after %d writes", err, s.writes.Load())
	}
}

func TestSignerSaysWhatItLacks(t *testing.T) {
	authority := signtest.NewSigstore(t)
	if _, err := Keyless(t.Context(), Services{Config: authority.Config, Root: authority}, ""); err == nil || !strings.Contains(err.Error(), "id-token: write") {
		t.Errorf("without a token: %v", err)
	}
	if _, err := Keyless(t.Context(), Services{}, signtest.Token(workflow)); err == nil || !strings.Contains(err.Error(), "trusted root") {
		t.Errorf("without services: %v", err)
	}
	authority.Fail = true
	if _, err := Keyless(t.Context(), Services{Config: authority.Config, Root: authority}, signtest.Token(workflow)); err == nil || !strings.Contains(err.Error(), "getting a certificate from http://") {
		t.Errorf("when Fulcio refuses: %v", err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	check(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(p384)
	check(t, err)
	for name, text := range map[string][]byte{
		"no PEM": []byte("x"), "no key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
		"another curve": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if _, err := WithKey(text); err == nil || !strings.Contains(err.Error(), "signing key") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignerWithoutATimestampDoesNotPublish(t *testing.T) {
	authority := signtest.NewSigstore(t)
	signer, s := keylessSigner(t, authority), newSite(t, 1)
	authority.Fail = true
	_, err := Publish(t.Context(), signer, s.request, nothing)
	if err == nil || s.writes.Load() != 0 {
		t.Errorf("error is %v after %d writes", err, s.writes.Load())
	}
	authority.Fail = false
	whole := signer.options
	signer.options = func() (sign.BundleOptions, error) {
		options, err := whole()
		options.TimestampAuthorities = nil
		return options, err
	}
	if _, err := Publish(t.Context(), signer, s.request, nothing); err == nil || s.writes.Load() != 0 {
		t.Errorf("without a witness error is %v after %d writes", err, s.writes.Load())
	}
}

// A log that answers once a second would make a release wait for each statement in turn.
func TestStatementsAreSignedAtTheSameTime(t *testing.T) {
	signer, s := keySigner(t), newSite(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	whole, second := signer.options, make(chan struct{})
	var began atomic.Int64
	signer.options = func() (sign.BundleOptions, error) {
		switch began.Add(1) {
		case 1:
			select { // the second comes only if it need not wait for the first
			case <-second:
			case <-ctx.Done():
				return sign.BundleOptions{}, errors.New("nobody else signs")
			}
		case 2:
			close(second)
		}
		return whole()
	}
	_, err := Publish(ctx, signer, s.request, nothing)
	check(t, err)
}
