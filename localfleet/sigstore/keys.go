package sigstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Files of the keys' folder.
const (
	fulcioKey      = "fulcio.key"
	fulcioChain    = "fulcio.crt" // intermediate, root
	timestampKey   = "timestamp.key"
	timestampChain = "timestamp.crt" // leaf, root
	rekorKey       = "rekor.key"
)

const (
	keysTTL = 10 * 365 * 24 * time.Hour
	// A clock that is a little behind must not refuse what was just made.
	clockSkew = 10 * time.Minute
)

// keys are the public halves.
type keys struct {
	fulcio    []*x509.Certificate
	timestamp []*x509.Certificate
	rekor     ed25519.PublicKey
}

// since is when the keys began to be valid.
func (k keys) since() time.Time { return k.fulcio[len(k.fulcio)-1].NotBefore.UTC() }

// fingerprint names them: servers are started anew with other keys.
func (k keys) fingerprint() string {
	sum := sha256.New()
	for _, cert := range append(append([]*x509.Certificate{}, k.fulcio...), k.timestamp...) {
		sum.Write(cert.Raw)
	}
	sum.Write(k.rekor)
	return hex.EncodeToString(sum.Sum(nil))
}

func (s Server) keysDir() string            { return filepath.Join(s.Dir, "keys") }
func (s Server) keyFile(name string) string { return filepath.Join(s.keysDir(), name) }

// ensureKeys makes all keys at once, in a folder that gets its name when it is complete.
func (s Server) ensureKeys() (keys, error) {
	_, err := os.Stat(s.keysDir())
	if errors.Is(err, fs.ErrNotExist) {
		err = s.makeKeys(time.Now())
	}
	if err != nil {
		return keys{}, fmt.Errorf("making Sigstore's keys: %w", err)
	}
	found, err := s.readKeys()
	if err != nil {
		return keys{}, fmt.Errorf("reading Sigstore's keys: %w; remove %s to begin with new ones, which end what was signed with these", err, s.Dir)
	}
	return found, nil
}

func (s Server) makeKeys(now time.Time) error {
	files, err := newKeys(now.Add(-clockSkew).Truncate(time.Second))
	if err != nil {
		return err
	}
	half := s.keysDir() + ".new"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := os.Mkdir(half, 0o700); err != nil {
		return err
	}
	for name, data := range files {
		if err := writeSynced(filepath.Join(half, name), data); err != nil {
			return err
		}
		if err := s.owner().Give(filepath.Join(half, name)); err != nil {
			return err
		}
	}
	if err := s.owner().Give(half); err != nil {
		return err
	}
	return os.Rename(half, s.keysDir())
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// newKeys makes the files of the keys' folder. The keys of the roots are not kept: nothing is to be certified
// with them again.
func newKeys(since time.Time) (map[string][]byte, error) {
	files := map[string][]byte{}
	if err := addChain(files, fulcioKey, fulcioChain, since, fulcioIntermediate(since)); err != nil {
		return nil, err
	}
	leaf, err := timestampLeaf(since)
	if err != nil {
		return nil, err
	}
	if err := addChain(files, timestampKey, timestampChain, since, leaf); err != nil {
		return nil, err
	}
	_, log, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	files[rekorKey], err = encodeKey(log)
	return files, err
}

// addChain certifies a new key by a new root.
func addChain(files map[string][]byte, keyName, chainName string, since time.Time, template *x509.Certificate) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	root := authority(since, "OmniVision local fleet: root of "+template.Subject.CommonName)
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, key.Public(), rootKey)
	if err != nil {
		return err
	}
	files[chainName] = append(encodeCertificate(der), encodeCertificate(rootDER)...)
	files[keyName], err = encodeKey(key)
	return err
}

func newCertificate(since time.Time, name string) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial) //nolint:errcheck // never fails, as its documentation says
	serial[0] &= 0x7f // a serial number is positive
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{Organization: []string{"omnivision.invalid"}, CommonName: name},
		NotBefore:    since, NotAfter: since.Add(keysTTL),
	}
}

func authority(since time.Time, name string) *x509.Certificate {
	c := newCertificate(since, name)
	c.IsCA, c.BasicConstraintsValid, c.MaxPathLen = true, true, 1
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return c
}

func fulcioIntermediate(since time.Time) *x509.Certificate {
	c := authority(since, "Fulcio")
	c.MaxPathLen, c.MaxPathLenZero = 0, true
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	return c
}

// timestampLeaf has the one usage that RFC 3161 2.3 demands, marked critical as x509 by itself does not.
func timestampLeaf(since time.Time) (*x509.Certificate, error) {
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		return nil, err
	}
	c := newCertificate(since, "timestamp authority")
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}}
	return c, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (s Server) readKeys() (keys, error) {
	fulcio, err := readChain(s.keyFile(fulcioChain))
	if err != nil {
		return keys{}, err
	}
	timestamp, err := readChain(s.keyFile(timestampChain))
	if err != nil {
		return keys{}, err
	}
	raw, err := os.ReadFile(s.keyFile(rekorKey))
	if err != nil {
		return keys{}, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return keys{}, fmt.Errorf("%s holds no key in PEM", s.keyFile(rekorKey))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return keys{}, fmt.Errorf("%s: %w", s.keyFile(rekorKey), err)
	}
	log, ok := key.(ed25519.PrivateKey)
	if !ok {
		return keys{}, fmt.Errorf("%s holds a %T, not an Ed25519 key", s.keyFile(rekorKey), key)
	}
	return keys{fulcio: fulcio, timestamp: timestamp, rekor: log.Public().(ed25519.PublicKey)}, nil
}

func readChain(path string) ([]*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	chain, err := parseChain(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return chain, nil
}

// parseChain reads certificates in PEM, of which there are two in each chain here.
func parseChain(raw []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		block, rest := pem.Decode(raw)
		if block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain, raw = append(chain, cert), rest
	}
	if len(chain) != 2 {
		return nil, fmt.Errorf("there are %d certificates in it, not 2", len(chain))
	}
	return chain, nil
}
