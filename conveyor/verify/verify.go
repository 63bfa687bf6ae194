// Package verify says which of the statements beside an image can be believed: those
// that are signed by the expected identity, about exactly this digest.
//
// The identity is compared as a whole, workflow, ref and issuer: there is no pattern
// that could be too loose (P34). A signature counts only for the repository that it
// names (P33). Trust comes from the root that the caller gives; nothing is fetched.
package verify

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/omnivision/omnivision/conveyor/referrers"
)

// Types of predicates.
const (
	Signature  = "https://sigstore.dev/cosign/sign/v1"
	Provenance = "https://slsa.dev/provenance/v1"
	SBOM       = "https://cyclonedx.org/bom"
	Scan       = "https://cosign.sigstore.dev/attestation/vuln/v1"
)

// What a signature says of its subject.
const (
	RepositoryAnnotation = "repository"
	VersionAnnotation    = "version"
)

// Identity is who signs: a workflow in the words of a certificate, or a key.
type Identity struct {
	Subject string `json:"subject,omitempty"` // https://github.com/O/R/.github/workflows/W.yaml@refs/heads/main
	Issuer  string `json:"issuer,omitempty"`  // https://token.actions.githubusercontent.com
	Key     string `json:"key,omitempty"`     // fingerprint, if it is a key
}

func (i Identity) String() string {
	if i.Key != "" {
		return "key " + i.Key
	}
	return i.Subject + " (" + i.Issuer + ")"
}

// Policy is whom to believe.
type Policy struct {
	// Root and Identity are for keyless signatures.
	Root     root.TrustedMaterial
	Identity Identity
	// Key, if set, is the one to believe instead: the offline alternative.
	Key crypto.PublicKey
}

// Statement is a statement that can be believed.
type Statement struct {
	PredicateType string            `json:"predicateType"`
	Predicate     json.RawMessage   `json:"predicate"`
	Annotations   map[string]string `json:"annotations,omitempty"` // of the subject
	Signer        Identity          `json:"signer"`
	// Time is when it was signed, as a timestamp authority or the log witnessed; zero
	// for a key without witness.
	Time    time.Time `json:"time"`
	Payload []byte    `json:"-"` // as it was signed
}

// Image returns the statements about an image that can be believed, and says of the
// others why not.
func (p Policy) Image(ctx context.Context, image name.Digest, options ...remote.Option) (believed []Statement, refused []error, err error) {
	bundles, err := referrers.Bundles(ctx, image, options...)
	if err != nil {
		return nil, nil, err
	}
	for _, raw := range bundles {
		statement, err := p.Bundle(raw, image)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		believed = append(believed, statement)
	}
	return believed, refused, nil
}

// Bundle verifies one bundle against an image.
func (p Policy) Bundle(raw []byte, image name.Digest) (Statement, error) {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return Statement{}, fmt.Errorf("reading a bundle of %s: %w", image, err)
	}
	verifier, policy, err := p.verifier(image)
	if err != nil {
		return Statement{}, err
	}
	result, err := verifier.Verify(&b, policy)
	if err != nil {
		return Statement{}, fmt.Errorf("verifying a bundle of %s: %w", image, err)
	}
	payload := b.GetDsseEnvelope().GetPayload()
	statement, err := parse(payload, image)
	if err != nil {
		return Statement{}, fmt.Errorf("reading a statement about %s: %w", image, err)
	}
	statement.Signer = p.Identity
	for _, witnessed := range result.VerifiedTimestamps {
		if statement.Time.IsZero() || witnessed.Timestamp.Before(statement.Time) {
			statement.Time = witnessed.Timestamp.UTC()
		}
	}
	return statement, nil
}

// verifier demands what the root can prove: a log entry where it knows a log, a
// certificate's timestamp where it knows a certificate log, and a witnessed time always,
// since certificates are valid for minutes.
func (p Policy) verifier(image name.Digest) (*verify.Verifier, verify.PolicyBuilder, error) {
	digest, err := hex.DecodeString(image.DigestStr()[len("sha256:"):])
	if err != nil {
		return nil, verify.PolicyBuilder{}, fmt.Errorf("%s has no digest: %w", image, err)
	}
	artifact := verify.WithArtifactDigest("sha256", digest)
	if p.Key != nil {
		material, err := keyMaterial(p.Key)
		if err != nil {
			return nil, verify.PolicyBuilder{}, err
		}
		v, err := verify.NewVerifier(material, verify.WithNoObserverTimestamps())
		return v, verify.NewPolicy(artifact, verify.WithKey()), err
	}
	if p.Root == nil || p.Identity.Subject == "" || p.Identity.Issuer == "" {
		return nil, verify.PolicyBuilder{}, errors.New("verifying takes a trusted root with the signer's subject and issuer, or a key")
	}
	options := []verify.VerifierOption{verify.WithObserverTimestamps(1)}
	if len(p.Root.RekorLogs()) > 0 {
		options = append(options, verify.WithTransparencyLog(1))
	}
	if len(p.Root.CTLogs()) > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	v, err := verify.NewVerifier(p.Root, options...)
	if err != nil {
		return nil, verify.PolicyBuilder{}, fmt.Errorf("using the trusted root: %w", err)
	}
	identity, err := verify.NewShortCertificateIdentity(p.Identity.Issuer, "", p.Identity.Subject, "")
	if err != nil {
		return nil, verify.PolicyBuilder{}, fmt.Errorf("using the expected identity: %w", err)
	}
	return v, verify.NewPolicy(artifact, verify.WithCertificateIdentity(identity)), nil
}

// WithKey is the policy that believes the holder of a key.
func WithKey(key crypto.PublicKey) (Policy, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return Policy{}, fmt.Errorf("using the key: %w", err)
	}
	fingerprint := sha256.Sum256(der)
	return Policy{Key: key, Identity: Identity{Key: "sha256:" + hex.EncodeToString(fingerprint[:])}}, nil
}

func keyMaterial(key crypto.PublicKey) (root.TrustedMaterial, error) {
	verifier, err := signature.LoadVerifier(key, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("using the key: %w", err)
	}
	expiring := root.NewExpiringKey(verifier, time.Time{}, time.Time{})
	return root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return expiring, nil }), nil
}

// parse reads the payload that was verified. A signature must name the repository.
func parse(payload []byte, image name.Digest) (Statement, error) {
	var raw struct {
		Subject []struct {
			Digest      map[string]string `json:"digest"`
			Annotations map[string]any    `json:"annotations"`
		} `json:"subject"`
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal(payload, &raw); err != nil {
		return Statement{}, err
	}
	statement := Statement{PredicateType: raw.PredicateType, Predicate: raw.Predicate, Payload: payload}
	for _, subject := range raw.Subject {
		if "sha256:"+subject.Digest["sha256"] != image.DigestStr() {
			continue
		}
		statement.Annotations = map[string]string{}
		for key, value := range subject.Annotations {
			statement.Annotations[key] = fmt.Sprint(value)
		}
	}
	if statement.Annotations == nil {
		return Statement{}, errors.New("it is about another digest")
	}
	if have := statement.Annotations[RepositoryAnnotation]; statement.PredicateType == Signature && have != image.Context().String() {
		return Statement{}, fmt.Errorf("the signature is for the repository %q, not for this one", have)
	}
	return statement, nil
}
