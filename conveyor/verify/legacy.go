package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"

	"github.com/omnivision/omnivision/conveyor/referrers"
)

// What cosign up to version 2 keeps beside the payload, as annotations of its layer:
// https://github.com/sigstore/cosign/blob/v2.5.0/specs/SIGNATURE_SPEC.md.
const (
	signatureAnnotation   = "dev.cosignproject.cosign/signature"
	certificateAnnotation = "dev.sigstore.cosign/certificate"
	logAnnotation         = "dev.sigstore.cosign/bundle"
	timestampAnnotation   = "dev.sigstore.cosign/rfc3161timestamp"

	simpleSigningType = "cosign container image signature"
)

// Legacy verifies a signature or an attestation of cosign's older format about an image. It is told as
// the statement that the newer format would have made of it: the payload's
// docker-reference is the repository, unless the signer named one as an annotation.
func (t Trust) Legacy(layer referrers.Legacy, image name.Digest) (Statement, error) {
	fail := func(err error) (Statement, error) {
		return Statement{}, fmt.Errorf("verifying a legacy signature of %s: %w", image, err)
	}
	material, err := legacyMaterial(layer.Annotations)
	if err != nil {
		return fail(err)
	}
	b := &protobundle.Bundle{MediaType: "application/vnd.dev.sigstore.bundle+json;version=0.1", VerificationMaterial: material}
	if layer.Attestation {
		return t.legacyAttestation(b, layer.Payload, image)
	}
	signed, err := base64.StdEncoding.DecodeString(layer.Annotations[signatureAnnotation])
	if err != nil || len(signed) == 0 {
		return fail(errors.New("there is no signature beside its payload"))
	}
	sum := sha256.Sum256(layer.Payload)
	b.Content = &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
		MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]}, Signature: signed,
	}}
	checked, err := bundle.NewBundle(b)
	if err != nil {
		return fail(err)
	}
	result, err := t.message(checked, layer.Payload)
	if err != nil {
		return fail(err)
	}
	statement, err := simpleSigning(layer.Payload, image)
	if err != nil {
		return fail(err)
	}
	statement.witnessed(result)
	return statement, nil
}

func (t Trust) legacyAttestation(b *protobundle.Bundle, payload []byte, image name.Digest) (Statement, error) {
	var envelope struct {
		PayloadType string `json:"payloadType"`
		Payload     []byte `json:"payload"`
		Signatures  []struct {
			Sig []byte `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(payload, &envelope); err != nil {
		return Statement{}, fmt.Errorf("reading a legacy attestation of %s: %w", image, err)
	}
	if len(envelope.Signatures) != 1 {
		return Statement{}, fmt.Errorf("reading a legacy attestation of %s: it has %d signatures, want one", image, len(envelope.Signatures))
	}
	b.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
		PayloadType: envelope.PayloadType, Payload: envelope.Payload,
		Signatures: []*protodsse.Signature{{Sig: envelope.Signatures[0].Sig}},
	}}
	checked, err := bundle.NewBundle(b)
	if err != nil {
		return Statement{}, fmt.Errorf("reading a legacy attestation of %s: %w", image, err)
	}
	return t.envelope(checked, image)
}

// simpleSigning reads the payload that was verified:
// https://github.com/containers/image/blob/main/docs/containers-signature.5.md.
func simpleSigning(payload []byte, image name.Digest) (Statement, error) {
	var signed struct {
		Critical struct {
			Identity struct {
				DockerReference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
		Optional map[string]any `json:"optional"`
	}
	if err := json.Unmarshal(payload, &signed); err != nil {
		return Statement{}, fmt.Errorf("reading the payload: %w", err)
	}
	switch {
	case signed.Critical.Type != simpleSigningType:
		return Statement{}, fmt.Errorf("it is a %q, not a %q", signed.Critical.Type, simpleSigningType)
	case signed.Critical.Image.Digest != image.DigestStr():
		return Statement{}, errors.New("it is about another digest")
	}
	statement := Statement{PredicateType: Signature, Predicate: json.RawMessage("{}"), Annotations: map[string]string{}, Payload: payload}
	if reference := signed.Critical.Identity.DockerReference; reference != "" {
		statement.Annotations[RepositoryAnnotation] = reference
		if ref, err := name.ParseReference(reference); err == nil {
			statement.Annotations[RepositoryAnnotation] = ref.Context().String()
		}
	}
	for key, value := range signed.Optional {
		statement.Annotations[key] = fmt.Sprint(value)
	}
	return statement, nil
}

// legacyMaterial is what the annotations say of who signed and who witnessed it.
func legacyMaterial(annotations map[string]string) (*protobundle.VerificationMaterial, error) {
	material := &protobundle.VerificationMaterial{
		Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}},
	}
	if text := annotations[certificateAnnotation]; text != "" {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("its certificate is not PEM")
		}
		material.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
			Certificates: []*protocommon.X509Certificate{{RawBytes: block.Bytes}},
		}}
	}
	if text := annotations[logAnnotation]; text != "" {
		entry, err := legacyEntry(text)
		if err != nil {
			return nil, fmt.Errorf("reading its entry in the log: %w", err)
		}
		material.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if text := annotations[timestampAnnotation]; text != "" {
		var stamp struct{ SignedRFC3161Timestamp []byte }
		if err := json.Unmarshal([]byte(text), &stamp); err != nil {
			return nil, fmt.Errorf("reading its timestamp: %w", err)
		}
		material.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}},
		}
	}
	return material, nil
}

func legacyEntry(text string) (*protorekor.TransparencyLogEntry, error) {
	var entry struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal([]byte(text), &entry); err != nil {
		return nil, err
	}
	var kind struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(entry.Payload.Body, &kind); err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(entry.Payload.LogID)
	if err != nil {
		return nil, err
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: entry.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: id},
		KindVersion: &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion}, IntegratedTime: entry.Payload.IntegratedTime,
		InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: entry.SignedEntryTimestamp}, CanonicalizedBody: entry.Payload.Body,
	}, nil
}
