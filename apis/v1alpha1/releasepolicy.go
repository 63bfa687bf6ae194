// Package v1alpha1 has the kinds of omnivision.ai/v1alpha1, which are few: what upstream's
// kinds say is left to them.
//
// A ReleasePolicy adds to sigstore's ClusterImagePolicy, which says whose signature counts,
// what a signature alone cannot: how fresh a scan must be, which versions are too old,
// which digests Git names, and which were taken back.
package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Mode is what happens to an image that does not satisfy a policy. These are the words of
// sigstore's ClusterImagePolicy.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce" // it is refused; the default
	Warn    Mode = "warn"    // it is admitted, with a warning
)

// ReleasePolicy is what a cluster demands of its releases beyond a signature. It has no
// namespace. All of a cluster apply together: rules (scan, gitOnly) to the images of their own policy, lists
// (floors, admitted, quarantine) as one list.
type ReleasePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ReleasePolicySpec   `json:"spec"`
	Status ReleasePolicyStatus `json:"status,omitempty"`
}

// ReleasePolicySpec holds the rules.
type ReleasePolicySpec struct {
	// Images are those that scan and gitOnly are for, and of which a signature must name the
	// repository (P33). Without any, the policy holds lists alone.
	Images []ImagePattern `json:"images,omitempty"`
	// Mode is enforce if it is not given.
	Mode Mode `json:"mode,omitempty"`
	// Scan demands a clean scan by a signer whom the image's ClusterImagePolicies trust.
	Scan *Scan `json:"scan,omitempty"`
	// Floors are the oldest versions that may still run (P32).
	Floors []Floor `json:"floors,omitempty"`
	// GitOnly admits only digests that Git names for this cluster, or named before and some
	// workload still uses (P32).
	GitOnly bool `json:"gitOnly,omitempty"`
	// Admitted are the digests that Git names.
	Admitted []ImageDigest `json:"admitted,omitempty"`
	// Quarantine are releases that were taken back.
	Quarantine []Quarantined `json:"quarantine,omitempty"`
}

// ImagePattern names images as a ClusterImagePolicy does: * is anything but a slash, **
// anything.
type ImagePattern struct {
	Glob string `json:"glob"`
}

// Scan is what is demanded of the last scan of an image.
type Scan struct {
	// MaxAge is how long ago it may have been.
	MaxAge metav1.Duration `json:"maxAge"`
	// Exceptions let findings pass, here and when a release is scanned.
	Exceptions []ScanException `json:"exceptions,omitempty"`
}

// ScanException lets one advisory pass, for a reason and for a time.
type ScanException struct {
	ID      string `json:"id"` // CVE-2026-12345
	Package string `json:"package"`
	// App is the last element of the repository; empty is every one.
	App     string `json:"app,omitempty"`
	Reason  string `json:"reason"`
	Expires string `json:"expires"` // the last day, UTC: 2026-12-31
}

// Floor is the oldest version of a repository that may run, by Semantic Versioning.
type Floor struct {
	// Repository is the whole repository, or its last elements: omnivision-worker.
	Repository string `json:"repository"`
	Version    string `json:"version"`
}

// ImageDigest is an image that Git names: an index's digest, which stands for its
// platforms' images too, or one of these.
type ImageDigest struct {
	// Repository is the whole repository, or its last elements.
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
}

// Quarantined is a release that was taken back. Its digest is refused in every repository,
// and so is whatever is validly signed as the same version of the same app: a platform's image of
// the same index has a digest of its own (P35).
type Quarantined struct {
	Digest   string      `json:"digest"`
	App      string      `json:"app,omitempty"` // last element of the repository
	Version  string      `json:"version,omitempty"`
	Cluster  string      `json:"cluster,omitempty"` // where it failed; it is refused everywhere
	Reason   string      `json:"reason"`
	Since    metav1.Time `json:"since,omitempty"`
	Evidence string      `json:"evidence,omitempty"` // an address
}

// ReleasePolicyStatus is what the cluster's gate found.
type ReleasePolicyStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions has Ready: whether the gate uses the policy as it is written.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Named are the digests that Git named when the gate last looked.
	Named []ImageDigest `json:"named,omitempty"`
	// Previous are digests that Git named before and that something in the cluster still
	// uses: during a canary the stable release's Pods must be able to restart.
	Previous []PreviousDigest `json:"previous,omitempty"`
}

// PreviousDigest is a digest that Git no longer names.
type PreviousDigest struct {
	ImageDigest `json:",inline"`
	// LastNamed is when Git last named it, as this cluster saw it.
	LastNamed metav1.Time `json:"lastNamed"`
}

// Ready is the condition that says whether the gate uses a policy as it is written.
const Ready = "Ready"

// ReleasePolicyList is a list of policies.
type ReleasePolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ReleasePolicy `json:"items"`
}

// keepPrevious is how long a digest stays admitted after Git ceased to name it, whatever
// uses it: the workload that needs it may not have started yet.
const keepPrevious = time.Hour

// maxPrevious bounds the status.
const maxPrevious = 100

// Previously says which digests are to be admitted although Git no longer names them. It
// takes what the status said until now, what Git names from now on, and whether
// something in the cluster uses a digest: a ReplicaSet that wants Pods. Only what Git named
// gets in, so that a workload cannot bring an old digest back.
func Previously(before ReleasePolicyStatus, is []ImageDigest, used func(ImageDigest) bool, now time.Time) []PreviousDigest {
	last := map[ImageDigest]metav1.Time{}
	var order []ImageDigest
	remember := func(d ImageDigest, at metav1.Time) {
		if _, known := last[d]; !known {
			order = append(order, d)
		}
		last[d] = at
	}
	for _, p := range before.Previous {
		remember(p.ImageDigest, p.LastNamed)
	}
	for _, d := range before.Named {
		remember(d, metav1.NewTime(now.UTC().Truncate(time.Second)))
	}
	for _, d := range is {
		delete(last, d)
	}
	var previous []PreviousDigest
	for _, d := range order {
		at, gone := last[d]
		if gone && (now.Sub(at.Time) < keepPrevious || used(d)) {
			previous = append(previous, PreviousDigest{ImageDigest: d, LastNamed: at})
		}
	}
	return previous[max(0, len(previous)-maxPrevious):]
}
