// Package gate is what a cluster's admission says of images and Pods: the words that the
// part which answers the API server and the part which decides share.
//
// Package judge decides; package webhook answers. docs/gate.md says what is decided and by
// which policies.
package gate

import "context"

// Image asks about the image of one container of a Pod.
type Image struct {
	// Reference is as the Pod names it: by tag, by digest or by both.
	Reference string
	// Namespace is the Pod's; the Secrets and the service account are in it.
	Namespace      string
	ServiceAccount string
	// PullSecrets are names of Secrets in Namespace that the kubelet would pull with.
	PullSecrets []string
	PodLabels   map[string]string
}

// Verdict says whether a cluster may run an image, and why.
type Verdict struct {
	Image    string   // the reference that was asked for
	Digest   string   // "sha256:…" of what the reference names; "" if it could not be resolved
	Allowed  bool     // false as long as nothing says otherwise
	Policies []string // the policies that matched, by name
	Denials  []Denial // why not; empty if allowed
	Warnings []Denial // what policies in warn mode would have refused
	Source   Source   // how the verdict came about
}

// Denial is one reason against an image.
type Denial struct {
	Policy  string // that demands what is missing; "" if none does in particular
	Reason  Reason
	Message string // one line for people: what is missing
	Next    string // the command that shows more
}

// Reason is a stable code, for metrics and audit.
type Reason string

// The reasons against an image.
const (
	Unsigned            Reason = "Unsigned"            // nobody whom the policy trusts signed it, and nobody else did
	WrongIdentity       Reason = "WrongIdentity"       // signed, by another identity than the policy's (P34)
	WrongKey            Reason = "WrongKey"            // signed, by another key than the policy's
	OtherRepository     Reason = "OtherRepository"     // signed for another repository, and copied (P33)
	NoAttestation       Reason = "NoAttestation"       // an attestation that the policy demands is missing
	BelowFloor          Reason = "BelowFloor"          // validly signed, and older than the floor (P32)
	NoScan              Reason = "NoScan"              // nobody trusted scanned it
	StaleScan           Reason = "StaleScan"           // the last scan is too old
	VulnerableScan      Reason = "VulnerableScan"      // the last scan found what stops a release
	Quarantined         Reason = "Quarantined"         // a release that was taken back
	NotInGit            Reason = "NotInGit"            // Git does not name the digest for this cluster (P32)
	Unresolvable        Reason = "Unresolvable"        // the reference is none, or names nothing
	RegistryUnavailable Reason = "RegistryUnavailable" // the registry does not answer, and the digest is unknown (P26)
	RegistryDenied      Reason = "RegistryDenied"      // the registry answers, and does not let the gate read
	Tampered            Reason = "Tampered"            // what the registry sent is not what its digest says
	NoMatchingPolicy    Reason = "NoMatchingPolicy"    // no policy covers the image
	BadPolicy           Reason = "BadPolicy"           // a policy that covers the image cannot be used
	PolicyFails         Reason = "PolicyFails"         // the policy's authority is static: fail
	Deadline            Reason = "Deadline"            // not decided in time
)

// Source is how a verdict came about.
type Source string

// The sources of a verdict.
const (
	FromCache    Source = "cache"    // decided before, nothing was asked
	FromVerified Source = "verified" // the registry was asked
	FromShared   Source = "shared"   // another one's verification was waited for
	FromStale    Source = "stale"    // the registry does not answer; this cluster admitted the digest before
)

// Judge decides about images. It is safe for concurrent use.
type Judge interface {
	Judge(ctx context.Context, image Image) Verdict
}

// Knower is a Judge that can say at once what it knows already, and never waits: false is
// that it would have to ask somebody.
type Knower interface {
	Judge
	Known(image Image) (Verdict, bool)
}
