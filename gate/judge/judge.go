// Package judge decides whether a cluster may run an image, and answers fast.
//
// What was proven of a digest is kept, by digest, repository and what the policies demand; the verdict is
// made of it with the policies of the moment. So a digest is verified once, however many
// Pods ask, and an entry in the quarantine counts at once. While the registry is away,
// digests that this cluster admitted before under the same demands go on (P26); of others
// nothing is known, and they are refused.
//
// It fails closed: without policies, without an answer in time and on any error an image
// is refused.
package judge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"k8s.io/utils/lru"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
	"github.com/omnivision/omnivision/gate/verify"
)

// Registry gives the options of requests for an image: its credentials and a transport.
type Registry interface {
	Options(ctx context.Context, image gate.Image) ([]remote.Option, error)
}

// Options are those of a Judge. Zero values are those of production.
type Options struct {
	Registry Registry
	// Store keeps what was admitted across restarts; nil forgets it.
	Store Store
	// Deadline is how long Judge may take. It is below the webhook's timeout, so that a
	// refusal can say why. Zero is eight seconds.
	Deadline time.Duration
	// Verification is how long one may go on although nobody waits for it any more. Zero is
	// 20 seconds.
	Verification time.Duration
	// Fresh is how long what was proven is used without asking again; after that it is still used
	// while somebody asks. Zero is ten minutes.
	Fresh time.Duration
	// Expire is how long what was proven is used before it has been asked again. Zero is an hour.
	Expire time.Duration
	// Negative is how long a refusal or a failure counts: a signature may come any moment.
	// Zero is five seconds.
	Negative time.Duration
	// Tag is how long a tag is believed to name the same digest. Zero is five seconds.
	Tag time.Duration
	// Size bounds how many digests are kept. Zero is 4,096.
	Size int
	// Flush is how often admissions are saved. Zero is ten seconds.
	Flush time.Duration
	// Report is told of what goes wrong beside a verdict; nil keeps silent.
	Report func(error)
	Now    func() time.Time
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
	}{
		{&o.Deadline, 8 * time.Second}, {&o.Verification, 20 * time.Second}, {&o.Fresh, 10 * time.Minute}, {&o.Expire, time.Hour},
		{&o.Negative, 5 * time.Second}, {&o.Tag, 5 * time.Second}, {&o.Flush, 10 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if o.Size == 0 {
		o.Size = 4096
	}
	if o.Report == nil {
		o.Report = func(error) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Judge implements gate.Judge.
type Judge struct {
	options  Options
	policies atomic.Pointer[policy.Set]

	targets  *lru.Cache // by reference as written: target
	proven   *lru.Cache // by key: *entry
	failures *lru.Cache // by flight's key: failure
	tags     *lru.Cache // by flight's key: tagged

	proofs   flights[*verify.Facts]
	resolves flights[string]
	admitted *admissions

	verifications atomic.Int64
}

var _ gate.Knower = (*Judge)(nil)

// New returns a Judge that refuses everything until it is given policies.
func New(options Options) *Judge {
	o := options.withDefaults()
	return &Judge{
		options: o, targets: lru.New(o.Size), proven: lru.New(o.Size), failures: lru.New(o.Size), tags: lru.New(o.Size),
		admitted: newAdmissions(o.Size),
	}
}

// Use makes these the policies from now on. What was proven stays true for those demands
// that did not change.
func (j *Judge) Use(set *policy.Set) { j.policies.Store(set) }

// Verifications is how many were begun, for a metric.
func (j *Judge) Verifications() int64 { return j.verifications.Load() }

// target is what a reference says.
type target struct {
	ref        name.Reference
	repository string
	digest     string // empty: only a tag is named
}

// key is what something was proven of: a digest in a repository, for what policies demand.
type key struct{ repository, digest, match string }

// entry is what was proven, and the last verdict that was made of it.
type entry struct {
	facts *verify.Facts
	since time.Time
	last  atomic.Pointer[made]
	asked atomic.Bool // somebody asks again already
	stale atomic.Bool // asking again failed
}

// made is a verdict as of a moment.
type made struct {
	set     *policy.Set
	match   *policy.Match
	until   time.Time
	verdict gate.Verdict
}

// remake is how long a verdict is used before it is made anew from the same facts: scans age.
const remake = 30 * time.Second

// Judge decides about an image.
func (j *Judge) Judge(ctx context.Context, image gate.Image) gate.Verdict {
	set := j.policies.Load()
	if set == nil {
		return refuse(image, "", nil, gate.BadPolicy, "the gate has not read the cluster's policies yet; try again")
	}
	target, err := j.target(image.Reference)
	if err != nil {
		return refuse(image, "", nil, gate.Unresolvable, err.Error())
	}
	match := set.Match(image.Reference, target.ref, image.PodLabels)
	digest := target.digest
	if digest == "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, j.options.Deadline)
		defer cancel()
		if digest, err = j.resolve(ctx, target, image); err != nil {
			return j.failed(set, match, image, target, "", err)
		}
	}
	if verdict, ok := j.fromCache(set, match, image, target, digest); ok {
		return verdict
	}
	return j.fromRegistry(ctx, set, match, image, target, digest)
}

// Known is Judge for what is in memory. It asks nobody, though it may have somebody else ask again.
func (j *Judge) Known(image gate.Image) (gate.Verdict, bool) {
	set := j.policies.Load()
	known, ok := j.targets.Get(image.Reference)
	if set == nil || !ok {
		return gate.Verdict{}, false
	}
	target := known.(target)
	digest := target.digest
	if digest == "" {
		if digest, ok = j.knownTag(tagKey(target, image)); !ok {
			return gate.Verdict{}, false
		}
	}
	return j.fromCache(set, set.Match(image.Reference, target.ref, image.PodLabels), image, target, digest)
}

func refuse(image gate.Image, digest string, match *policy.Match, reason gate.Reason, message string) gate.Verdict {
	verdict := gate.Verdict{Image: image.Reference, Digest: digest, Denials: []gate.Denial{{Reason: reason, Message: strings.Join(strings.Fields(message), " "), Next: "omnivision verify " + image.Reference}}, Source: gate.FromVerified}
	if match != nil {
		verdict.Policies = match.Names
	}
	return verdict
}

// target reads a reference once.
func (j *Judge) target(written string) (target, error) {
	if known, ok := j.targets.Get(written); ok {
		return known.(target), nil
	}
	ref, err := name.ParseReference(written, name.WeakValidation)
	if err != nil {
		return target{}, fmt.Errorf("it is no reference to an image: %w", err)
	}
	t := target{ref: ref, repository: ref.Context().Name()}
	if digest, ok := ref.(name.Digest); ok {
		if !strings.HasPrefix(digest.DigestStr(), "sha256:") {
			return target{}, fmt.Errorf("its digest is not sha256:…")
		}
		t.digest = digest.DigestStr()
	}
	j.targets.Add(written, t)
	return t, nil
}

// fromCache answers from what is known. It asks nobody, though it may have somebody else ask again.
func (j *Judge) fromCache(set *policy.Set, match *policy.Match, image gate.Image, target target, digest string) (gate.Verdict, bool) {
	known, ok := j.proven.Get(key{target.repository, digest, match.Key})
	if !ok {
		return gate.Verdict{}, false
	}
	e, now := known.(*entry), j.options.Now()
	verdict := e.verdict(set, match, now)
	verdict.Image, verdict.Source = image.Reference, gate.FromCache
	age := now.Sub(e.since)
	switch {
	case takenBack(verdict): // which no answer of the registry changes
	case !verdict.Allowed && age >= j.options.Negative, age >= j.options.Expire && !e.stale.Load():
		return gate.Verdict{}, false
	case age >= j.options.Fresh, len(verdict.Warnings) > 0 && age >= j.options.Negative:
		j.askAgain(e, set, match, image, target, digest)
	}
	if e.stale.Load() {
		verdict.Source = gate.FromStale
	}
	return verdict, true
}

// takenBack reports whether the quarantine refuses; it is looked at first.
func takenBack(verdict gate.Verdict) bool {
	return len(verdict.Denials) > 0 && verdict.Denials[0].Reason == gate.Quarantined
}

func (e *entry) verdict(set *policy.Set, match *policy.Match, now time.Time) gate.Verdict {
	if last := e.last.Load(); last != nil && last.set == set && last.match == match && now.Before(last.until) {
		return last.verdict
	}
	verdict := decide(set, match, e.facts, now)
	e.last.Store(&made{set, match, now.Add(remake), verdict})
	return verdict
}

// askAgain proves what is known anew, while it is still used.
func (j *Judge) askAgain(e *entry, set *policy.Set, match *policy.Match, image gate.Image, target target, digest string) {
	if _, failing := j.failure(flightKey(target, digest, match, image)); failing || !e.asked.CompareAndSwap(false, true) {
		return
	}
	_, _ = j.prove(set, match, image, target, digest)
}

// fromRegistry verifies a digest, or waits for whoever does.
func (j *Judge) fromRegistry(ctx context.Context, set *policy.Set, match *policy.Match, image gate.Image, target target, digest string) gate.Verdict {
	if verdict, ok := j.withoutAsking(set, match, image, target, digest); ok {
		return verdict
	}
	if err, failing := j.failure(flightKey(target, digest, match, image)); failing {
		return j.failed(set, match, image, target, digest, err)
	}
	ctx, cancel := context.WithTimeout(ctx, j.options.Deadline)
	defer cancel()
	flight, shared := j.prove(set, match, image, target, digest)
	facts, err := flight.wait(ctx)
	if err != nil {
		return j.failed(set, match, image, target, digest, err)
	}
	verdict := decide(set, match, facts, j.options.Now())
	verdict.Image, verdict.Source = image.Reference, gate.FromVerified
	if shared {
		verdict.Source = gate.FromShared
	}
	return verdict
}

// withoutAsking decides where no answer of the registry matters: nobody need sign, or the
// digest is in the quarantine.
func (j *Judge) withoutAsking(set *policy.Set, match *policy.Match, image gate.Image, target target, digest string) (gate.Verdict, bool) {
	facts, decided := verify.Unasked(target.repository, digest, match)
	q, quarantined := set.Quarantined(target.repository, digest, nil)
	if !decided && (!quarantined || q.Warn) {
		return gate.Verdict{}, false
	}
	if !decided {
		facts = &verify.Facts{Repository: target.repository, Digest: digest}
	}
	verdict := decide(set, match, facts, j.options.Now())
	if quarantined && !q.Warn {
		verdict.Denials = verdict.Denials[:1] // what else may be missing was not looked at
	}
	verdict.Image, verdict.Source = image.Reference, gate.FromCache
	return verdict, true
}

// prove starts a verification or finds the one that goes on. It does not end with whoever asked first.
func (j *Judge) prove(set *policy.Set, match *policy.Match, image gate.Image, target target, digest string) (*flight[*verify.Facts], bool) {
	return j.proofs.join(flightKey(target, digest, match, image), func() (*verify.Facts, error) {
		ctx, cancel := context.WithTimeout(context.Background(), j.options.Verification)
		defer cancel()
		facts, err := j.ask(ctx, set, match, image, target, digest)
		j.note(flightKey(target, digest, match, image), key{target.repository, digest, match.Key}, facts, err)
		if err == nil && decide(set, match, facts, j.options.Now()).Allowed {
			j.admitted.add(facts, j.options.Now())
		}
		return facts, err
	})
}

func (j *Judge) ask(ctx context.Context, set *policy.Set, match *policy.Match, image gate.Image, target target, digest string) (facts *verify.Facts, err error) {
	defer func() {
		if r := recover(); r != nil { // a library's; the image is refused, the gate goes on
			facts, err = nil, fmt.Errorf("verifying failed: %v", r)
		}
	}()
	j.verifications.Add(1)
	options, err := j.options.Registry.Options(ctx, image)
	if err != nil {
		return nil, err
	}
	puller, err := remote.NewPuller(options...)
	if err != nil {
		return nil, err
	}
	options = append(options, remote.Reuse(puller))
	var named []string
	if slices.ContainsFunc(match.Releases, func(p *policy.ReleasePolicy) bool { return p.Spec.GitOnly }) {
		named = set.AdmittedIn(target.repository)
	}
	return verify.Prove(ctx, target.ref.Context().Digest(digest), match, named, options)
}

// note keeps what a verification gave.
func (j *Judge) note(flight string, of key, facts *verify.Facts, err error) {
	now := j.options.Now()
	if err == nil {
		j.proven.Add(of, &entry{facts: facts, since: now})
		j.failures.Remove(flight)
		return
	}
	j.failures.Add(flight, failure{err, now.Add(j.options.Negative)})
	if known, ok := j.proven.Get(of); ok {
		e := known.(*entry)
		e.asked.Store(false)
		e.stale.Store(unavailable(verify.Reason(err)))
	}
}

// failure is an error that counts for a while, so that an outage does not cost each Pod a
// whole deadline.
type failure struct {
	err   error
	until time.Time
}

func (j *Judge) failure(flight string) (error, bool) {
	known, ok := j.failures.Get(flight)
	if !ok || !j.options.Now().Before(known.(failure).until) {
		return nil, false
	}
	return known.(failure).err, true
}

func unavailable(reason gate.Reason) bool {
	return reason == gate.RegistryUnavailable || reason == gate.Deadline
}

// failed decides when the registry did not answer: for what this cluster admitted before
// under the same demands, and only as far as today's policies admit it.
func (j *Judge) failed(set *policy.Set, match *policy.Match, image gate.Image, target target, digest string, err error) gate.Verdict {
	reason := verify.Reason(err)
	if errors.Is(err, errWaited) {
		reason = gate.Deadline
	}
	if digest != "" && unavailable(reason) {
		if facts, ok := j.admitted.find(key{target.repository, digest, match.Key}); ok {
			if verdict := decide(set, match, facts, j.options.Now()); verdict.Allowed || takenBack(verdict) {
				verdict.Image, verdict.Source = image.Reference, gate.FromStale
				return verdict
			}
		}
	}
	return refuse(image, digest, match, reason, explain(reason, digest)+err.Error())
}

// explain begins the message of a failure.
func explain(reason gate.Reason, digest string) string {
	if unavailable(reason) && digest == "" {
		return "the registry does not answer, so it is not known what the tag names; name the digest: "
	}
	switch reason {
	case gate.RegistryUnavailable:
		return "the registry does not answer, and this cluster has not admitted the digest before: "
	case gate.RegistryDenied:
		return "the registry does not let the gate read it; check the Pod's imagePullSecrets and the gate's cloud identity: "
	case gate.Tampered:
		return "what the registry sent is not what its digest says: "
	}
	return ""
}

// flightKey is a verification's: those with other credentials may end otherwise.
func flightKey(target target, digest string, match *policy.Match, image gate.Image) string {
	return strings.Join([]string{target.repository, digest, match.Key, credentials(image)}, "\x00")
}

func credentials(image gate.Image) string {
	if len(image.PullSecrets) == 0 {
		return ""
	}
	secrets := slices.Clone(image.PullSecrets)
	slices.Sort(secrets)
	return image.Namespace + "/" + strings.Join(secrets, ",")
}

// tagged is what a tag named.
type tagged struct {
	digest string
	until  time.Time
}

func tagKey(target target, image gate.Image) string {
	return target.ref.Name() + "\x00" + credentials(image)
}

func (j *Judge) knownTag(at string) (digest string, ok bool) {
	if known, ok := j.tags.Get(at); ok && j.options.Now().Before(known.(tagged).until) {
		return known.(tagged).digest, true
	}
	return "", false
}

// resolve says which digest a tag names, as of some seconds ago at most.
func (j *Judge) resolve(ctx context.Context, target target, image gate.Image) (string, error) {
	at := tagKey(target, image)
	if digest, ok := j.knownTag(at); ok {
		return digest, nil
	}
	if err, failing := j.failure(at); failing {
		return "", err
	}
	flight, _ := j.resolves.join(at, func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), j.options.Verification)
		defer cancel()
		digest, err := j.head(ctx, target, image)
		if err != nil {
			j.failures.Add(at, failure{err, j.options.Now().Add(j.options.Negative)})
			return "", err
		}
		j.tags.Add(at, tagged{digest, j.options.Now().Add(j.options.Tag)})
		return digest, nil
	})
	return flight.wait(ctx)
}

func (j *Judge) head(ctx context.Context, target target, image gate.Image) (string, error) {
	options, err := j.options.Registry.Options(ctx, image)
	if err != nil {
		return "", err
	}
	desc, err := remote.Head(target.ref, append(options, remote.WithContext(ctx))...)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", target.ref, err)
	}
	if desc.Digest.Algorithm != "sha256" {
		return "", fmt.Errorf("resolving %s: its digest is %s, not sha256:…", target.ref, desc.Digest)
	}
	return desc.Digest.String(), nil
}

// flights are calls that go on, one for each key.
type flights[T any] struct {
	mu    sync.Mutex
	going map[string]*flight[T]
}

// flight is a call that many wait for. It goes on when they give up.
type flight[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// errWaited says that an answer did not come in time.
var errWaited = errors.New("not decided in time")

// join finds the call of a key or starts one; shared says which.
func (f *flights[T]) join(key string, call func() (T, error)) (_ *flight[T], shared bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.going[key]; ok {
		return known, true
	}
	if f.going == nil {
		f.going = map[string]*flight[T]{}
	}
	started := &flight[T]{done: make(chan struct{})}
	f.going[key] = started
	go func() {
		started.value, started.err = call()
		f.mu.Lock()
		delete(f.going, key)
		f.mu.Unlock()
		close(started.done)
	}()
	return started, false
}

func (f *flight[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%w: %w; the verification goes on, so try again", errWaited, ctx.Err())
	}
}
