package verify

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Trust is what proves a signature, whoever made it: a trusted root or a key. Whether to
// believe the signer is the caller's to decide.
type Trust struct {
	// Root is for keyless signatures. What it knows of is demanded: a log entry where it
	// knows a log, a certificate's timestamp where it knows a certificate log, and a
	// witnessed time always, since certificates are valid for minutes.
	Root root.TrustedMaterial
	// Key, if set, is the one that must have signed. Nobody need have witnessed when.
	Key crypto.PublicKey
	// Hash is what the key signs; zero is SHA-256.
	Hash crypto.Hash
	// Logged demands of the key too that a log of the root has an entry.
	Logged bool
	// IgnoreSCT does without the certificate's timestamp.
	IgnoreSCT bool
}

// Bundle verifies one bundle about an image. The statement's signer is who the certificate
// says; of a key it is not said.
func (t Trust) Bundle(raw []byte, image name.Digest) (Statement, error) {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return Statement{}, fmt.Errorf("reading a bundle of %s: %w", image, err)
	}
	return t.envelope(&b, image)
}

// envelope verifies a bundle that holds an in-toto statement.
func (t Trust) envelope(b *bundle.Bundle, image name.Digest) (Statement, error) {
	hex, err := hex.DecodeString(strings.TrimPrefix(image.DigestStr(), "sha256:"))
	if err != nil {
		return Statement{}, fmt.Errorf("%s has no digest: %w", image, err)
	}
	result, err := t.verify(b, verify.WithArtifactDigest("sha256", hex))
	if err != nil {
		return Statement{}, fmt.Errorf("verifying a bundle of %s: %w", image, err)
	}
	statement, err := parse(b.GetDsseEnvelope().GetPayload(), image)
	if err != nil {
		return Statement{}, fmt.Errorf("reading a statement about %s: %w", image, err)
	}
	statement.witnessed(result)
	return statement, nil
}

// witnessed takes over who signed, and the first time that somebody saw it.
func (s *Statement) witnessed(result *verify.VerificationResult) {
	if result.Signature != nil && result.Signature.Certificate != nil {
		certificate := result.Signature.Certificate
		s.Signer = Identity{Subject: certificate.SubjectAlternativeName, Issuer: certificate.Issuer}
	}
	for _, seen := range result.VerifiedTimestamps {
		if s.Time.IsZero() || seen.Timestamp.Before(s.Time) {
			s.Time = seen.Timestamp.UTC()
		}
	}
}

func (t Trust) verify(b *bundle.Bundle, artifact verify.ArtifactPolicyOption) (*verify.VerificationResult, error) {
	verifier, signer, err := t.verifier()
	if err != nil {
		return nil, err
	}
	return verifier.Verify(b, verify.NewPolicy(artifact, signer))
}

func (t Trust) verifier() (*verify.Verifier, verify.PolicyOption, error) {
	if t.Key != nil {
		v, err := t.keyVerifier()
		return v, verify.WithKey(), err
	}
	if t.Root == nil {
		return nil, nil, errors.New("verifying takes a trusted root or a key")
	}
	options := []verify.VerifierOption{verify.WithObserverTimestamps(1)}
	if len(t.Root.RekorLogs()) > 0 {
		options = append(options, verify.WithTransparencyLog(1))
	}
	if len(t.Root.CTLogs()) > 0 && !t.IgnoreSCT {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	v, err := verify.NewVerifier(t.Root, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("using the trusted root: %w", err)
	}
	// The identity is compared by the caller, who says whose it is instead.
	return v, verify.WithoutIdentitiesUnsafe(), nil
}

func (t Trust) keyVerifier() (*verify.Verifier, error) {
	hash := t.Hash
	if hash == 0 {
		hash = crypto.SHA256
	}
	loaded, err := signature.LoadVerifier(t.Key, hash)
	if err != nil {
		return nil, fmt.Errorf("using the key: %w", err)
	}
	expiring := root.NewExpiringKey(loaded, time.Time{}, time.Time{})
	key := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return expiring, nil })
	if !t.Logged {
		return verify.NewVerifier(key, verify.WithNoObserverTimestamps())
	}
	if t.Root == nil || len(t.Root.RekorLogs()) == 0 {
		return nil, errors.New("an entry in a log is demanded, and the trusted root knows no log")
	}
	return verify.NewVerifier(keyWithLogs{key, t.Root}, verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1))
}

// keyWithLogs has the key of one and the logs of the other.
type keyWithLogs struct {
	*root.TrustedPublicKeyMaterial
	logs root.TrustedMaterial
}

func (k keyWithLogs) RekorLogs() map[string]*root.TransparencyLog { return k.logs.RekorLogs() }

func (k keyWithLogs) TimestampingAuthorities() []root.TimestampingAuthority {
	return k.logs.TimestampingAuthorities()
}

// parse reads the payload that was verified.
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
	return statement, nil
}

// message verifies a bundle that holds a signature of bytes that lie beside it.
func (t Trust) message(b *bundle.Bundle, payload []byte) (*verify.VerificationResult, error) {
	return t.verify(b, verify.WithArtifact(bytes.NewReader(payload)))
}
