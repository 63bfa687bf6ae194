package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorclient "github.com/sigstore/rekor-tiles/v2/pkg/client"
	"github.com/sigstore/rekor-tiles/v2/pkg/client/write"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/internal/tooltime"
)

// payloadType is that of in-toto statements.
const payloadType = "application/vnd.in-toto+json"

// Signer signs statements by one identity.
type Signer struct {
	keypair sign.Keypair
	// options are what a bundle is made with, new for each: statements are signed at the same time,
	// and sigstore-go's clients are not made for that.
	options func() (sign.BundleOptions, error)
	policy  verify.Policy
}

// Services are those of a Sigstore, public or one's own.
type Services struct {
	// Config says where they are.
	Config *root.SigningConfig
	// Root is what their answers are verified with, before anything is published.
	Root root.TrustedMaterial
	// Transport carries the requests, but for those to the log, whose client takes none; nil is
	// http.DefaultTransport.
	Transport http.RoundTripper
}

// Limits of one request; the log answers when the entry is in its tree.
const (
	serviceTimeout = 30 * time.Second
	logTimeout     = 90 * time.Second
	retries        = 3
)

// Keyless returns a signer by the identity of a token that the job was lent. One
// certificate, valid for minutes, serves all statements of a release.
func Keyless(ctx context.Context, services Services, token string) (*Signer, error) {
	if services.Config == nil || services.Root == nil {
		return nil, errors.New("signing without a key takes a signing config and a trusted root")
	}
	if token == "" {
		return nil, errors.New("signing without a key takes an identity token: in GitHub Actions give the job the permission id-token: write")
	}
	now := time.Now()
	fulcio, err := root.SelectService(services.Config.FulcioCertificateAuthorityURLs(), sign.FulcioAPIVersions, now)
	if err != nil {
		return nil, fmt.Errorf("finding a certificate authority in the signing config: %w", err)
	}
	keypair, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		return nil, fmt.Errorf("making a key for one release: %w", err)
	}
	provider := sign.NewFulcio(&sign.FulcioOptions{BaseURL: fulcio.URL, Timeout: serviceTimeout, Retries: retries, Transport: services.Transport})
	waited := tooltime.Begin(ctx, "Sigstore")
	der, err := provider.GetCertificate(ctx, keypair, &sign.CertificateProviderOptions{IDToken: token})
	waited()
	if err != nil {
		return nil, fmt.Errorf("getting a certificate from %s: %w", fulcio.URL, err)
	}
	identity, err := identityOf(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of %s: %w", fulcio.URL, err)
	}
	witnesses, err := findWitnesses(services, now)
	if err != nil {
		return nil, err
	}
	return &Signer{
		keypair: keypair,
		options: func() (sign.BundleOptions, error) {
			options := sign.BundleOptions{CertificateProvider: issued(der), CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: token}}
			return options, witnesses.add(&options)
		},
		policy: verify.Policy{Root: services.Root, Identity: identity},
	}, nil
}

// witnesses are the timestamp authorities and logs that the signing config demands.
type witnesses struct {
	authorities, logs []root.Service
	transport         http.RoundTripper
}

func findWitnesses(services Services, now time.Time) (witnesses, error) {
	config, w := services.Config, witnesses{transport: services.Transport}
	var err error
	w.authorities, err = root.SelectServices(config.TimestampAuthorityURLs(), config.TimestampAuthorityURLsConfig(), sign.TimestampAuthorityAPIVersions, now)
	if err != nil && len(config.TimestampAuthorityURLs()) > 0 {
		return w, fmt.Errorf("finding a timestamp authority in the signing config: %w", err)
	}
	w.logs, err = root.SelectServices(config.RekorLogURLs(), config.RekorLogURLsConfig(), sign.RekorAPIVersions, now)
	if err != nil && len(config.RekorLogURLs()) > 0 {
		return w, fmt.Errorf("finding a transparency log in the signing config: %w", err)
	}
	return w, nil
}

func (w witnesses) add(options *sign.BundleOptions) error {
	for _, authority := range w.authorities {
		options.TimestampAuthorities = append(options.TimestampAuthorities, sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{
			URL: authority.URL, Timeout: serviceTimeout, Retries: retries, Transport: w.transport,
		}))
	}
	for _, log := range w.logs {
		rekor := &sign.RekorOptions{BaseURL: log.URL, Timeout: logTimeout, Retries: retries, Version: log.MajorAPIVersion}
		if log.MajorAPIVersion == 2 { // its client is given no timeout by sigstore-go
			client, err := write.NewWriter(log.URL, rekorclient.WithTimeout(logTimeout))
			if err != nil {
				return fmt.Errorf("using the log %s: %w", log.URL, err)
			}
			rekor.ClientV2 = client
		}
		options.TransparencyLogs = append(options.TransparencyLogs, sign.NewRekor(rekor))
	}
	return nil
}

// issued is a certificate that is there already.
type issued []byte

// GetCertificate implements sign.CertificateProvider.
func (c issued) GetCertificate(context.Context, sign.Keypair, *sign.CertificateProviderOptions) ([]byte, error) {
	return c, nil
}

func identityOf(der []byte) (verify.Identity, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return verify.Identity{}, err
	}
	summary, err := certificate.SummarizeCertificate(cert)
	if err != nil {
		return verify.Identity{}, err
	}
	return verify.Identity{Subject: summary.SubjectAlternativeName, Issuer: summary.Issuer}, nil
}

// WithKey returns a signer by a private key: PKCS #8 in PEM, of the curve P-256. It is
// for places that no Sigstore can be reached from: nobody witnesses when it signed, and
// whoever has the key is the signer.
func WithKey(pemBytes []byte) (*Signer, error) {
	block, _ := pem.Decode(pemBytes)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("the signing key is no PEM block PRIVATE KEY: make one with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return nil, errors.New("the signing key is not of the curve P-256: make one with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	fingerprint := sha256.Sum256(der)
	policy, err := verify.WithKey(private.Public())
	return &Signer{
		options: func() (sign.BundleOptions, error) { return sign.BundleOptions{}, nil },
		keypair: key{private: private, der: der, hint: []byte(base64.StdEncoding.EncodeToString(fingerprint[:]))},
		policy:  policy,
	}, err
}

// Identity is who signs.
func (s *Signer) Identity() verify.Identity { return s.policy.Identity }

// Policy believes what this signer signed.
func (s *Signer) Policy() verify.Policy { return s.policy }

// sign returns a bundle with the signed statement.
func (s *Signer) sign(ctx context.Context, statement []byte) ([]byte, error) {
	options, err := s.options()
	if err != nil {
		return nil, err
	}
	options.Context = ctx
	if options.CertificateProvider != nil {
		// The log's client takes no transport, so that all of it is counted as the
		// witnesses' time; the signature itself takes a thousandth of that.
		defer tooltime.Begin(ctx, "Sigstore")()
	}
	signed, err := sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: payloadType}, s.keypair, options)
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(signed)
}

// key is a sign.Keypair from a file.
type key struct {
	private *ecdsa.PrivateKey
	der     []byte // of the public part
	hint    []byte
}

func (k key) GetHashAlgorithm() protocommon.HashAlgorithm {
	return protocommon.HashAlgorithm_SHA2_256
}

func (k key) GetSigningAlgorithm() protocommon.PublicKeyDetails {
	return protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256
}

func (k key) GetHint() []byte { return k.hint }

func (k key) GetKeyAlgorithm() string { return "ECDSA" }

func (k key) GetPublicKey() crypto.PublicKey { return k.private.Public() }

func (k key) GetPublicKeyPem() (string, error) {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der})), nil
}

func (k key) SignData(_ context.Context, data []byte) (signature, digest []byte, err error) {
	sum := sha256.Sum256(data)
	signature, err = k.private.Sign(rand.Reader, sum[:], crypto.SHA256)
	return signature, sum[:], err
}
