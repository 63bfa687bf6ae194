package signtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
)

// Sigstore is a certificate authority and a timestamp authority that answer over HTTP,
// by the authorities of sigstore-go's own tests.
type Sigstore struct {
	root.BaseTrustedMaterial

	fulcio    *root.FulcioCertificateAuthority
	fulcioKey *ecdsa.PrivateKey
	stamps    *root.SigstoreTimestampingAuthority
	stampsKey *ecdsa.PrivateKey
	Config    *root.SigningConfig

	Issuer       string
	Certificates int
	Fail         bool
}

// FulcioCertificateAuthorities implements root.TrustedMaterial.
func (s *Sigstore) FulcioCertificateAuthorities() []root.CertificateAuthority {
	return []root.CertificateAuthority{s.fulcio}
}

// TimestampingAuthorities implements root.TrustedMaterial.
func (s *Sigstore) TimestampingAuthorities() []root.TimestampingAuthority {
	return []root.TimestampingAuthority{s.stamps}
}

// NewSigstore starts one.
func NewSigstore(t testing.TB) *Sigstore {
	t.Helper()
	rootCert, rootKey, err := ca.GenerateRootCa()
	check(t, err)
	fulcio, fulcioKey, err := ca.GenerateFulcioIntermediate(rootCert, rootKey)
	check(t, err)
	stamps, stampsKey, err := ca.GenerateTSAIntermediate(rootCert, rootKey)
	check(t, err)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	leaf, err := ca.GenerateTSALeafCert(time.Now().Add(-time.Minute), leafKey, stamps, stampsKey)
	check(t, err)
	begin, end := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	s := &Sigstore{
		fulcio:    &root.FulcioCertificateAuthority{Root: rootCert, Intermediates: []*x509.Certificate{fulcio}, ValidityPeriodStart: begin, ValidityPeriodEnd: end},
		stamps:    &root.SigstoreTimestampingAuthority{Root: rootCert, Intermediates: []*x509.Certificate{stamps}, Leaf: leaf, ValidityPeriodStart: begin, ValidityPeriodEnd: end},
		fulcioKey: fulcioKey, stampsKey: leafKey, Issuer: "https://token.actions.githubusercontent.com",
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v2/signingCert", s.answer(s.certificate))
	mux.HandleFunc("POST /api/v1/timestamp", s.answer(s.stamp))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.Config, err = root.NewSigningConfigFromJSON([]byte(fmt.Sprintf(`{
		"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
		"caUrls": [{"url": %q, "majorApiVersion": 1, "validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": "test"}],
		"tsaUrls": [{"url": %q, "majorApiVersion": 1, "validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": "test"}],
		"tsaConfig": {"selector": "ANY"}, "rekorTlogConfig": {"selector": "ANY"}}`, server.URL, server.URL+"/api/v1/timestamp")))
	check(t, err)
	return s
}

func (s *Sigstore) answer(do func(*http.Request) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.Fail {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		out, err := do(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = w.Write(out)
	}
}

// public is a signer of which only the public half is known.
type public struct{ key crypto.PublicKey }

func (p public) Public() crypto.PublicKey { return p.key }
func (p public) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only the public half is known")
}

func (s *Sigstore) certificate(r *http.Request) ([]byte, error) {
	var ask struct {
		PublicKeyRequest struct{ PublicKey struct{ Content string } }
	}
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(ask.PublicKeyRequest.PublicKey.Content))
	if block == nil {
		return nil, errors.New("no key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ".")[1])
	if err != nil {
		return nil, err
	}
	var who struct{ Sub string }
	if err := json.Unmarshal(claims, &who); err != nil {
		return nil, err
	}
	s.Certificates++
	leaf, err := ca.GenerateLeafCert(who.Sub, s.Issuer, time.Now().Add(-time.Minute), public{key}, s.fulcio.Intermediates[0], s.fulcioKey)
	if err != nil {
		return nil, err
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))
	return json.Marshal(map[string]any{"signedCertificateEmbeddedSct": map[string]any{"chain": map[string]any{"certificates": []string{text}}}})
}

func (s *Sigstore) stamp(r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	ask, err := timestamp.ParseRequest(raw)
	if err != nil {
		return nil, err
	}
	stamp := timestamp.Timestamp{
		HashAlgorithm: ask.HashAlgorithm, HashedMessage: ask.HashedMessage, Time: time.Now(),
		Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, ExtraExtensions: ask.Extensions,
	}
	return stamp.CreateResponseWithOpts(s.stamps.Leaf, s.stampsKey, crypto.SHA256)
}

// Token is one of a workflow's, as far as it is read here; nobody verifies it.
func Token(subject string) string {
	payload := base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"sub":%q}`, subject)))
	return "e30." + payload + ".c2ln"
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TrustedRoot is its trusted_root.json.
func (s *Sigstore) TrustedRoot(t testing.TB) []byte {
	t.Helper()
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, s.FulcioCertificateAuthorities(), nil, s.TimestampingAuthorities(), nil)
	check(t, err)
	raw, err := trusted.MarshalJSON()
	check(t, err)
	return raw
}
