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
	"github.com/sigstore/sigstore-go/pkg/root"

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

// Bundle verifies one bundle against an image: that it is by the policy's identity, and
// if it is a signature, for the image's repository.
func (p Policy) Bundle(raw []byte, image name.Digest) (Statement, error) {
	if p.Key == nil && (p.Root == nil || p.Identity.Subject == "" || p.Identity.Issuer == "") {
		return Statement{}, errors.New("verifying takes a trusted root with the signer's subject and issuer, or a key")
	}
	statement, err := Trust{Root: p.Root, Key: p.Key}.Bundle(raw, image)
	if err != nil {
		return Statement{}, err
	}
	if p.Key == nil && statement.Signer != p.Identity {
		return Statement{}, fmt.Errorf("verifying a bundle of %s: it is signed by %s, not by %s", image, statement.Signer, p.Identity)
	}
	if p.Key != nil {
		statement.Signer = p.Identity
	}
	if statement.PredicateType == Signature && !statement.Names(image.Context()) {
		return Statement{}, fmt.Errorf("reading a statement about %s: the signature is for the repository %q, not for this one", image, statement.Annotations[RepositoryAnnotation])
	}
	return statement, nil
}

// Names reports whether a statement says that it is for a repository.
func (s Statement) Names(repository name.Repository) bool {
	named, err := name.NewRepository(s.Annotations[RepositoryAnnotation])
	return err == nil && named.Name() == repository.Name()
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
