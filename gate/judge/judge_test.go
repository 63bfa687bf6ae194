package judge

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
)

func TestSignedReleaseIsAdmittedByIndexPlatformAndTag(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.want(of.at(), "+verified")
	s.want(of.at(), "+cache")
	for _, platform := range of.platforms {
		s.want(of.repository.Digest(platform).String(), "+verified")
	}
	v := s.want(of.repository.Tag("1.4.0").String(), "+cache")
	if v.Digest != of.digest || v.Image != of.repository.Tag("1.4.0").String() || strings.Join(v.Policies, " ") != "release platform" {
		t.Errorf("the verdict is %+v", v)
	}
	s.want(of.repository.Tag("1.4.0").String()+"@"+of.digest, "+cache")
}

func TestForeignImagesAreRefused(t *testing.T) {
	s := newSite(t)
	earlier := s.now.Add(-time.Hour)
	private, _ := signtest.Key(t)
	withKey, err := sign.WithKey(private)
	check(t, err)
	for name, c := range map[string]struct {
		prepare func() string
		want    string
	}{
		"unsigned": {func() string { return s.push("omnivision-worker", "a").at() }, "Unsigned: no signature by " + workflow},
		"signed by a key": {func() string {
			of := s.push("omnivision-worker", "b")
			s.sign(withKey, of, "1.4.0", clean, earlier)
			return of.at()
		}, "WrongIdentity: proven by no trusted root"},
		"signed by another workflow": {func() string {
			of := s.push("omnivision-worker", "c")
			s.sign(s.keyless(evil), of, "1.4.0", clean, earlier)
			return of.at()
		}, "WrongIdentity: it is signed by " + evil},
		"signed by the workflow from a pull request": {func() string {
			of := s.push("omnivision-worker", "d")
			s.sign(s.keyless(pullRequest), of, "1.4.0", clean, earlier)
			return of.at()
		}, "WrongIdentity: refs/pull/7/merge"},
		"signature of another authority": {func() string {
			of, other := s.push("omnivision-worker", "e"), signtest.NewSigstore(t)
			signer, err := sign.Keyless(t.Context(), sign.Services{Config: other.Config, Root: other}, signtest.Token(workflow))
			check(t, err)
			s.sign(signer, of, "1.4.0", clean, earlier)
			return of.at()
		}, "WrongIdentity: proven by no trusted root"},
		"signature copied from another repository": {func() string {
			of := s.release("omnivision-ui", "1.4.0")
			return s.copy(of, "omnivision-worker").at()
		}, "OtherRepository: omnivision-ui"},
		"not there":    {func() string { return s.repository("omnivision-worker").Tag("gone").String() }, "Unresolvable"},
		"no reference": {func() string { return "UPPER/ case" }, "Unresolvable"},
		"scan of an image of the index missing": {func() string {
			of := s.push("omnivision-worker", "f")
			all := of.platforms
			of.platforms = all[:1]
			s.sign(s.keyless(workflow), of, "1.4.0", clean, earlier)
			return of.at()
		}, "NoScan: its image sha256:"},
		"scan too old": {func() string {
			of := s.push("omnivision-worker", "g")
			s.sign(s.keyless(workflow), of, "1.4.0", clean, s.now.Add(-721*time.Hour))
			return of.at()
		}, "StaleScan: may be 720h0m0s old"},
		"scan found something": {func() string {
			of := s.push("omnivision-worker", "h")
			s.sign(s.keyless(workflow), of, "1.4.0", vulnerable, earlier)
			return of.at()
		}, "VulnerableScan: HIGH CVE-2026-1, for which no exception"},
	} {
		t.Run(name, func(t *testing.T) { s.want(c.prepare(), c.want) })
	}
}

// copy takes an image and all that lies beside it to another repository.
func (s *site) copy(of image, path string) image {
	s.t.Helper()
	index, err := remote.Index(of.repository.Digest(of.digest))
	check(s.t, err)
	out := image{s.repository(path), of.digest, of.platforms}
	check(s.t, remote.WriteIndex(out.repository.Tag("copied"), index))
	for _, digest := range append([]string{of.digest}, of.platforms...) {
		bundles, err := referrers.Bundles(s.t.Context(), of.repository.Digest(digest))
		check(s.t, err)
		for _, bundle := range bundles {
			check(s.t, referrers.Attach(s.t.Context(), out.repository.Digest(digest), bundle, "x"))
		}
	}
	return out
}

func TestKeyDecidesByKey(t *testing.T) {
	s := newSite(t)
	private, public := signtest.Key(t)
	_, other := signtest.Key(t)
	signer, err := sign.WithKey(private)
	check(t, err)
	of := s.push("omnivision-worker", "1")
	s.sign(signer, of, "1.4.0", clean, s.now.Add(-time.Hour))
	spec := func(pem []byte) string {
		return "  images: [{glob: \"**\"}]\n  authorities: [{name: ours, key: {data: \"" + strings.ReplaceAll(string(pem), "\n", "\\n") + "\"}}]\n"
	}
	s.use(spec(public), rules)
	s.want(of.at(), "+verified")
	s.use(spec(other), rules)
	s.want(of.at(), "WrongKey: no signature by ours's key")
}

// A replayed older version is still validly signed (P32).
func TestFloorRefusesAnOlderVersion(t *testing.T) {
	s := newSite(t)
	old, current := s.release("omnivision-worker", "1.3.9"), s.release("omnivision-worker", "1.4.0")
	other := s.release("omnivision-ui", "1.0.0")
	s.want(old.at(), "+verified")
	s.use(keyless(workflow), rules, "  floors: [{repository: omnivision-worker, version: \"1.4.0\"}]\n")
	s.want(old.at(), "BelowFloor: it is version 1.3.9, and 1.4.0 or newer is demanded")
	s.want(old.repository.Digest(old.platforms[0]).String(), "BelowFloor")
	s.want(current.at(), "+")
	s.want(other.at(), "+")
}

func TestMovedTagIsAnotherImage(t *testing.T) {
	s := newSite(t)
	s.release("omnivision-worker", "stable")
	tag := s.repository("omnivision-worker").Tag("stable").String()
	first := s.want(tag, "+")
	moved := s.push("omnivision-worker", "stable")
	if v := s.want(tag, "+cache"); v.Digest != first.Digest {
		t.Errorf("within seconds the tag is another digest: %+v", v)
	}
	s.pass(6 * time.Second)
	if v := s.want(tag, "Unsigned"); v.Digest != moved.digest {
		t.Errorf("the digest is %s", v.Digest)
	}
}

func TestQuarantineCountsAtOnceAndAsksNobody(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.5.0")
	s.want(of.at(), "+verified")
	platform := of.repository.Digest(of.platforms[1]).String()
	s.want(platform, "+verified")
	entry := fmt.Sprintf("  quarantine: [{digest: %q, app: omnivision-worker, version: \"1.5.0\", reason: \"GPU errors\"}]\n", of.digest)
	s.use(keyless(workflow), rules, entry)
	before := s.registry.requests.Load()
	s.want(of.at(), "Quarantined: GPU errors")
	s.want(platform, "Quarantined: GPU errors")
	elsewhere := s.repository("other/name").Digest(of.digest).String()
	s.want(elsewhere, "Quarantined")
	if asked := s.registry.requests.Load() - before; asked != 0 {
		t.Errorf("the registry was asked %d times", asked)
	}
	// Neither an outage nor a restart brings it back.
	s.registry.dead.Store(true)
	s.pass(2 * time.Hour)
	s.want(of.at(), "Quarantined")
	s.want(platform, "Quarantined")
	s.use(keyless(workflow), rules, strings.Replace(entry, "quarantine", "mode: warn\n  quarantine", 1))
	if v := s.ask(of.at()); len(v.Warnings) != 1 || v.Warnings[0].Reason != gate.Quarantined {
		t.Errorf("in warn mode: %s", show(v))
	}
}

// An index that holds a platform's image that was taken back is taken back.
func TestQuarantineOfAPlatformCoversItsIndex(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.5.0")
	s.use(keyless(workflow), rules, fmt.Sprintf("  quarantine: [{digest: %q, reason: \"GPU errors\"}]\n", of.platforms[0]))
	s.want(of.at(), "Quarantined")
	s.want(of.repository.Digest(of.platforms[1]).String(), "+")
}

func TestGitOnlyAdmitsWhatGitNames(t *testing.T) {
	s := newSite(t)
	named, other := s.release("omnivision-worker", "1.5.0"), s.release("omnivision-worker", "1.4.0")
	s.use(keyless(workflow), rules+"  gitOnly: true\n", fmt.Sprintf("  admitted: [{repository: omnivision-worker, digest: %q}]\n", named.digest))
	s.want(named.at(), "+")
	s.want(named.repository.Digest(named.platforms[0]).String(), "+") // of the index that Git names
	s.want(other.at(), "NotInGit")
	s.want(other.repository.Digest(other.platforms[0]).String(), "NotInGit")
	// Git moves on: what it named is admitted no longer, by index or platform.
	s.use(keyless(workflow), rules+"  gitOnly: true\n", fmt.Sprintf("  admitted: [{repository: omnivision-worker, digest: %q}]\n", other.digest))
	s.want(named.repository.Digest(named.platforms[0]).String(), "NotInGit")
	s.pass(6 * time.Second)
	s.want(other.at(), "+")
	// But while something uses it, its Pods may restart.
	sources := policy.Sources{TrustedRoots: [][]byte{s.root}, ClusterImagePolicies: []policy.Document{imagePolicy("release", keyless(workflow))}}
	sources.ReleasePolicies = []policy.Document{releasePolicy("platform", rules+"  gitOnly: true\n"+fmt.Sprintf("status: {previous: [{repository: omnivision-worker, digest: %q, lastNamed: \"2026-11-01T00:00:00Z\"}]}\n", named.digest))}
	s.compile(sources)
	s.want(named.at(), "+")
}

func TestSignatureWithoutARepositoryDoesNotServeARelease(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.5.0")
	attestation := strings.Replace(keyless(workflow), "authorities: [{", "authorities: [{attestations: [{name: p, predicateType: \"https://slsa.dev/provenance/v1\"}], ", 1)
	s.use(attestation, rules)
	s.want(of.at(), "+") // the attestation is there, and a signature for this repository too
	// Elsewhere the attestation alone would do, being about the digest.
	copied := s.copy(of, "omnivision-copy")
	s.want(copied.at(), "Unsigned: for the repository")
	s.use(attestation)
	s.want(copied.at(), "+")
	s.use(strings.Replace(attestation, "provenance/v1", "provenance/v7", 1))
	s.want(copied.at(), "NoAttestation: provenance/v7")
}

func TestWarnModeAdmitsAndSaysWhatItWouldRefuse(t *testing.T) {
	s := newSite(t)
	of := s.push("omnivision-worker", "1")
	s.use(keyless(workflow)+"  mode: warn\n", "  mode: warn\n"+rules+"  floors: [{repository: omnivision-worker, version: 1.0.0}]\n")
	v := s.want(of.at(), "+")
	var reasons []string
	for _, w := range v.Warnings {
		reasons = append(reasons, string(w.Reason))
	}
	if got := strings.Join(reasons, " "); got != "Unsigned BelowFloor NoScan" {
		t.Errorf("the warnings are %s", got)
	}
	// Enforcing one of them refuses.
	s.use(keyless(workflow), "  mode: warn\n"+rules)
	s.want(of.at(), "Unsigned")
}

func TestEveryPolicyThatMatchesMustBeSatisfied(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.5.0")
	sources := policy.Sources{TrustedRoots: [][]byte{s.root}, ClusterImagePolicies: []policy.Document{imagePolicy("a", keyless(workflow)), imagePolicy("b", keyless(evil))}}
	s.compile(sources)
	v := s.want(of.at(), "WrongIdentity")
	if len(v.Denials) != 1 || v.Denials[0].Policy != "b" {
		t.Errorf("the denials are %+v", v.Denials)
	}
	// Of one policy's authorities any does.
	both := strings.Replace(keyless(workflow), "authorities: [", "authorities: [{static: {action: fail}}, ", 1)
	s.use(both, rules)
	s.want(of.at(), "+")
}

func TestNoPolicyAndBadPolicyRefuse(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.5.0")
	s.use("", rules)
	s.want(of.at(), "NoMatchingPolicy")
	s.use(keyless(workflow)+"  surprise: true\n", rules)
	s.want(of.at(), "BadPolicy: surprise")
	s.use(keyless(workflow), rules+"  surprise: true\n")
	s.want(of.at(), "BadPolicy: surprise")
	s.use("  images: [{glob: \"**\"}]\n  authorities: [{static: {action: fail, message: no such thing}}]\n")
	s.want(of.at(), "PolicyFails: no such thing")
	before := s.registry.requests.Load()
	s.use("  images: [{glob: \"**\"}]\n  authorities: [{static: {action: pass}}]\n")
	s.want(of.at(), "+")
	if s.registry.requests.Load() != before {
		t.Error("the registry was asked although nobody need sign")
	}
	s.judge = New(Options{Registry: anonymous{}})
	s.want(of.at(), "BadPolicy: has not read")
}

// What a policy change leaves true is not asked again; what it changes is.
func TestPolicyChangeCountsAtOnce(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.5.0")
	s.want(of.at(), "+verified")
	s.use(keyless(evil), rules)
	s.want(of.at(), "WrongIdentity")
	s.use(keyless(workflow), rules)
	s.want(of.at(), "+cache")
	s.use(keyless(workflow), strings.Replace(rules, "720h", "30m", 1))
	s.want(of.at(), "StaleScan")
	s.root = signtest.NewSigstore(t).TrustedRoot(t)
	s.use(keyless(workflow), rules)
	s.want(of.at(), "WrongIdentity")
}

func TestExceptionLetsAFindingPassForATime(t *testing.T) {
	s := newSite(t)
	of := s.push("omnivision-worker", "1")
	s.sign(s.keyless(workflow), of, "1.4.0", vulnerable, s.now.Add(-time.Hour))
	until := s.now.UTC().Format(time.DateOnly)
	s.use(keyless(workflow), strings.Replace(rules, "720h", "720h, exceptions: [{id: CVE-2026-1, package: x, app: omnivision-worker, reason: unreachable, expires: \""+until+"\"}]", 1))
	s.want(of.at(), "+")
	s.pass(25 * time.Hour)
	s.want(of.at(), "VulnerableScan")
}

func TestScanGrowsOldInTheCache(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.want(of.at(), "+verified")
	s.registry.dead.Store(true)
	s.pass(721 * time.Hour)
	s.want(of.at(), "RegistryUnavailable")
}

func TestRegistryOutageStopsOnlyWhatIsUnknown(t *testing.T) {
	s, store := newSite(t), &memory{}
	s.restart(store)
	known, unknown := s.release("omnivision-worker", "1.4.0"), s.release("omnivision-worker", "1.5.0")
	s.want(known.at(), "+verified")
	check(t, s.judge.Save(t.Context()))
	s.registry.dead.Store(true)
	s.want(known.at(), "+cache")
	s.pass(2 * time.Hour)
	s.want(known.at(), "+stale")
	s.want(unknown.at(), "RegistryUnavailable: has not admitted the digest before")
	// A gate that starts now knows it from the store.
	s.restart(store)
	s.want(known.at(), "+stale")
	s.want(unknown.at(), "RegistryUnavailable")
	s.want(known.repository.Tag("1.4.0").String(), "RegistryUnavailable: name the digest")
	s.want(known.repository.Tag("1.4.0").String()+"@"+known.digest, "+stale")
	// Not under other demands, nor against today's lists.
	s.use(keyless(evil), rules)
	s.want(known.at(), "RegistryUnavailable")
	s.use(keyless(workflow), rules, "  floors: [{repository: omnivision-worker, version: 2.0.0}]\n")
	s.want(known.at(), "RegistryUnavailable")
	// The registry comes back.
	s.use(keyless(workflow), rules)
	s.registry.dead.Store(false)
	s.pass(6 * time.Second)
	s.want(known.at(), "+verified")
	s.want(unknown.at(), "+verified")
}

// An outage costs one Pod the wait, not each.
func TestFailureIsRememberedForSeconds(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.registry.dead.Store(true)
	s.want(of.at(), "RegistryUnavailable")
	before := s.registry.requests.Load()
	s.want(of.at(), "RegistryUnavailable")
	if s.registry.requests.Load() != before {
		t.Error("it was asked again at once")
	}
	s.registry.dead.Store(false)
	s.pass(6 * time.Second)
	s.want(of.at(), "+verified")
}

func TestSignatureThatComesLaterIsSeenWithinSeconds(t *testing.T) {
	s := newSite(t)
	of := s.push("omnivision-worker", "1.4.0")
	s.want(of.at(), "Unsigned")
	s.sign(s.keyless(workflow), of, "1.4.0", clean, s.now.Add(-time.Hour))
	s.want(of.at(), "Unsigned")
	s.pass(6 * time.Second)
	s.want(of.at(), "+verified")
}

// answer makes the registry answer some requests otherwise.
func (s *site) answer(change func(w http.ResponseWriter, r *http.Request) bool) {
	s.registry.change.Store(&change)
}

func TestTamperedManifestIsRefused(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/manifests/"+of.digest) {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[]}`))
		return true
	})
	s.want(of.at(), "Tampered")
}

func TestTamperedBundleIsRefused(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1000))
		return true
	})
	if v := s.ask(of.at()); v.Allowed {
		t.Errorf("it is admitted: %s", show(v))
	}
}

func TestRegistryThatForbidsIsNoOutage(t *testing.T) {
	s, store := newSite(t), &memory{}
	s.restart(store)
	of := s.release("omnivision-worker", "1.4.0")
	s.want(of.at(), "+verified")
	check(t, s.judge.Save(t.Context()))
	s.restart(store)
	s.answer(func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, `{"errors":[{"code":"DENIED"}]}`, http.StatusForbidden)
		return true
	})
	s.want(of.at(), "RegistryDenied: imagePullSecrets")
}

func TestManyPodsWithOneNewDigestCauseOneVerification(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.registry.reads.Clear()
	release := make(chan struct{})
	s.answer(func(w http.ResponseWriter, r *http.Request) bool { <-release; return false })
	const pods = 500
	var asked, done sync.WaitGroup
	var shared, verified atomic.Int64
	asked.Add(pods)
	for range pods {
		done.Go(func() {
			asked.Done()
			switch v := s.ask(of.at()); {
			case !v.Allowed:
				t.Errorf("refused: %s", show(v))
			case v.Source == gate.FromVerified:
				verified.Add(1)
			default:
				shared.Add(1)
			}
		})
	}
	asked.Wait()
	close(release)
	done.Wait()
	if verified.Load() != 1 || shared.Load() != pods-1 || s.judge.Verifications() != 1 {
		t.Errorf("%d verified, %d shared or cached, %d verifications", verified.Load(), shared.Load(), s.judge.Verifications())
	}
	s.registry.reads.Range(func(path, count any) bool {
		if n := count.(*atomic.Int64).Load(); n > 1 {
			t.Errorf("%s was read %d times", path, n)
		}
		return true
	})
}

// Who gives up does not take the others with him, and the answer is kept.
func TestDeadlineRefusesAndTheVerificationGoesOn(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	release := make(chan struct{})
	s.answer(func(w http.ResponseWriter, r *http.Request) bool { <-release; return false })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := s.judge.Judge(ctx, gate.Image{Reference: of.at()})
	if v.Allowed || v.Denials[0].Reason != gate.Deadline {
		t.Errorf("it is %s", show(v))
	}
	waiting := make(chan gate.Verdict)
	go func() { waiting <- s.ask(of.at()) }()
	close(release)
	if v := <-waiting; !v.Allowed {
		t.Errorf("the other one is refused: %s", show(v))
	}
	if s.judge.Verifications() != 1 {
		t.Errorf("there were %d verifications", s.judge.Verifications())
	}
}

func TestOldProofIsUsedWhileItIsRenewed(t *testing.T) {
	s := newSite(t)
	of := s.release("omnivision-worker", "1.4.0")
	s.want(of.at(), "+verified")
	s.pass(11 * time.Minute)
	s.want(of.at(), "+cache")
	s.judge.proofs.idle(t)
	if s.judge.Verifications() != 2 {
		t.Errorf("there were %d verifications", s.judge.Verifications())
	}
	s.registry.dead.Store(true)
	s.pass(11 * time.Minute)
	s.want(of.at(), "+cache")
	s.judge.proofs.idle(t)
	s.want(of.at(), "+stale")
}

// idle waits until no call goes on.
func (f *flights[T]) idle(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	var going []*flight[T]
	for _, one := range f.going {
		going = append(going, one)
	}
	f.mu.Unlock()
	for _, one := range going {
		_, _ = one.wait(t.Context())
	}
}

func TestPlainImageIsNoIndex(t *testing.T) {
	s := newSite(t)
	one, err := random.Image(20, 1)
	check(t, err)
	repository := s.repository("third/party")
	check(t, remote.Write(repository.Tag("1"), one))
	s.want(repository.Tag("1").String(), "Unsigned")
}

// memory is a Store.
type memory struct{ kept []Admission }

func (m *memory) Load(context.Context) ([]Admission, error) { return m.kept, nil }
func (m *memory) Save(_ context.Context, fresh []Admission) error {
	m.kept = append(m.kept, fresh...)
	return nil
}
