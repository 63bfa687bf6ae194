// Package policy reads the policies of a cluster and says which of them are for an image.
//
// They are sigstore's ClusterImagePolicies, of which a documented part is supported, and
// ReleasePolicies. A Set is compiled from all of them whenever one changes, and is never
// changed itself. What cannot be used as it is written is told on the policy's status, and
// refuses the images that it is for: a field that the gate does not know might be the one
// that matters.
package policy

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/policy-controller/pkg/apis/glob"
	"github.com/sigstore/policy-controller/pkg/apis/signaturealgo"
	"github.com/sigstore/sigstore-go/pkg/root"
	sigstore "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/omnivision/omnivision/apis/v1alpha1"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// Document is a policy as the cluster has it.
type Document struct {
	Name string
	Raw  []byte // JSON or YAML
}

// Sources are everything that a Set is made of.
type Sources struct {
	ClusterImagePolicies []Document
	ReleasePolicies      []Document
	// TrustedRoots are trusted_root.json files. A keyless signature counts if one of them
	// proves it.
	TrustedRoots [][]byte
	// Secret returns the data of a Secret in the gate's namespace, for keys; nil is none.
	Secret func(name string) (map[string][]byte, error)
	// Namespace is the gate's, which a secretRef may name.
	Namespace string
}

// Status is what there is to say of a policy: it is used as it is written if Err is nil.
type Status struct {
	Kind, Name string
	Err        error
	Warnings   []string
}

// Set is the policies of a cluster at one moment. It is safe for concurrent use.
type Set struct {
	images   []*ImagePolicy
	releases []*ReleasePolicy
	statuses []Status

	floors     []Floor
	admitted   map[string][]string // repositories, whole or their ends, by digest
	quarantine []quarantined

	matches sync.Map // by reference as written: *Match, of policies without a selector
	kept    atomic.Int64
	labels  bool // some policy looks at labels
}

// ImagePolicy is a ClusterImagePolicy, ready for use.
type ImagePolicy struct {
	Name        string
	Warn        bool
	Authorities []Signer
	Err         error // why it cannot be used

	id       string
	globs    []*regexp.Regexp // nil, not empty: every image
	selector []labels.Selector
}

// Signer is one authority.
type Signer struct {
	Name   string
	Static string // pass, fail or empty
	Say    string // the message of static: fail
	Format string // legacy, bundle or empty

	// Trusts prove that a signature is valid: any of them.
	Trusts     []verify.Trust
	TrustID    string // the same for signers that trust the same
	Key        bool
	Identities []sigstore.CertificateIdentity
	// Predicates are the types of the attestations that must be there.
	Predicates []string
}

// ReleasePolicy is one of ours, ready for use.
type ReleasePolicy struct {
	Name string
	Warn bool
	Spec v1alpha1.ReleasePolicySpec
	Err  error

	globs []*regexp.Regexp
}

type quarantined struct {
	v1alpha1.Quarantined
	policy string
	warn   bool
}

// Compile makes a Set. What is wrong with a policy is in its status and refuses its images;
// an error is one that leaves nothing to decide by.
func Compile(sources Sources) (*Set, error) {
	roots, err := parseRoots(sources.TrustedRoots)
	if err != nil {
		return nil, err
	}
	compiler := compiler{sources, roots}
	set := &Set{admitted: map[string][]string{}}
	for _, document := range sources.ClusterImagePolicies {
		set.addImagePolicy(compiler, document)
	}
	for _, document := range sources.ReleasePolicies {
		set.addReleasePolicy(document)
	}
	slices.SortFunc(set.images, func(a, b *ImagePolicy) int { return strings.Compare(a.Name, b.Name) })
	return set, nil
}

type trustedRoot struct {
	*root.TrustedRoot
	id string
}

func parseRoots(files [][]byte) ([]trustedRoot, error) {
	var roots []trustedRoot
	for i, file := range files {
		parsed, err := root.NewTrustedRootFromJSON(file)
		if err != nil {
			return nil, fmt.Errorf("reading trusted root %d of %d: %w; give the gate the trusted_root.json of the Sigstore that signs", i+1, len(files), err)
		}
		roots = append(roots, trustedRoot{parsed, hash(file)})
	}
	return roots, nil
}

// Statuses are those of all policies, for their status fields.
func (s *Set) Statuses() []Status { return s.statuses }

// Usable is an error unless every policy is used as it is written.
func (s *Set) Usable() error {
	var all []error
	for _, status := range s.statuses {
		if status.Err != nil {
			all = append(all, fmt.Errorf("%s %s: %w", status.Kind, status.Name, status.Err))
		}
	}
	return errors.Join(all...)
}

func (s *Set) addImagePolicy(c compiler, document Document) {
	decoded, err := DecodeClusterImagePolicy(document.Raw)
	warnings, wrong := decoded.Check()
	compiled := &ImagePolicy{Name: document.Name, Warn: decoded.Spec.Mode == "warn", Err: err}
	if err == nil {
		compiled.Err = wrong
	}
	for i := 0; compiled.Err == nil && i < len(decoded.Spec.Authorities); i++ {
		var signer Signer
		signer, compiled.Err = c.signer(decoded.Spec.Authorities[i], i)
		compiled.Authorities = append(compiled.Authorities, signer)
	}
	compiled.globs = globsOf(decoded.Spec.Images, func(p ImagePattern) string { return p.Glob })
	if compiled.Err == nil {
		compiled.selector, compiled.Err = selectors(decoded.Spec.Match)
	}
	compiled.id = compiled.identify(document.Raw)
	s.labels = s.labels || len(compiled.selector) > 0
	s.images = append(s.images, compiled)
	s.statuses = append(s.statuses, Status{Kind: ClusterImagePolicyKind, Name: document.Name, Err: compiled.Err, Warnings: warnings})
}

// identify names what a policy demands, trust included: another name, another verdict.
func (p *ImagePolicy) identify(raw []byte) string {
	var spec struct {
		Spec json.RawMessage `json:"spec"`
	}
	if json.Unmarshal(raw, &spec) != nil || spec.Spec == nil {
		spec.Spec = raw
	}
	parts := []string{p.Name, string(spec.Spec)}
	for _, signer := range p.Authorities {
		parts = append(parts, signer.TrustID)
	}
	if p.Err != nil {
		parts = append(parts, p.Err.Error())
	}
	return hash([]byte(strings.Join(parts, "\x00")))
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// globsOf compiles patterns. If one of them is none, the policy may be for any image.
func globsOf[T any](patterns []T, text func(T) string) []*regexp.Regexp {
	globs := []*regexp.Regexp{}
	for _, pattern := range patterns {
		compiled, err := glob.Compile(text(pattern))
		if err != nil {
			return nil
		}
		globs = append(globs, compiled)
	}
	if len(globs) == 0 {
		return nil
	}
	return globs
}

func selectors(matches []MatchResource) ([]labels.Selector, error) {
	var all []labels.Selector
	for i, match := range matches {
		selector := labels.Everything()
		if match.Selector != nil {
			var err error
			if selector, err = metav1.LabelSelectorAsSelector(match.Selector); err != nil {
				return nil, fmt.Errorf("spec.match[%d].selector: %w", i, err)
			}
		}
		all = append(all, selector)
	}
	return all, nil
}

func (s *Set) addReleasePolicy(document Document) {
	decoded, err := v1alpha1.DecodeReleasePolicy(document.Raw)
	if decoded == nil {
		decoded = &v1alpha1.ReleasePolicy{}
	}
	spec := decoded.Spec
	compiled := &ReleasePolicy{Name: document.Name, Warn: spec.Mode == v1alpha1.Warn, Spec: spec, Err: err}
	compiled.globs = globsOf(spec.Images, func(p v1alpha1.ImagePattern) string { return p.Glob })
	s.releases = append(s.releases, compiled)
	for _, f := range spec.Floors {
		s.floors = append(s.floors, Floor{f, document.Name, compiled.Warn})
	}
	// What the status says that Git named is admitted until the status says what became of it.
	for _, d := range slices.Concat(spec.Admitted, decoded.Status.Named) {
		s.admitted[d.Digest] = append(s.admitted[d.Digest], d.Repository)
	}
	for _, d := range decoded.Status.Previous {
		s.admitted[d.Digest] = append(s.admitted[d.Digest], d.Repository)
	}
	for _, q := range spec.Quarantine {
		s.quarantine = append(s.quarantine, quarantined{q, document.Name, compiled.Warn})
	}
	s.statuses = append(s.statuses, Status{Kind: v1alpha1.ReleasePolicyKind, Name: document.Name, Err: err})
}

// compiler turns authorities into signers.
type compiler struct {
	Sources
	roots []trustedRoot
}

func (c compiler) signer(a Authority, index int) (Signer, error) {
	field := fmt.Sprintf("spec.authorities[%d]", index)
	signer := Signer{Name: a.Name, Format: a.SignatureFormat}
	if signer.Name == "" {
		signer.Name = fmt.Sprintf("authority-%d", index)
	}
	for _, attestation := range a.Attestations {
		predicate := attestation.PredicateType
		if whole, short := predicateTypes[predicate]; short {
			predicate = whole
		}
		signer.Predicates = append(signer.Predicates, predicate)
	}
	switch {
	case a.Static != nil:
		signer.Static, signer.Say = a.Static.Action, a.Static.Message
		return signer, nil
	case a.Key != nil:
		return signer, c.trustKey(&signer, a, field)
	}
	return signer, c.trustRoots(&signer, a, field)
}

func (c compiler) trustKey(signer *Signer, a Authority, field string) error {
	pem, err := c.pem(*a.Key)
	if err != nil {
		return fmt.Errorf("%s.key.secretRef: %w", field, err)
	}
	key, err := cryptoutils.UnmarshalPEMToPublicKey(pem)
	if err != nil || key == nil {
		return fmt.Errorf("%s.key: it is no public key in PEM", field)
	}
	algorithm := crypto.SHA256
	if a.Key.HashAlgorithm != "" {
		if algorithm, err = signaturealgo.HashAlgorithm(a.Key.HashAlgorithm); err != nil {
			return fmt.Errorf("%s.key.hashAlgorithm: %w", field, err)
		}
	}
	signer.Key = true
	trust := verify.Trust{Key: key, Hash: algorithm}
	signer.TrustID = "key " + hash(pem) + " " + algorithm.String()
	if a.CTLog == nil {
		signer.Trusts = []verify.Trust{trust}
		return nil
	}
	trust.Logged = true
	for _, r := range c.roots {
		if !knowsLog(r, a.CTLog.URL) {
			continue
		}
		trust.Root = r.TrustedRoot
		signer.Trusts = append(signer.Trusts, trust)
		signer.TrustID += " log " + r.id
	}
	if len(signer.Trusts) == 0 {
		return fmt.Errorf("%s.ctlog: no trusted root of the gate knows this log", field)
	}
	return nil
}

// pem finds a public key: inline, or in the one key of a Secret.
func (c compiler) pem(key Key) ([]byte, error) {
	if key.SecretRef == nil {
		return []byte(key.Data), nil
	}
	ref := key.SecretRef
	if ref.Namespace != "" && ref.Namespace != c.Namespace {
		return nil, fmt.Errorf("the Secret must be in the gate's namespace, %s", c.Namespace)
	}
	if c.Secret == nil {
		return nil, errors.New("the gate was given no Secrets")
	}
	data, err := c.Secret(ref.Name)
	if err != nil {
		return nil, err
	}
	if len(data) != 1 {
		return nil, fmt.Errorf("the Secret %s has %d keys, and must have the public key alone", ref.Name, len(data))
	}
	for _, value := range data {
		return value, nil
	}
	return nil, nil
}

func (c compiler) trustRoots(signer *Signer, a Authority, field string) error {
	for i, identity := range a.Keyless.Identities {
		compiled, err := sigstore.NewShortCertificateIdentity(identity.Issuer, identity.IssuerRegExp, identity.Subject, identity.SubjectRegExp)
		if err != nil {
			return fmt.Errorf("%s.keyless.identities[%d]: %w", field, i, err)
		}
		signer.Identities = append(signer.Identities, compiled)
	}
	logURL := ""
	if a.CTLog != nil {
		logURL = a.CTLog.URL
	}
	for _, r := range c.roots {
		limited, ok := limit(r, a.Keyless.URL)
		if !ok || a.CTLog != nil && !knowsLog(r, logURL) || a.Timestamp != nil && len(r.TimestampingAuthorities()) == 0 {
			continue
		}
		signer.Trusts = append(signer.Trusts, verify.Trust{Root: limited, IgnoreSCT: a.Keyless.InsecureIgnoreSCT})
		signer.TrustID += "root " + r.id + " "
	}
	signer.TrustID += fmt.Sprintf("%s %t", a.Keyless.URL, a.Keyless.InsecureIgnoreSCT)
	if len(signer.Trusts) == 0 {
		return fmt.Errorf("%s.keyless: no trusted root of the gate knows such a certificate authority with such a log; give the gate the trusted_root.json of the Sigstore that signs", field)
	}
	return nil
}

// knowsLog reports whether a root has a transparency log at an address, or any if it is empty.
func knowsLog(r trustedRoot, address string) bool {
	for _, log := range r.RekorLogs() {
		if address == "" || sameAddress(log.BaseURL, address) {
			return true
		}
	}
	return false
}

func sameAddress(a, b string) bool { return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/") }

// limited is a root of which only some certificate authorities count.
type limited struct {
	*root.TrustedRoot
	authorities []root.CertificateAuthority
}

func (l limited) FulcioCertificateAuthorities() []root.CertificateAuthority { return l.authorities }

func limit(r trustedRoot, address string) (root.TrustedMaterial, bool) {
	if address == "" {
		return r.TrustedRoot, len(r.FulcioCertificateAuthorities()) > 0
	}
	out := limited{TrustedRoot: r.TrustedRoot}
	for _, authority := range r.FulcioCertificateAuthorities() {
		if fulcio, ok := authority.(*root.FulcioCertificateAuthority); ok && sameAddress(fulcio.URI, address) {
			out.authorities = append(out.authorities, authority)
		}
	}
	return out, len(out.authorities) > 0
}

// Match is the policies that are for an image. It is not to be changed.
type Match struct {
	Images   []*ImagePolicy
	Releases []*ReleasePolicy
	// Names are those of the policies, for a verdict.
	Names []string
	// Key names what the ClusterImagePolicies among them demand, trust included. What was
	// proven of a digest under a key stays true under it.
	Key string
}

// maxMatches bounds what is remembered.
const maxMatches = 10_000

// Match finds the policies for an image as a Pod names it. ref is what written says.
func (s *Set) Match(written string, ref name.Reference, podLabels map[string]string) *Match {
	if !s.labels {
		if known, ok := s.matches.Load(written); ok {
			return known.(*Match)
		}
	}
	found := &Match{}
	var ids []string
	full := ref.Name()
	for _, p := range s.images {
		if covers(p.globs, full, written) && selected(p.selector, podLabels) {
			found.Images = append(found.Images, p)
			found.Names = append(found.Names, p.Name)
			ids = append(ids, p.id)
		}
	}
	for _, p := range s.releases {
		if len(p.Spec.Images) == 0 && p.Err == nil || !covers(p.globs, full, written) {
			continue
		}
		found.Releases = append(found.Releases, p)
		found.Names = append(found.Names, p.Name)
	}
	found.Key = hash([]byte(strings.Join(ids, " ")))
	if !s.labels && s.kept.Load() < maxMatches {
		if _, known := s.matches.LoadOrStore(written, found); !known {
			s.kept.Add(1)
		}
	}
	return found
}

// covers matches as the policy-controller does: the whole reference, or what is written.
func covers(globs []*regexp.Regexp, full, written string) bool {
	return globs == nil || slices.ContainsFunc(globs, func(g *regexp.Regexp) bool {
		return g.MatchString(full) || g.MatchString(written)
	})
}

func selected(selectors []labels.Selector, podLabels map[string]string) bool {
	return len(selectors) == 0 || slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(podLabels)) })
}
