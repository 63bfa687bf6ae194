package policy

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/sigstore/policy-controller/pkg/apis/glob"
	"github.com/sigstore/policy-controller/pkg/apis/signaturealgo"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// UnsupportedError is a field that the policy-controller knows and this gate does not do.
type UnsupportedError struct {
	Field string // its path
	Why   string
}

func (e *UnsupportedError) Error() string {
	return e.Field + ": not supported: " + e.Why
}

// problems collects what is wrong with a policy, each with the field's path, and what is only unwise.
type problems struct {
	errs     []error
	warnings []string
}

func (p *problems) wrong(field, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(field+": "+format, args...))
}

func (p *problems) unsupported(field, why string) {
	p.errs = append(p.errs, &UnsupportedError{Field: field, Why: why})
}

func (p *problems) warn(field, format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(field+": "+format, args...))
}

// Check says everything that keeps a policy from being used as it is written, each with
// its field, and what is unwise. What the policy-controller refuses is refused.
func (p *ClusterImagePolicy) Check() (warnings []string, err error) {
	var found problems
	s := p.Spec
	if len(s.Images) == 0 {
		found.wrong("spec.images", "no images are named")
	}
	for i, image := range s.Images {
		if _, err := glob.Compile(image.Glob); err != nil {
			found.wrong(fmt.Sprintf("spec.images[%d].glob", i), "%q is no glob", image.Glob)
		}
	}
	if len(s.Authorities) == 0 {
		found.wrong("spec.authorities", "nobody is named who may sign")
	}
	for i, authority := range s.Authorities {
		authority.check(fmt.Sprintf("spec.authorities[%d]", i), &found)
	}
	if !slices.Contains([]string{"", "enforce", "warn"}, s.Mode) {
		found.wrong("spec.mode", "%q is neither enforce nor warn", s.Mode)
	}
	if s.Policy != nil {
		found.unsupported("spec.policy", "this gate runs no CUE and no Rego; demand attestations by their predicateType")
	}
	for i, match := range s.Match {
		match.check(fmt.Sprintf("spec.match[%d]", i), &found)
	}
	return found.warnings, errors.Join(found.errs...)
}

func (a Authority) check(field string, found *problems) {
	kinds := 0
	for _, is := range []bool{a.Key != nil, a.Keyless != nil, a.Static != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		found.wrong(field, "exactly one of key, keyless and static is needed")
		return
	}
	switch {
	case a.Key != nil:
		a.Key.check(field+".key", found)
	case a.Keyless != nil:
		a.Keyless.check(field+".keyless", found)
	default:
		a.Static.check(field+".static", found)
		if len(a.Attestations)+len(a.Source) > 0 || a.CTLog != nil || a.Timestamp != nil {
			found.wrong(field, "beside static there can be no attestations, source, ctlog or rfc3161timestamp")
		}
	}
	if len(a.Source) > 0 {
		found.unsupported(field+".source", "signatures are looked for beside the image alone, with the Pod's credentials")
	}
	if a.CTLog != nil && a.CTLog.TrustRootRef != "" {
		found.unsupported(field+".ctlog.trustRootRef", onlyRoot)
	}
	if a.CTLog != nil {
		checkURL(field+".ctlog.url", a.CTLog.URL, found)
	}
	if a.Timestamp != nil && a.Timestamp.TrustRootRef != "" {
		found.unsupported(field+".rfc3161timestamp.trustRootRef", onlyRoot)
	}
	if !slices.Contains([]string{"", "legacy", "bundle"}, a.SignatureFormat) {
		found.wrong(field+".signatureFormat", "%q is neither legacy nor bundle", a.SignatureFormat)
	}
	for i, attestation := range a.Attestations {
		attestation.check(fmt.Sprintf("%s.attestations[%d]", field, i), found)
	}
}

const onlyRoot = "trust comes from the trusted root that the gate is given; put what is trusted into it"

func checkURL(field, text string, found *problems) {
	if text == "" {
		return
	}
	if u, err := url.Parse(text); err != nil || u.Scheme == "" || u.Host == "" {
		found.wrong(field, "%q is no address", text)
	}
}

func (k Key) check(field string, found *problems) {
	given := 0
	for _, is := range []bool{k.Data != "", k.KMS != "", k.SecretRef != nil} {
		if is {
			given++
		}
	}
	if given != 1 {
		found.wrong(field, "exactly one of data, kms and secretRef is needed")
		return
	}
	if k.HashAlgorithm != "" {
		if _, err := signaturealgo.HashAlgorithm(k.HashAlgorithm); err != nil {
			found.wrong(field+".hashAlgorithm", "%q is none", k.HashAlgorithm)
		}
	}
	if k.Data != "" {
		if key, err := cryptoutils.UnmarshalPEMToPublicKey([]byte(k.Data)); err != nil || key == nil {
			found.wrong(field+".data", "it is no public key in PEM")
		}
	}
	if k.KMS != "" {
		checkKMS(field+".kms", k.KMS, found)
	}
	if k.SecretRef != nil && k.SecretRef.Name == "" {
		found.wrong(field+".secretRef.name", "no Secret is named")
	}
}

// awsKey is what the policy-controller takes as the name of a key in AWS: a whole ARN.
var awsKey = regexp.MustCompile(`^awskms://[^/]*/arn:[^:]+:kms:[^:]+:[0-9]+:(key|alias)/.+$`)

func checkKMS(field, kms string, found *problems) {
	if strings.HasPrefix(kms, "awskms:") && !awsKey.MatchString(kms) {
		found.wrong(field, "%q names no key by its whole ARN", kms)
		return
	}
	found.unsupported(field, "the gate asks nobody but the registry; export the public key into data")
}

func (k Keyless) check(field string, found *problems) {
	if k.URL != "" && k.CACert != nil {
		found.wrong(field, "only one of url and ca-cert can be given")
	}
	checkURL(field+".url", k.URL, found)
	if k.CACert != nil {
		found.unsupported(field+".ca-cert", onlyRoot)
	}
	if k.TrustRootRef != "" {
		found.unsupported(field+".trustRootRef", onlyRoot)
	}
	if k.InsecureIgnoreSCT {
		found.warn(field+".insecureIgnoreSCT", "a certificate that was never published is believed")
	}
	if len(k.Identities) == 0 {
		found.wrong(field+".identities", "nobody is named who may sign")
	}
	for i, identity := range k.Identities {
		identity.check(fmt.Sprintf("%s.identities[%d]", field, i), found)
	}
}

func (i Identity) check(field string, found *problems) {
	for _, pair := range []struct{ name, exact, pattern string }{{"issuer", i.Issuer, i.IssuerRegExp}, {"subject", i.Subject, i.SubjectRegExp}} {
		switch {
		case pair.exact == "" && pair.pattern == "":
			found.wrong(field+"."+pair.name, "it is needed, or %sRegExp", pair.name)
		case pair.exact != "" && pair.pattern != "":
			found.wrong(field, "only one of %s and %sRegExp can be given", pair.name, pair.name)
		case pair.pattern != "":
			checkPattern(field+"."+pair.name+"RegExp", pair.pattern, found)
		}
	}
}

// checkPattern warns of a pattern that a longer name matches too (P34). It is not refused,
// since the policy-controller takes it.
func checkPattern(field, pattern string, found *problems) {
	if _, err := regexp.Compile(pattern); err != nil {
		found.wrong(field, "it is no regular expression: %v", err)
		return
	}
	if !strings.HasPrefix(pattern, "^") || !strings.HasSuffix(pattern, "$") || strings.HasSuffix(pattern, `\$`) {
		found.warn(field, "%q is not anchored: whoever's name contains a match may sign; write ^…$ (P34)", pattern)
	}
}

func (s Static) check(field string, found *problems) {
	switch s.Action {
	case "fail":
	case "pass":
		found.warn(field+".action", "every image that matches is admitted, signed or not")
	default:
		found.wrong(field+".action", "%q is neither pass nor fail", s.Action)
	}
}

// predicateTypes are the short names that the policy-controller still takes.
var predicateTypes = map[string]string{
	"custom":         "https://cosign.sigstore.dev/attestation/v1",
	"slsaprovenance": "https://slsa.dev/provenance/v0.2",
	"spdx":           "https://spdx.dev/Document",
	"spdxjson":       "https://spdx.dev/Document",
	"cyclonedx":      "https://cyclonedx.org/bom",
	"link":           "https://in-toto.io/Link/v1",
	"vuln":           "https://cosign.sigstore.dev/attestation/vuln/v1",
}

func (a Attestation) check(field string, found *problems) {
	if a.Name == "" {
		found.wrong(field+".name", "it is needed")
	}
	_, short := predicateTypes[a.PredicateType]
	_, err := url.ParseRequestURI(a.PredicateType)
	switch {
	case a.PredicateType == "":
		found.wrong(field+".predicateType", "it is needed")
	case short || err != nil:
		found.warn(field+".predicateType", "%q is deprecated: write the whole address", a.PredicateType)
	}
	if a.Policy == nil {
		return
	}
	if a.Policy.Type != "cue" && a.Policy.Type != "rego" {
		found.wrong(field+".policy.type", "%q is neither cue nor rego", a.Policy.Type)
		return
	}
	found.unsupported(field+".policy", "this gate runs no CUE and no Rego")
}

// resources are those that the policy-controller takes.
var resources = []string{"pods", "replicasets", "deployments", "daemonsets", "statefulsets", "jobs", "cronjobs"}

// check accepts Pods alone: whatever else is to run becomes one. A policy for another kind
// would be silently without effect.
func (m MatchResource) check(field string, found *problems) {
	if m.Selector != nil && m.Resource == "" && m.Version == "" && m.Group == "" {
		found.wrong(field+".selector", "it needs a resource")
		return
	}
	if m.Resource != "" && !slices.Contains(resources, m.Resource) {
		found.wrong(field+".resource", "%q runs no images", m.Resource)
		return
	}
	if m.Group != "" || m.Resource != "pods" || m.Version != "v1" && m.Version != "" {
		found.unsupported(field, "the gate judges Pods alone: write resource: pods, version: v1, group: \"\"")
	}
}
