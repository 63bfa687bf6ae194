package ca

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T, dir string, domains ...string) *Authority {
	t.Helper()
	a, err := LoadOrCreate(dir, domains...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestServerAndClientAuthenticateEachOther(t *testing.T) {
	a := open(t, t.TempDir(), "github.com")
	server, err := a.TLSCertificate(Request{DNSNames: []string{"github.com"}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := a.TLSCertificate(Request{CommonName: "system:node:gpu-1", Organizations: []string{"system:nodes", "system:authenticated"}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := r.TLS.PeerCertificates[0].Subject
		fmt.Fprintf(w, "%s %v", s.CommonName, s.Organization)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool()}
	srv.StartTLS()
	defer srv.Close()

	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.Pool(), ServerName: "github.com", Certificates: []tls.Certificate{*client}}}}
	defer hc.CloseIdleConnections()
	resp, err := hc.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if got, want := string(body), "system:node:gpu-1 [system:nodes system:authenticated]"; got != want {
		t.Errorf("the server saw %q, want %q", got, want)
	}
}

func TestAuthoritySurvivesReopeningAndConcurrentCreation(t *testing.T) {
	dir := t.TempDir()
	serials := make([]string, 8)
	var wg sync.WaitGroup
	for i := range serials {
		wg.Go(func() {
			a, err := LoadOrCreate(dir)
			if err != nil {
				t.Error(err)
				return
			}
			serials[i] = a.Certificate().SerialNumber.String()
		})
	}
	wg.Wait()
	if len(slices.Compact(serials)) != 1 {
		t.Errorf("concurrent callers made several authorities: %v", serials)
	}
	info, err := os.Stat(filepath.Join(dir, keyName))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v", info.Mode())
	}
}

func TestCrashBetweenKeyAndCertificateIsCompleted(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	if err := os.Remove(first.CertFile()); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	if !second.key.Equal(first.key) {
		t.Error("the key was replaced")
	}
}

func TestLostKeyIsReportedAndNotReplaced(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	if err := os.Remove(a.KeyFile()); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(dir); err == nil || !strings.Contains(err.Error(), "restore the key") {
		t.Errorf("got %v, want an error that says to restore the key", err)
	}
	if _, err := os.Stat(a.KeyFile()); err == nil {
		t.Error("a new key was written over a lost one")
	}
}

func TestNamesOutsideTheConstraintsAreRefused(t *testing.T) {
	a := open(t, t.TempDir(), "github.com", "pkg.dev")
	for name, ok := range map[string]bool{
		"github.com": true, "api.github.com": true, "europe-west1-docker.pkg.dev": true, "*.pkg.dev": true,
		"notgithub.com": false, "example.com": false, "com": false, "github.com.": false,
	} {
		_, _, err := a.Issue(Request{DNSNames: []string{name}})
		if (err == nil) != ok {
			t.Errorf("%s: got error %v, want allowed=%v", name, err, ok)
		}
	}
	if _, _, err := a.Issue(Request{IPs: []net.IP{net.ParseIP("8.8.8.8")}}); err == nil {
		t.Error("a public address was accepted")
	}
	if _, _, err := a.Issue(Request{IPs: []net.IP{net.ParseIP("10.111.0.1"), net.ParseIP("127.0.0.1"), net.ParseIP("::1")}}); err != nil {
		t.Error(err)
	}
	// The constraint must be in the certificate, not only in this code.
	if got := a.Certificate().PermittedDNSDomains; !slices.Equal(got, []string{"github.com", "pkg.dev"}) || !a.Certificate().PermittedDNSDomainsCritical {
		t.Errorf("the certificate permits %v", got)
	}
}

func TestNewDomainKeepsEarlierCertificatesValid(t *testing.T) {
	dir := t.TempDir()
	before := open(t, dir, "github.com")
	oldPEM, _, err := before.Issue(Request{DNSNames: []string{"github.com"}})
	if err != nil {
		t.Fatal(err)
	}
	after := open(t, dir, "github.com", "registry.example.org")
	newPEM, _, err := after.Issue(Request{DNSNames: []string{"registry.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(certPEM []byte, pool *x509.CertPool, name string) error {
		_, err := parse(t, certPEM).Verify(x509.VerifyOptions{Roots: pool, DNSName: name})
		return err
	}
	if err := verify(oldPEM, after.Pool(), "github.com"); err != nil {
		t.Errorf("old leaf, new root: %v", err)
	}
	if err := verify(newPEM, after.Pool(), "registry.example.org"); err != nil {
		t.Errorf("new leaf, new root: %v", err)
	}
	if err := verify(newPEM, before.Pool(), "registry.example.org"); err == nil {
		t.Error("the old root vouches for a name that it does not permit")
	}
	// Fewer domains than before is not a reason to narrow.
	if again := open(t, dir, "github.com"); !again.Certificate().Equal(after.Certificate()) {
		t.Error("the certificate changed though nothing was missing from it")
	}
}

func TestAuthorityIsRenewedBeforeALeafWouldOutliveIt(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	leaf, _, err := first.Issue(Request{CommonName: "admin", TTL: 20 * 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if !parse(t, leaf).NotAfter.Equal(first.Certificate().NotAfter) {
		t.Error("a leaf outlives its authority")
	}
	later := time.Now().Add(rootTTL - LeafTTL/2)
	second, err := loadOrCreate(dir, func() time.Time { return later }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if second.Certificate().NotAfter.Sub(later) < rootTTL-time.Hour {
		t.Errorf("not renewed: ends %s", second.Certificate().NotAfter)
	}
	if _, err := parse(t, leaf).Verify(x509.VerifyOptions{Roots: second.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("a leaf of before the renewal: %v", err)
	}
}

func TestIssueFilesReissuesOnlyWhenItMust(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	a, err := loadOrCreate(filepath.Join(dir, "ca"), func() time.Time { return now }, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	req := Request{CommonName: "kube-apiserver", DNSNames: []string{"kubernetes", "kubernetes.default"}, IPs: []net.IP{net.ParseIP("10.96.0.1")}}
	issue := func(r Request) bool {
		t.Helper()
		renewed, err := a.IssueFiles(cert, key, r)
		if err != nil {
			t.Fatal(err)
		}
		return renewed
	}
	if !issue(req) {
		t.Error("the first call issued nothing")
	}
	if issue(req) {
		t.Error("reissued without a reason")
	}
	reordered := req
	reordered.DNSNames = []string{"kubernetes.default", "kubernetes"}
	if issue(reordered) {
		t.Error("reissued for another order of the same names")
	}
	if err := os.WriteFile(key, []byte("half of a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !issue(req) {
		t.Error("kept a damaged key")
	}
	wider := req
	wider.IPs = append(slices.Clone(req.IPs), net.ParseIP("10.111.1.2"))
	if !issue(wider) {
		t.Error("kept a certificate that lacks an address")
	}
	now = now.Add(LeafTTL * 3 / 4)
	if !issue(wider) {
		t.Error("kept a certificate with a quarter of its life left")
	}
	other := open(t, filepath.Join(dir, "other"))
	if renewed, err := other.IssueFiles(cert, key, wider); err != nil || !renewed {
		t.Errorf("another authority kept it: renewed=%v, %v", renewed, err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v %v", info.Mode(), err)
	}
}

// Git, curl and most of what runs in containers verify with OpenSSL or GnuTLS, which read name
// constraints with code of their own.
func TestOpenSSLAcceptsTheChain(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	a := open(t, dir, "github.com")
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if _, err := a.IssueFiles(cert, key, Request{CommonName: "github.com", DNSNames: []string{"github.com"}, IPs: []net.IP{net.ParseIP("10.111.0.1")}}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-verify_hostname", "github.com"}, {"-verify_ip", "10.111.0.1"}} {
		args = append([]string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", a.CertFile()}, append(args, cert)...)
		if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
			t.Errorf("openssl %v: %v\n%s", args, err, out)
		}
	}
}
