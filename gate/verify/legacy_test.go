package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pushed is an image in a registry of its own.
func pushed(t testing.TB) name.Digest {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	one, err := random.Image(20, 1)
	check(t, err)
	digest, err := one.Digest()
	check(t, err)
	repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://") + "/acme/app")
	check(t, err)
	check(t, remote.Write(repository.Tag("1"), one))
	return repository.Digest(digest.String())
}

// payload is what cosign signs of an image for a repository.
func payload(image name.Digest, repository string) []byte {
	return []byte(fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":{"version":"1.2.3"}}`, repository, image.DigestStr()))
}

// attach writes a legacy signature or attestation beside an image, as cosign 2 does.
func attach(t testing.TB, image name.Digest, suffix string, mediaType types.MediaType, payload []byte, annotations map[string]string) {
	t.Helper()
	signed, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(payload, mediaType), Annotations: annotations})
	check(t, err)
	check(t, remote.Write(image.Context().Tag(strings.Replace(image.DigestStr(), ":", "-", 1)+suffix), signed))
}

// prove asks for one policy with these authorities.
func prove(t testing.TB, image name.Digest, roots [][]byte, authorities string) Finding {
	t.Helper()
	set, err := policy.Compile(policy.Sources{TrustedRoots: roots, ClusterImagePolicies: []policy.Document{{Name: "p", Raw: []byte(
		"apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec:\n  images: [{glob: \"**\"}]\n  authorities: " + authorities)}}})
	check(t, err)
	check(t, set.Usable())
	facts, err := Prove(t.Context(), image, set.Match(image.String(), image, nil), nil, nil)
	check(t, err)
	return facts.Policies[0]
}

func keyAuthority(t testing.TB, key crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	check(t, err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return "[{name: a, key: {data: \"" + strings.ReplaceAll(text, "\n", "\\n") + "\"}}]\n"
}

func TestLegacySignatureByAKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	for name, c := range map[string]struct {
		repository string // that is signed for; empty is this one
		payload    func([]byte) []byte
		key        crypto.PublicKey
		want       gate.Reason
	}{
		"signed":                      {},
		"by another key":              {key: other.Public(), want: gate.WrongKey},
		"for another repository":      {repository: "ghcr.io/other/app", want: gate.OtherRepository},
		"payload changed afterwards":  {payload: func(p []byte) []byte { return append(p, ' ') }, want: gate.WrongKey},
		"signature of another digest": {payload: func([]byte) []byte { return nil }, want: gate.WrongKey},
	} {
		t.Run(name, func(t *testing.T) {
			image := pushed(t)
			repository := c.repository
			if repository == "" {
				repository = image.Context().Name()
			}
			text := payload(image, repository)
			if c.payload != nil && c.payload(nil) == nil {
				text = payload(image.Context().Digest("sha256:"+strings.Repeat("0", 64)), repository)
			}
			sum := sha256.Sum256(text)
			signed, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
			check(t, err)
			if c.payload != nil && c.payload(nil) != nil {
				text = c.payload(text)
			}
			attach(t, image, ".sig", referrers.SimpleSigningType, text, map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signed)})
			public := c.key
			if public == nil {
				public = key.Public()
			}
			f := prove(t, image, nil, keyAuthority(t, public))
			if f.Satisfied != (c.want == "") || f.Reason != c.want {
				t.Errorf("it is %+v, want %q", f, c.want)
			}
			if c.want == "" && (len(f.Versions) != 1 || f.Versions[0] != "1.2.3" || !f.Named) {
				t.Errorf("it states %+v", f)
			}
		})
	}
}

// trustedRoot is that of sigstore-go's virtual Sigstore, without its CT log, which certifies nothing.
func trustedRoot(t testing.TB, s *ca.VirtualSigstore) []byte {
	t.Helper()
	logs := s.RekorLogs()
	for id, log := range logs { // whose ID it gives in hexadecimal
		var err error
		log.ID, err = hex.DecodeString(id)
		check(t, err)
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, s.FulcioCertificateAuthorities(), nil, s.TimestampingAuthorities(), logs)
	check(t, err)
	raw, err := trusted.MarshalJSON()
	check(t, err)
	return raw
}

const (
	workflow = "https://github.com/acme/app/.github/workflows/build.yaml@refs/heads/main"
	issuer   = "https://token.actions.githubusercontent.com"
)

// legacyAnnotations are what cosign 2 keeps of who signed and of the log's entry.
func legacyAnnotations(t testing.TB, s *ca.VirtualSigstore, entity *ca.TestEntity) map[string]string {
	t.Helper()
	content, err := entity.VerificationContent()
	check(t, err)
	signed, err := entity.SignatureContent()
	check(t, err)
	entries, err := entity.TlogEntries()
	check(t, err)
	entry := entries[0].TransparencyLogEntry()
	promise, err := s.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(entry.GetCanonicalizedBody()), IntegratedTime: entry.GetIntegratedTime(),
		LogIndex: entry.GetLogIndex(), LogID: hex.EncodeToString(entry.GetLogId().GetKeyId()),
	})
	check(t, err)
	bundle, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": promise,
		"Payload": map[string]any{
			"body": entry.GetCanonicalizedBody(), "integratedTime": entry.GetIntegratedTime(), "logIndex": entry.GetLogIndex(), "logID": hex.EncodeToString(entry.GetLogId().GetKeyId()),
		},
	})
	check(t, err)
	return map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signed.Signature()),
		"dev.sigstore.cosign/certificate":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: content.Certificate().Raw})),
		"dev.sigstore.cosign/bundle":         string(bundle),
	}
}

func keyless(subject string) string {
	return "[{name: a, keyless: {identities: [{issuer: \"" + issuer + "\", subject: \"" + subject + "\"}]}, ctlog: {}}]\n"
}

func TestLegacySignatureWithoutAKey(t *testing.T) {
	s, err := ca.NewVirtualSigstore()
	check(t, err)
	image := pushed(t)
	text := payload(image, image.Context().Name())
	entity, err := s.SignAtTime(workflow, issuer, text, time.Now().Add(time.Minute))
	check(t, err)
	annotations := legacyAnnotations(t, s, entity)
	attach(t, image, ".sig", referrers.SimpleSigningType, text, annotations)
	roots := [][]byte{trustedRoot(t, s)}
	if f := prove(t, image, roots, keyless(workflow)); !f.Satisfied {
		t.Errorf("it is %+v", f)
	}
	if f := prove(t, image, roots, keyless(strings.Replace(workflow, "heads/main", "pull/1/merge", 1))); f.Satisfied || f.Reason != gate.WrongIdentity {
		t.Errorf("for another identity it is %+v", f)
	}
	// Without the log's word nobody knows when it was signed.
	delete(annotations, "dev.sigstore.cosign/bundle")
	attach(t, image, ".sig", referrers.SimpleSigningType, text, annotations)
	if f := prove(t, image, roots, keyless(workflow)); f.Satisfied {
		t.Errorf("without a log entry it is %+v", f)
	}
}

func TestLegacyAttestation(t *testing.T) {
	s, err := ca.NewVirtualSigstore()
	check(t, err)
	image := pushed(t)
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"name":"x","digest":{"sha256":%q}}],"predicateType":"https://slsa.dev/provenance/v0.2","predicate":{}}`, strings.TrimPrefix(image.DigestStr(), "sha256:"))
	entity, err := s.AttestAtTime(workflow, issuer, []byte(statement), time.Now().Add(time.Minute), false)
	check(t, err)
	content, err := entity.SignatureContent()
	check(t, err)
	envelope, err := json.Marshal(content.EnvelopeContent().RawEnvelope())
	check(t, err)
	annotations := legacyAnnotations(t, s, entity)
	annotations["dev.cosignproject.cosign/signature"] = ""
	attach(t, image, ".att", "application/vnd.dsse.envelope.v1+json", envelope, annotations)
	attested := func(predicate string) string {
		return strings.Replace(keyless(workflow), "ctlog: {}", "ctlog: {}, attestations: [{name: p, predicateType: "+predicate+"}]", 1)
	}
	roots := [][]byte{trustedRoot(t, s)}
	if f := prove(t, image, roots, attested("slsaprovenance")); !f.Satisfied {
		t.Errorf("it is %+v", f)
	}
	if f := prove(t, image, roots, attested("vuln")); f.Satisfied || f.Reason != gate.NoAttestation {
		t.Errorf("for another predicate it is %+v", f)
	}
	if f := prove(t, image, roots, strings.Replace(attested("slsaprovenance"), "name: a", "name: a, signatureFormat: bundle", 1)); f.Satisfied {
		t.Errorf("although only bundles are wanted it is %+v", f)
	}
}

// A key with ctlog wants the log's word too.
func TestKeyThatMustBeLogged(t *testing.T) {
	s, err := ca.NewVirtualSigstore()
	check(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	image := pushed(t)
	text := payload(image, image.Context().Name())
	sum := sha256.Sum256(text)
	signed, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	check(t, err)
	attach(t, image, ".sig", referrers.SimpleSigningType, text, map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signed)})
	logged := strings.Replace(keyAuthority(t, key.Public()), "}}]", "}, ctlog: {}}]", 1)
	if f := prove(t, image, [][]byte{trustedRoot(t, s)}, logged); f.Satisfied {
		t.Errorf("without a log entry it is %+v", f)
	}
	if f := prove(t, image, nil, keyAuthority(t, key.Public())); !f.Satisfied {
		t.Errorf("where no log is asked for it is %+v", f)
	}
}

func FuzzLegacySignature(f *testing.F) {
	image, err := name.NewDigest("ghcr.io/acme/app@sha256:" + strings.Repeat("a", 64))
	check(f, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(f, err)
	set, err := policy.Compile(policy.Sources{ClusterImagePolicies: []policy.Document{{Name: "p", Raw: []byte(
		"apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec:\n  images: [{glob: \"**\"}]\n  authorities: " + keyAuthority(f, key.Public()))}}})
	check(f, err)
	signer := set.Match(image.String(), image, nil).Images[0].Authorities[0]
	f.Add(payload(image, "ghcr.io/acme/app"), "AAAA", "", `{"SignedEntryTimestamp":"","Payload":{"body":"e30="}}`, "", true)
	f.Add([]byte(`{"payloadType":"x","payload":"e30=","signatures":[{"sig":"AAAA"}]}`), "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "", `{"SignedRFC3161Timestamp":"AAAA"}`, false)
	f.Fuzz(func(t *testing.T, text []byte, signature, certificate, log, stamp string, attestation bool) {
		layer := referrers.Legacy{Payload: text, Attestation: attestation, Annotations: map[string]string{
			"dev.cosignproject.cosign/signature": signature, "dev.sigstore.cosign/certificate": certificate, "dev.sigstore.cosign/bundle": log, "dev.sigstore.cosign/rfc3161timestamp": stamp,
		}}
		if _, err := signer.Trusts[0].Legacy(layer, image); err == nil {
			t.Errorf("%q is believed", text)
		}
	})
}
