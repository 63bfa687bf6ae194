// Package ca is a certificate authority of the local fleet: it vouches for the production host names
// inside the fleet, and, one authority per cluster, for the parts of a Kubernetes control plane.
//
// Goal: a directory with a key and a certificate that any number of processes may open at any moment,
// a crash included, and one call to get a leaf certificate. Limits: one level (no intermediates), no
// revocation (leaves are short-lived and the fleet is thrown away), keys on disk with mode 0600.
//
// Give each cluster an authority in a directory of its own. An API server believes the Subject of every
// client certificate that its authority signed, so a shared authority would make the administrator of
// one cluster the administrator of all.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rootTTL = 10 * 365 * 24 * time.Hour
	// LeafTTL is the life of a leaf certificate whose Request names none.
	LeafTTL = 365 * 24 * time.Hour

	// A clock that is a little behind (a virtual machine that woke up) must not refuse a fresh certificate.
	clockSkew = 10 * time.Minute

	certName = "ca.crt"
	keyName  = "ca.key"
	lockName = ".lock"
)

// privateRanges are the only addresses that an authority of this package may vouch for: should its key
// leak, or somebody import it into a browser, it is of no use against a host on the internet.
var privateRanges = mustCIDRs("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")

// Authority issues certificates. It is safe for concurrent use.
type Authority struct {
	dir     string
	key     *ecdsa.PrivateKey
	cert    *x509.Certificate
	certPEM []byte
	now     func() time.Time
}

// Request describes a leaf certificate, for a server or for a client.
type Request struct {
	// CommonName and Organizations are the Subject. Kubernetes reads a client's user name and groups there.
	CommonName    string
	Organizations []string
	// DNSNames and IPs are what a server is reached by. A client needs none.
	DNSNames []string
	IPs      []net.IP
	// Usages defaults to server authentication when DNSNames or IPs are given, else to client authentication.
	Usages []x509.ExtKeyUsage
	// TTL defaults to LeafTTL and never outlives the authority.
	TTL time.Duration
}

// LoadOrCreate opens the authority in dir and creates it on first use.
//
// domains, when given, become its name constraints: it can then vouch for these names and what is below
// them and for nothing else. Without domains only addresses are constrained (to private ranges), which
// suits a cluster's authority, whose names are unqualified (kubernetes, a node's name). An existing
// authority that lacks some of the domains, or that would expire within a leaf's life, gets a new
// certificate over the same key: what it issued, and whoever trusts the earlier certificate, stays valid.
func LoadOrCreate(dir string, domains ...string) (*Authority, error) {
	return loadOrCreate(dir, time.Now, domains)
}

func loadOrCreate(dir string, now func() time.Time, domains []string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the folder of the certificate authority: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	defer unlock()

	a := &Authority{dir: dir, now: now}
	haveKey, err := a.loadKey()
	if err != nil {
		return nil, err
	}
	haveCert, err := a.loadCert()
	if err != nil {
		return nil, err
	}
	switch {
	case haveCert && !haveKey:
		return nil, fmt.Errorf("certificate authority %s: %s exists but %s does not: restore the key, or remove the folder to start a new authority (everything it issued must then be issued again)", dir, certName, keyName)
	case haveCert && !a.key.PublicKey.Equal(a.cert.PublicKey):
		return nil, fmt.Errorf("certificate authority %s: %s and %s do not belong together: remove the folder to start a new authority", dir, certName, keyName)
	}
	if !haveKey {
		// The key first: a crash between the two leaves a key without a certificate, which the next call completes.
		if err := a.createKey(); err != nil {
			return nil, err
		}
	}
	domains, widen := a.mergeDomains(domains, haveCert)
	expires := haveCert && a.cert.NotAfter.Sub(a.now()) < LeafTTL
	if haveCert && !widen && !expires {
		return a, nil
	}
	return a, a.createCert(domains)
}

// Dir is the folder of the authority.
func (a *Authority) Dir() string { return a.dir }

// CertFile is the path of the authority's certificate, for programs that want a file.
func (a *Authority) CertFile() string { return filepath.Join(a.dir, certName) }

// KeyFile is the path of the authority's key; only a signer (the controller manager) should need it.
func (a *Authority) KeyFile() string { return filepath.Join(a.dir, keyName) }

// CertPEM is the authority's certificate.
func (a *Authority) CertPEM() []byte { return slices.Clone(a.certPEM) }

// Certificate is the authority's certificate, parsed. It must not be changed.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pool is a pool with only this authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Issue makes a key and a certificate for it. Nothing is written to disk.
func (a *Authority) Issue(r Request) (certPEM, keyPEM []byte, err error) {
	if r.CommonName == "" && len(r.DNSNames) == 0 && len(r.IPs) == 0 {
		return nil, nil, errors.New("issuing a certificate: neither a common name nor a host is given")
	}
	if err := a.permits(r); err != nil {
		return nil, nil, fmt.Errorf("issuing a certificate for %s: %w", r.describe(), err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing a certificate for %s: generating its key: %w", r.describe(), err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := a.now()
	notAfter := now.Add(r.ttl())
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	notBefore := now.Add(-clockSkew)
	if notBefore.Before(a.cert.NotBefore) {
		notBefore = a.cert.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: r.CommonName, Organization: r.Organizations},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           r.usages(),
		BasicConstraintsValid: true,
		DNSNames:              r.DNSNames,
		IPAddresses:           r.IPs,
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing a certificate for %s: %w", r.describe(), err)
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

// IssueFiles keeps a certificate and its key in two files. What is there already stays when it is still
// this authority's, fits the request and has more than a third of its life before it; else it is issued
// anew, and renewed says so: the server that reads the files must then load them again.
func (a *Authority) IssueFiles(certFile, keyFile string, r Request) (renewed bool, err error) {
	if a.current(certFile, keyFile, r) {
		return false, nil
	}
	certPEM, keyPEM, err := a.Issue(r)
	if err != nil {
		return false, err
	}
	// A crash between the two leaves a pair that does not match, which the next call sees and replaces.
	if err := writeFile(keyFile, keyPEM, 0o600); err != nil {
		return false, err
	}
	if err := writeFile(certFile, certPEM, 0o644); err != nil {
		return false, err
	}
	return true, nil
}

// TLSCertificate issues a certificate in the form that a TLS server or client of this process uses.
func (a *Authority) TLSCertificate(r Request) (*tls.Certificate, error) {
	certPEM, keyPEM, err := a.Issue(r)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate just issued for %s: %w", r.describe(), err)
	}
	return &pair, nil
}

// DueForRenewal says whether less than a third of the certificate's life is left.
func DueForRenewal(cert *x509.Certificate, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotAfter.Sub(now) < life/3
}

func (a *Authority) current(certFile, keyFile string, r Request) bool {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return false
	}
	cert := pair.Leaf
	now := a.now()
	if now.Before(cert.NotBefore) || DueForRenewal(cert, now) || cert.CheckSignatureFrom(a.cert) != nil {
		return false
	}
	if cert.Subject.CommonName != r.CommonName || !sameSet(cert.Subject.Organization, r.Organizations) {
		return false
	}
	if !sameSet(cert.DNSNames, r.DNSNames) || !sameSet(ipStrings(cert.IPAddresses), ipStrings(r.IPs)) {
		return false
	}
	return slices.Equal(cert.ExtKeyUsage, r.usages())
}

// permits repeats the name constraints before signing: a client would refuse the certificate with a
// message that does not say where the constraint came from.
func (a *Authority) permits(r Request) error {
	for _, name := range r.DNSNames {
		if name == "" || strings.ContainsAny(name, " /:") {
			return fmt.Errorf("%q is not a host name", name)
		}
		if len(a.cert.PermittedDNSDomains) > 0 && !covered(name, a.cert.PermittedDNSDomains) {
			return fmt.Errorf("the authority in %s may not vouch for the name %s: add its domain to the list that the authority is opened with", a.dir, name)
		}
	}
	for _, ip := range r.IPs {
		if !slices.ContainsFunc(a.cert.PermittedIPRanges, func(n *net.IPNet) bool { return n.Contains(ip) }) {
			return fmt.Errorf("the authority in %s may not vouch for the address %s: only private and loopback addresses are permitted", a.dir, ip)
		}
	}
	return nil
}

// mergeDomains returns the constraints that the certificate should have, and whether that is a change.
func (a *Authority) mergeDomains(want []string, haveCert bool) (domains []string, changed bool) {
	var clean []string
	for _, d := range want {
		clean = append(clean, strings.ToLower(strings.TrimPrefix(strings.TrimPrefix(d, "*"), ".")))
	}
	want = clean
	if !haveCert || len(want) == 0 {
		if haveCert {
			return a.cert.PermittedDNSDomains, false
		}
		slices.Sort(want)
		return slices.Compact(want), true
	}
	have := a.cert.PermittedDNSDomains
	if len(have) == 0 {
		// Unconstrained until now: narrowing would break what others had it issue.
		return nil, false
	}
	domains = slices.Clone(have)
	for _, d := range want {
		if !covered(d, domains) {
			domains, changed = append(domains, d), true
		}
	}
	slices.Sort(domains)
	return domains, changed
}

func covered(name string, domains []string) bool {
	name = strings.ToLower(strings.TrimPrefix(name, "*."))
	return slices.ContainsFunc(domains, func(d string) bool { return name == d || strings.HasSuffix(name, "."+d) })
}

func (a *Authority) loadKey() (bool, error) {
	path := a.KeyFile()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the key of the certificate authority: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return false, fmt.Errorf("certificate authority: %s holds no PEM block: remove its folder to start a new authority", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return false, fmt.Errorf("certificate authority: parsing %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return false, fmt.Errorf("certificate authority: %s holds a %T, not an ECDSA key", path, parsed)
	}
	// A copy of the folder, or a careless umask, may have opened the key to others.
	if err := os.Chmod(path, 0o600); err != nil {
		return false, fmt.Errorf("closing the key of the certificate authority to others: %w", err)
	}
	a.key = key
	return true, nil
}

func (a *Authority) loadCert() (bool, error) {
	path := a.CertFile()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the certificate of the certificate authority: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return false, fmt.Errorf("certificate authority: %s holds no PEM block: remove its folder to start a new authority", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false, fmt.Errorf("certificate authority: parsing %s: %w", path, err)
	}
	a.cert, a.certPEM = cert, pem.EncodeToMemory(block)
	return true, nil
}

func (a *Authority) createKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generating the key of the certificate authority: %w", err)
	}
	data, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(a.KeyFile(), data, 0o600); err != nil {
		return err
	}
	a.key = key
	return nil
}

func (a *Authority) createCert(domains []string) error {
	serial, err := newSerial()
	if err != nil {
		return err
	}
	// The Subject depends on the key: two authorities that a client trusts side by side must not share a
	// name, or it may try the wrong one first and report a bad signature.
	id, err := keyID(a.key.Public())
	if err != nil {
		return err
	}
	now := a.now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "OmniVision local fleet " + id, Organization: []string{"OmniVision local fleet"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,

		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         domains,
		PermittedIPRanges:           privateRanges,
	}
	if a.cert != nil {
		// What was issued under the earlier certificate must not start before its issuer.
		template.NotBefore = a.cert.NotBefore
		template.Subject = a.cert.Subject
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("creating the certificate of the certificate authority: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := writeFile(a.CertFile(), certPEM, 0o644); err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("parsing the certificate just created: %w", err)
	}
	a.cert, a.certPEM = cert, certPEM
	return nil
}

func (r Request) usages() []x509.ExtKeyUsage {
	switch {
	case len(r.Usages) > 0:
		return r.Usages
	case len(r.DNSNames)+len(r.IPs) > 0:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	default:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
}

func (r Request) ttl() time.Duration {
	if r.TTL > 0 {
		return r.TTL
	}
	return LeafTTL
}

func (r Request) describe() string {
	switch {
	case r.CommonName != "":
		return r.CommonName
	case len(r.DNSNames) > 0:
		return r.DNSNames[0]
	default:
		return r.IPs[0].String()
	}
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func keyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encoding a public key: %w", err)
	}
	return fmt.Sprintf("%x", der[len(der)-4:]), nil
}

// writeFile replaces path in one step: a reader, or the next start after a crash, sees the old content or
// the new, never half of it.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // a no-op after the rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// lock serializes processes that open the same authority for the first time.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the certificate authority: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking the certificate authority with %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func ipStrings(ips []net.IP) []string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}

func mustCIDRs(cidrs ...string) []*net.IPNet {
	var out []*net.IPNet
	for _, c := range cidrs {
		_, n, err := net.ParseCIDR(c)
		if err != nil {
			panic(err)
		}
		out = append(out, n)
	}
	return out
}
