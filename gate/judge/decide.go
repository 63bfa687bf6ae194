package judge

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/omnivision/omnivision/apis/v1alpha1"
	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
	"github.com/omnivision/omnivision/gate/verify"
)

// decision is a verdict in the making.
type decision struct {
	set     *policy.Set
	facts   *verify.Facts
	now     time.Time
	verdict gate.Verdict
}

// decide says what the policies make of what was proven. It asks nobody: what changes without
// the image, such as the quarantine, is looked at each time.
func decide(set *policy.Set, match *policy.Match, facts *verify.Facts, now time.Time) gate.Verdict {
	d := decision{set: set, facts: facts, now: now, verdict: gate.Verdict{Digest: facts.Digest, Policies: match.Names}}
	d.quarantine()
	if len(match.Images) == 0 {
		d.against(false, "", gate.NoMatchingPolicy, "no ClusterImagePolicy is for this image: nobody says who may sign it")
	}
	for _, f := range facts.Policies {
		if !f.Satisfied {
			d.against(f.Warn, f.Policy, f.Reason, "%s", f.Message)
		}
	}
	d.floors()
	for _, release := range match.Releases {
		d.release(release)
	}
	d.verdict.Allowed = len(d.verdict.Denials) == 0
	return d.verdict
}

func (d *decision) against(warn bool, policy string, reason gate.Reason, format string, args ...any) {
	denial := gate.Denial{
		Policy: policy, Reason: reason, Message: fmt.Sprintf(format, args...),
		Next: "omnivision verify " + d.facts.Repository + "@" + d.facts.Digest,
	}
	if warn {
		d.verdict.Warnings = append(d.verdict.Warnings, denial)
		return
	}
	d.verdict.Denials = append(d.verdict.Denials, denial)
}

// quarantine looks for the digest itself, for an image of the same release by what its
// signatures say, and of an index for one of its images.
func (d *decision) quarantine() {
	var versions []string
	for _, f := range d.facts.Policies {
		versions = append(versions, f.Versions...)
	}
	for i, digest := range append([]string{d.facts.Digest}, append(slices.Clone(d.facts.Images), d.facts.Indexes...)...) {
		if i > 0 {
			versions = nil
		}
		if q, ok := d.set.Quarantined(d.facts.Repository, digest, versions); ok {
			d.against(q.Warn, q.Policy, gate.Quarantined, "the release was taken back: %s", q.Entry)
			return
		}
	}
}

// deciding are the findings that decide for a release: those of policies that are enforced, or
// if none is, of those that warn.
func (d *decision) deciding() []verify.Finding {
	enforced := slices.DeleteFunc(slices.Clone(d.facts.Policies), func(f verify.Finding) bool { return f.Warn })
	if len(enforced) > 0 {
		return enforced
	}
	return d.facts.Policies
}

// version is the newest version that a policy's signers state; of several policies the
// oldest, so that none can speak for another. Empty: nobody states one.
func (d *decision) version() string {
	var stated string
	for _, f := range d.deciding() {
		var newest string
		for _, v := range f.Versions {
			if semver.IsValid("v"+v) && (newest == "" || semver.Compare("v"+v, "v"+newest) > 0) {
				newest = v
			}
		}
		if newest != "" && (stated == "" || semver.Compare("v"+newest, "v"+stated) < 0) {
			stated = newest
		}
	}
	return stated
}

// floors refuses what is validly signed and too old (P32).
func (d *decision) floors() {
	floors := d.set.Floors(d.facts.Repository)
	if len(floors) == 0 {
		return
	}
	version := d.version()
	for _, floor := range floors {
		switch {
		case version == "":
			d.against(floor.Warn, floor.Policy, gate.BelowFloor, "its signature states no version, and %s or newer is demanded", floor.Version)
		case semver.Compare("v"+version, "v"+floor.Version) < 0:
			d.against(floor.Warn, floor.Policy, gate.BelowFloor, "it is version %s, and %s or newer is demanded", version, floor.Version)
		}
	}
}

// release applies the rules of one ReleasePolicy.
func (d *decision) release(p *policy.ReleasePolicy) {
	if p.Err != nil {
		d.against(p.Warn, p.Name, gate.BadPolicy, "the policy cannot be used: %s", strings.Join(strings.Fields(p.Err.Error()), " "))
		return
	}
	d.signedForHere(p)
	if p.Spec.GitOnly && !d.named() {
		d.against(p.Warn, p.Name, gate.NotInGit, "Git does not name this digest for this cluster")
	}
	if p.Spec.Scan != nil {
		d.scans(p)
	}
}

// signedForHere wants a signature that names this repository: without one, a signature
// of the same bytes elsewhere would do (P33).
func (d *decision) signedForHere(p *policy.ReleasePolicy) {
	findings := d.deciding()
	switch {
	case slices.ContainsFunc(findings, func(f verify.Finding) bool { return f.Named }):
	case slices.ContainsFunc(findings, func(f verify.Finding) bool { return f.Signed }):
		d.against(p.Warn, p.Name, gate.OtherRepository, "its signature does not say that it is for the repository %s", d.facts.Repository)
	case !slices.ContainsFunc(findings, func(f verify.Finding) bool { return !f.Satisfied }):
		d.against(p.Warn, p.Name, gate.Unsigned, "no signature says that it is for the repository %s", d.facts.Repository)
	}
}

func (d *decision) named() bool {
	return slices.ContainsFunc(append([]string{d.facts.Digest}, d.facts.Indexes...), func(digest string) bool {
		return d.set.Admitted(d.facts.Repository, digest)
	})
}

// scans wants of everything that a node may run a scan that is clean and fresh. Where
// signers of several policies scanned, each scan must be.
func (d *decision) scans(p *policy.ReleasePolicy) {
	found := map[string]bool{}
	var order []string
	for _, f := range d.deciding() {
		for _, s := range f.Scans {
			if _, seen := found[s.Digest]; !seen {
				order = append(order, s.Digest)
			}
			found[s.Digest] = found[s.Digest] || !s.Missing
			if reason, why := d.scan(p.Spec.Scan, s); reason != "" {
				d.against(p.Warn, p.Name, reason, "%s%s", d.which(s.Digest), why)
				return
			}
		}
	}
	for _, digest := range order {
		if !found[digest] {
			d.against(p.Warn, p.Name, gate.NoScan, "%sno scan by a trusted signer", d.which(digest))
			return
		}
	}
	if len(order) == 0 {
		d.against(p.Warn, p.Name, gate.NoScan, "no scan by a trusted signer")
	}
}

// which names one image of an index.
func (d *decision) which(digest string) string {
	if digest == d.facts.Digest {
		return ""
	}
	return "its image " + digest[:min(len(digest), len("sha256:")+12)] + ": "
}

// soon is how far a signer's clock may be ahead.
const soon = 5 * time.Minute

// scan says what speaks against one scan.
func (d *decision) scan(rule *v1alpha1.Scan, s verify.Scan) (gate.Reason, string) {
	switch age := d.now.Sub(s.Finished); {
	case s.Missing:
		return "", ""
	case s.Broken != "":
		return gate.NoScan, "its scan cannot be read: " + s.Broken
	case age < -soon:
		return gate.StaleScan, "its last scan is said to end in the future, at " + s.Finished.Format(time.RFC3339)
	case age > rule.MaxAge.Duration:
		return gate.StaleScan, fmt.Sprintf("its last scan ended at %s and may be %s old; scan it again", s.Finished.Format(time.RFC3339), rule.MaxAge.Duration)
	case s.More > 0:
		return gate.VulnerableScan, fmt.Sprintf("its scan found %d advisories that stop a release", len(s.Findings)+s.More)
	}
	var findings []scan.Finding
	for _, v := range s.Findings {
		findings = append(findings, scan.Finding{ID: v.ID, Package: v.Package, Severity: scan.Severity(v.Severity)})
	}
	app := d.facts.Repository[strings.LastIndex(d.facts.Repository, "/")+1:]
	var ids []string
	for _, f := range scan.Exceptions(rule.Exceptions).Stopping(app, findings, d.now) {
		ids = append(ids, string(f.Severity)+" "+f.ID)
	}
	if len(ids) == 0 {
		return "", ""
	}
	slices.Sort(ids)
	return gate.VulnerableScan, "its scan found " + strings.Join(slices.Compact(ids), ", ") + ", for which no exception is given"
}
