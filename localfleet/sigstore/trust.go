package sigstore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"

	prototrustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/sigstore-go/pkg/root"
)

// operator is whom the signing config names for each service.
const operator = "omnivision.invalid"

// writeTrust writes what clients need, as `cosign trusted-root create` and `cosign signing-config create` do.
func (s Server) writeTrust(k keys) error {
	trusted, err := s.trustedRoot(k)
	if err == nil {
		err = s.writeJSON(s.TrustedRootFile(), trusted)
	}
	if err != nil {
		return fmt.Errorf("writing the trusted root: %w", err)
	}
	config, err := s.signingConfig(k)
	if err == nil {
		err = s.writeJSON(s.SigningConfigFile(), config)
	}
	if err != nil {
		return fmt.Errorf("writing the signing config: %w", err)
	}
	return nil
}

func (s Server) trustedRoot(k keys) (*root.TrustedRoot, error) {
	// A log of Rekor's second version is known by the name in its checkpoints together with its key.
	_, id, err := note.KeyHash(s.Hosts.Rekor, k.rekor)
	if err != nil {
		return nil, err
	}
	fulcio := &root.FulcioCertificateAuthority{
		Root: k.fulcio[1], Intermediates: []*x509.Certificate{k.fulcio[0]}, ValidityPeriodStart: k.since(), URI: "https://" + s.Hosts.Fulcio,
	}
	timestamp := &root.SigstoreTimestampingAuthority{
		Root: k.timestamp[1], Leaf: k.timestamp[0], ValidityPeriodStart: k.timestamp[1].NotBefore.UTC(), URI: s.timestampURL(),
	}
	log := &root.TransparencyLog{
		BaseURL: "https://" + s.Hosts.Rekor, ID: id, PublicKey: k.rekor, ValidityPeriodStart: k.since(),
		HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA512, // the latter is part of Ed25519
	}
	return root.NewTrustedRoot(root.TrustedRootMediaType01, []root.CertificateAuthority{fulcio}, nil,
		[]root.TimestampingAuthority{timestamp}, map[string]*root.TransparencyLog{hex.EncodeToString(id): log})
}

func (s Server) timestampURL() string { return "https://" + s.Hosts.Timestamp + "/api/v1/timestamp" }

func (s Server) signingConfig(k keys) (*root.SigningConfig, error) {
	service := func(url string, version uint32) root.Service {
		return root.Service{URL: url, MajorAPIVersion: version, ValidityPeriodStart: k.since(), Operator: operator}
	}
	var people []root.Service
	for _, issuer := range s.Issuers {
		if issuer.Kind == People {
			people = append(people, service(issuer.URL, 1))
		}
	}
	one := root.ServiceConfiguration{Selector: prototrustroot.ServiceSelector_ANY}
	return root.NewSigningConfig(root.SigningConfigMediaType02,
		[]root.Service{service("https://"+s.Hosts.Fulcio, 1)}, people,
		[]root.Service{service("https://"+s.Hosts.Rekor, 2)}, one,
		[]root.Service{service(s.timestampURL(), 1)}, one)
}

// writeJSON writes the same bytes for the same content; protojson by itself varies its spaces on purpose. A file
// that is as it should be is left alone.
func (s Server) writeJSON(path string, value json.Marshaler) error {
	raw, err := value.MarshalJSON()
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", "  "); err != nil {
		return err
	}
	indented.WriteByte('\n')
	return s.writeIfChanged(path, indented.Bytes())
}
