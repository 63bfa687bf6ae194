package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	sigstore "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/omnivision/omnivision/conveyor/scan"
	conveyor "github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
)

// Facts are what was proven of a digest in a repository, for the policies of a match. They
// are kept across restarts, so they are small, and nothing in them is secret.
type Facts struct {
	Repository string    `json:"repository"`
	Digest     string    `json:"digest"`
	Key        string    `json:"key"` // of the policies' match
	Proven     time.Time `json:"proven"`
	// Images are the digests of an index.
	Images []string `json:"images,omitempty"`
	// Indexes are those of the digests that Git names which hold this one.
	Indexes  []string  `json:"indexes,omitempty"`
	Policies []Finding `json:"policies,omitempty"`
}

// Finding is what was found for one ClusterImagePolicy.
type Finding struct {
	Policy    string      `json:"policy"`
	Warn      bool        `json:"warn,omitempty"`
	Satisfied bool        `json:"satisfied,omitempty"`
	Signed    bool        `json:"signed,omitempty"` // by a signature, not a static authority or an attestation alone
	Named     bool        `json:"named,omitempty"`  // the signature names this repository
	Reason    gate.Reason `json:"reason,omitempty"`
	Message   string      `json:"message,omitempty"`
	// Versions are those that the policy's signers say the image is.
	Versions []string `json:"versions,omitempty"`
	// Scans are the last ones of everything that a node may run of the image.
	Scans []Scan `json:"scans,omitempty"`
}

// Scan is the last scan of one image by a policy's signers.
type Scan struct {
	Digest   string    `json:"digest"`
	Missing  bool      `json:"missing,omitempty"`
	Broken   string    `json:"broken,omitempty"` // why it cannot be read
	Finished time.Time `json:"finished"`
	// Findings are those that stop a release unless an exception covers them.
	Findings []Vulnerability `json:"findings,omitempty"`
	More     int             `json:"more,omitempty"` // findings that are not listed
}

// Vulnerability is one advisory for one package.
type Vulnerability struct {
	ID       string `json:"id"`
	Package  string `json:"package"`
	Severity string `json:"severity"`
}

// maxFindings bounds what is kept of one scan. An image with more is refused whatever is excepted.
const maxFindings = 50

// Prove reads what lies beside a digest and says what it proves for the policies. named
// are the digests that Git names in the repository, which are looked into if the digest
// is none of them. An error is the registry's: nothing is proven.
func Prove(ctx context.Context, image name.Digest, match *policy.Match, named []string, options []remote.Option) (*Facts, error) {
	found, err := collect(ctx, image, options)
	if err != nil {
		return nil, err
	}
	facts := &Facts{Repository: image.Context().Name(), Digest: image.DigestStr(), Key: match.Key, Proven: time.Now().UTC()}
	for _, child := range found.images {
		facts.Images = append(facts.Images, child.image.DigestStr())
	}
	if facts.Indexes, err = holding(ctx, image, named, options); err != nil {
		return nil, err
	}
	prover := prover{statements: map[string]outcome{}}
	for _, p := range match.Images {
		facts.Policies = append(facts.Policies, prover.policy(p, found))
	}
	return facts, nil
}

// Unasked are the facts where nobody need be asked: no policy has an authority who signs.
func Unasked(repository, digest string, match *policy.Match) (*Facts, bool) {
	for _, p := range match.Images {
		if slices.ContainsFunc(p.Authorities, func(s policy.Signer) bool { return s.Static == "" }) {
			return nil, false
		}
	}
	facts := &Facts{Repository: repository, Digest: digest, Key: match.Key, Proven: time.Now().UTC()}
	for _, p := range match.Images {
		facts.Policies = append(facts.Policies, prover{}.policy(p, evidence{}))
	}
	return facts, true
}

// holding are the indexes that hold an image. One that is gone holds nothing.
func holding(ctx context.Context, image name.Digest, named []string, options []remote.Option) ([]string, error) {
	if slices.Contains(named, image.DigestStr()) {
		return nil, nil
	}
	var indexes []string
	for _, digest := range named {
		children, err := images(ctx, image.Context().Digest(digest), options)
		if err != nil && Reason(err) == gate.Unresolvable {
			continue
		}
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(children, func(c name.Digest) bool { return c.DigestStr() == image.DigestStr() }) {
			indexes = append(indexes, digest)
		}
	}
	return indexes, nil
}

// prover verifies each statement once for each trust, however many policies share it.
type prover struct {
	statements map[string]outcome
}

// outcome is what is valid among what lies beside an image, whoever signed it.
type outcome struct {
	valid   []conveyor.Statement
	invalid []error
}

// valid verifies what lies beside an image.
func (p prover) valid(signer policy.Signer, e evidence) outcome {
	key := signer.TrustID + "\x00" + signer.Format + "\x00" + e.image.String()
	if known, ok := p.statements[key]; ok {
		return known
	}
	var all outcome
	add := func(check func(conveyor.Trust) (conveyor.Statement, error)) {
		var why error
		for _, trust := range signer.Trusts {
			statement, err := check(trust)
			if err == nil {
				all.valid = append(all.valid, statement)
				return
			}
			why = err
		}
		all.invalid = append(all.invalid, why)
	}
	if signer.Format != "legacy" {
		for _, bundle := range e.bundles {
			add(func(t conveyor.Trust) (conveyor.Statement, error) { return t.Bundle(bundle, e.image) })
		}
	}
	if signer.Format != "bundle" {
		for _, layer := range e.legacy {
			add(func(t conveyor.Trust) (conveyor.Statement, error) { return t.Legacy(layer, e.image) })
		}
	}
	p.statements[key] = all
	return all
}

// believed are the valid statements that the signer himself made, and those of others.
func (p prover) believed(signer policy.Signer, e evidence) (own, others []conveyor.Statement, invalid []error) {
	all := p.valid(signer, e)
	for _, statement := range all.valid {
		if signer.Key || matches(signer, statement.Signer) {
			own = append(own, statement)
		} else {
			others = append(others, statement)
		}
	}
	return own, others, all.invalid
}

// policy says whether one of the policy's authorities is satisfied, and what all of them
// state of version and scan.
func (p prover) policy(of *policy.ImagePolicy, e evidence) Finding {
	finding := Finding{Policy: of.Name, Warn: of.Warn}
	if of.Err != nil {
		finding.Reason, finding.Message = gate.BadPolicy, "the policy cannot be used: "+oneLine(of.Err.Error())
		return finding
	}
	var refusals []refusal
	crypto := false
	statements := make([][]conveyor.Statement, 1+len(e.images))
	for _, signer := range of.Authorities {
		if refused, ok := p.signer(signer, e, &finding); ok {
			finding.Satisfied = true
		} else {
			refusals = append(refusals, refused)
		}
		if signer.Static != "" {
			continue
		}
		crypto = true
		for i, one := range append([]evidence{e}, e.images...) {
			own, _, _ := p.believed(signer, one)
			statements[i] = append(statements[i], own...)
		}
	}
	if !finding.Satisfied {
		finding.refuse(refusals)
	}
	if crypto {
		finding.state(e, statements)
	}
	return finding
}

// refusal is why an authority is not satisfied.
type refusal struct {
	reason  gate.Reason
	message string
}

// order is how much a reason tells: the first of them is given where authorities differ.
var order = []gate.Reason{gate.PolicyFails, gate.OtherRepository, gate.NoAttestation, gate.WrongIdentity, gate.WrongKey, gate.Unsigned}

func (f *Finding) refuse(refusals []refusal) {
	slices.SortStableFunc(refusals, func(a, b refusal) int { return slices.Index(order, a.reason) - slices.Index(order, b.reason) })
	f.Reason = refusals[0].reason
	var messages []string
	for _, r := range refusals {
		if !slices.Contains(messages, r.message) {
			messages = append(messages, r.message)
		}
	}
	f.Message = strings.Join(messages, "; or ")
}

// signer says whether an authority is satisfied: by the attestations that it names, or
// else by a signature.
func (p prover) signer(s policy.Signer, e evidence, finding *Finding) (refusal, bool) {
	switch s.Static {
	case "pass":
		return refusal{}, true
	case "fail":
		return refusal{gate.PolicyFails, strings.TrimSpace("the policy refuses every such image " + oneLine(s.Say))}, false
	}
	own, others, invalid := p.believed(s, e)
	signature, elsewhere := signatureFor(own, e.image.Context())
	if signature != nil {
		finding.Signed = true
		finding.Named = finding.Named || signature.Names(e.image.Context())
	}
	if len(s.Predicates) > 0 {
		return p.attested(s, e, own, others, invalid)
	}
	switch {
	case signature != nil:
		return refusal{}, true
	case elsewhere != "":
		return refusal{gate.OtherRepository, fmt.Sprintf("it is signed for the repository %s and was copied here", oneLine(elsewhere))}, false
	}
	return absent(s, "signature", onlySignatures(others), invalid), false
}

// signatureFor finds a signature that does not name another repository (P33), one that
// names this one first.
func signatureFor(own []conveyor.Statement, repository name.Repository) (signature *conveyor.Statement, elsewhere string) {
	for i, statement := range own {
		if statement.PredicateType != conveyor.Signature {
			continue
		}
		named := statement.Annotations[conveyor.RepositoryAnnotation]
		switch {
		case statement.Names(repository):
			return &own[i], ""
		case named == "":
			signature = &own[i]
		default:
			elsewhere = named
		}
	}
	return signature, elsewhere
}

func onlySignatures(statements []conveyor.Statement) []conveyor.Statement {
	return slices.DeleteFunc(slices.Clone(statements), func(s conveyor.Statement) bool { return s.PredicateType != conveyor.Signature })
}

// attested wants each attestation about the digest itself or, of an index, about each of
// its images: all that can run has it then.
func (p prover) attested(s policy.Signer, e evidence, own, others []conveyor.Statement, invalid []error) (refusal, bool) {
	for _, predicate := range s.Predicates {
		has := func(all []conveyor.Statement) bool {
			return slices.ContainsFunc(all, func(s conveyor.Statement) bool { return s.PredicateType == predicate })
		}
		if has(own) || len(e.images) > 0 && !slices.ContainsFunc(e.images, func(child evidence) bool {
			believed, _, _ := p.believed(s, child)
			return !has(believed)
		}) {
			continue
		}
		if len(own) > 0 {
			return refusal{gate.NoAttestation, fmt.Sprintf("no attestation %s by %s", predicate, who(s))}, false
		}
		return absent(s, "attestation "+predicate, others, invalid), false
	}
	return refusal{}, true
}

// absent says why nothing by an authority is there: somebody else signed, or nobody did.
func absent(s policy.Signer, what string, others []conveyor.Statement, invalid []error) refusal {
	missing := fmt.Sprintf("no %s by %s", what, who(s))
	switch {
	case len(others) > 0:
		return refusal{gate.WrongIdentity, fmt.Sprintf("%s: it is signed by %s", missing, oneLine(others[0].Signer.String()))}
	case len(invalid) > 0 && s.Key:
		return refusal{gate.WrongKey, missing + ": what is signed is by another key"}
	case len(invalid) > 0:
		return refusal{gate.WrongIdentity, missing + ": what is signed is proven by no trusted root: " + oneLine(invalid[0].Error())}
	}
	return refusal{gate.Unsigned, missing}
}

func who(s policy.Signer) string {
	if s.Key {
		return s.Name + "'s key"
	}
	var all []string
	for _, identity := range s.Identities {
		subject, issuer := identity.SubjectAlternativeName, identity.Issuer
		all = append(all, fmt.Sprintf("%s (%s)", orPattern(subject.SubjectAlternativeName, subject.Regexp.String()), orPattern(issuer.Issuer, issuer.Regexp.String())))
	}
	return strings.Join(all, " or ")
}

func orPattern(exact, pattern string) string {
	if exact != "" {
		return exact
	}
	return "/" + pattern + "/"
}

// oneLine keeps text of others from making lines, and short.
func oneLine(text string) string {
	text = scan.Plain(strings.Join(strings.Fields(text), " "))
	if len(text) > 400 {
		text = text[:400] + "…"
	}
	return strings.ToValidUTF8(text, "")
}

// state notes the versions and scans that the policy's signers state.
func (f *Finding) state(e evidence, statements [][]conveyor.Statement) {
	for _, s := range statements[0] {
		if version := s.Annotations[conveyor.VersionAnnotation]; s.PredicateType == conveyor.Signature && version != "" && s.Names(e.image.Context()) {
			f.Versions = append(f.Versions, version)
		}
	}
	slices.Sort(f.Versions)
	f.Versions = slices.Compact(f.Versions)
	if len(e.images) == 0 {
		f.Scans = []Scan{lastScan(e.image, statements[0])}
		return
	}
	for i, child := range e.images {
		f.Scans = append(f.Scans, lastScan(child.image, statements[i+1]))
	}
}

func lastScan(image name.Digest, statements []conveyor.Statement) Scan {
	last, found, err := conveyor.FindLastScan(statements)
	out := Scan{Digest: image.DigestStr(), Finished: last.Finished, Missing: !found && err == nil}
	if err != nil {
		out.Broken = oneLine(err.Error())
	}
	if !found {
		return out
	}
	report, err := scan.Parse(last.Result)
	if err != nil {
		out.Broken = oneLine(err.Error())
		return out
	}
	for _, finding := range scan.Exceptions(nil).Stopping("", report.Findings(), time.Now()) {
		v := Vulnerability{ID: oneLine(finding.ID), Package: oneLine(finding.Package), Severity: string(finding.Severity)}
		switch {
		case slices.Contains(out.Findings, v):
		case len(out.Findings) == maxFindings:
			out.More++
		default:
			out.Findings = append(out.Findings, v)
		}
	}
	return out
}

// matches compares as sigstore does.
func matches(signer policy.Signer, who conveyor.Identity) bool {
	summary := certificate.Summary{SubjectAlternativeName: who.Subject, Extensions: certificate.Extensions{Issuer: who.Issuer}}
	return slices.ContainsFunc(signer.Identities, func(i sigstore.CertificateIdentity) bool { return i.Verify(summary) == nil })
}
