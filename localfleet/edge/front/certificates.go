package front

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/omnivision/omnivision/localfleet/ca"
)

// certificates issues one certificate for each configured name when it is first asked for.
type certificates struct {
	authority *ca.Authority
	address   net.IP

	mu    sync.Mutex
	cache map[string]*tls.Certificate // as many entries as there are routes, plus the address
}

// GetCertificate is for tls.Config. A client that asks for an unknown name, or for none, gets the
// certificate of the edge's address: its error then says which certificate it met ("valid for 10.111.0.1,
// not for example.com"), where an alert would say nothing.
func (f *Front) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := normalHost(hello.ServerName)
	if _, ok := f.routes[name]; !ok {
		name = ""
	}
	return f.certs.get(name)
}

func (c *certificates) get(name string) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock() // issuing takes a fraction of a millisecond
	if cert := c.cache[name]; cert != nil && !ca.DueForRenewal(cert.Leaf, time.Now()) {
		return cert, nil
	}
	request := ca.Request{CommonName: name, DNSNames: []string{name}}
	if len(name) > 64 {
		request.CommonName = "" // X.509's limit for a common name
	}
	if name == "" {
		request = ca.Request{CommonName: c.address.String(), IPs: []net.IP{c.address}}
	}
	cert, err := c.authority.TLSCertificate(request)
	if err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", name, err)
	}
	c.cache[name] = cert
	return cert, nil
}
