package v1alpha1

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/semver"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// DecodeReleasePolicy reads a policy from JSON or YAML strictly: an unknown or doubled field
// is an error with its path. What could be read is returned beside the error, so that the images
// of a policy that cannot be used are known.
func DecodeReleasePolicy(src []byte) (*ReleasePolicy, error) {
	raw, err := yaml.YAMLToJSONStrict(src)
	if err != nil {
		return nil, fmt.Errorf("reading a ReleasePolicy: %w", err)
	}
	policy := &ReleasePolicy{}
	strict, err := json.UnmarshalStrict(raw, policy)
	if err != nil {
		return policy, fmt.Errorf("reading a ReleasePolicy: %w", err)
	}
	if err := errors.Join(strict...); err != nil {
		return policy, fmt.Errorf("reading the ReleasePolicy %s: %w", policy.Name, err)
	}
	if policy.APIVersion != GroupVersion.String() || policy.Kind != ReleasePolicyKind {
		return policy, fmt.Errorf("reading the ReleasePolicy %s: it is a %s of %s, want %s of %s", policy.Name, policy.Kind, policy.APIVersion, ReleasePolicyKind, GroupVersion)
	}
	return policy, policy.Validate()
}

var (
	digestPattern     = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+([._:/-]+[a-z0-9]+)*$`)
	globPattern       = regexp.MustCompile(`^[a-zA-Z0-9\-_:/*.@]+$`)
)

// Validate says everything that is wrong with a policy, each with its field. The CRD's
// schema says the same, for whoever applies one.
func (p *ReleasePolicy) Validate() error {
	var all []error
	wrong := func(field, format string, args ...any) {
		all = append(all, fmt.Errorf("spec."+field+": "+format, args...))
	}
	s := p.Spec
	for i, image := range s.Images {
		if !globPattern.MatchString(image.Glob) {
			wrong(fmt.Sprintf("images[%d].glob", i), "%q is no glob", image.Glob)
		}
	}
	if s.Mode != "" && s.Mode != Enforce && s.Mode != Warn {
		wrong("mode", "%q is neither enforce nor warn", s.Mode)
	}
	if len(s.Images) == 0 && (s.Scan != nil || s.GitOnly) {
		wrong("images", "scan and gitOnly are for images, and none are named")
	}
	s.validateScan(wrong)
	for i, floor := range s.Floors {
		field := fmt.Sprintf("floors[%d].", i)
		if !repositoryPattern.MatchString(floor.Repository) {
			wrong(field+"repository", "%q is no repository and no end of one", floor.Repository)
		}
		if !semver.IsValid("v" + floor.Version) {
			wrong(field+"version", "%q is no version such as 1.4.0", floor.Version)
		}
	}
	for i, image := range s.Admitted {
		field := fmt.Sprintf("admitted[%d].", i)
		if !repositoryPattern.MatchString(image.Repository) {
			wrong(field+"repository", "%q is no repository and no end of one", image.Repository)
		}
		if !digestPattern.MatchString(image.Digest) {
			wrong(field+"digest", "%q is no digest such as sha256:…", image.Digest)
		}
	}
	for i, q := range s.Quarantine {
		q.validate(fmt.Sprintf("quarantine[%d].", i), wrong)
	}
	return errors.Join(all...)
}

func (s ReleasePolicySpec) validateScan(wrong func(field, format string, args ...any)) {
	if s.Scan == nil {
		return
	}
	if s.Scan.MaxAge.Duration <= 0 {
		wrong("scan.maxAge", "a duration such as 720h is needed")
	}
	for i, x := range s.Scan.Exceptions {
		field := fmt.Sprintf("scan.exceptions[%d].", i)
		if x.ID == "" || x.Package == "" || strings.ContainsAny(x.ID+x.Package, "*?") {
			wrong(field+"id", "name the one advisory and the package")
		}
		if strings.TrimSpace(x.Reason) == "" {
			wrong(field+"reason", "say why it does no harm here")
		}
		if _, err := time.Parse(time.DateOnly, x.Expires); err != nil {
			wrong(field+"expires", "%q is no day such as 2026-12-31", x.Expires)
		}
	}
}

func (q Quarantined) validate(field string, wrong func(field, format string, args ...any)) {
	if !digestPattern.MatchString(q.Digest) {
		wrong(field+"digest", "%q is no digest such as sha256:…", q.Digest)
	}
	if strings.TrimSpace(q.Reason) == "" {
		wrong(field+"reason", "say why it was taken back")
	}
	if q.Evidence != "" {
		if u, err := url.Parse(q.Evidence); err != nil || u.Scheme != "https" || u.Host == "" {
			wrong(field+"evidence", "%q is no https address", q.Evidence)
		}
	}
}
