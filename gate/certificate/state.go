package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"time"
)

// Lifetimes say how long certificates live and when they are replaced. The zero value is DefaultLifetimes.
type Lifetimes struct {
	Authority        time.Duration // of a CA
	AuthorityOverlap time.Duration // before its end the next CA is made and published
	Propagation      time.Duration // how long the next CA must have been published before it signs
	Serving          time.Duration // of the serving certificate
	ServingOverlap   time.Duration // before its end it is replaced
}

// DefaultLifetimes leave weeks to notice that a rotation does not work.
var DefaultLifetimes = Lifetimes{
	Authority: 365 * 24 * time.Hour, AuthorityOverlap: 90 * 24 * time.Hour, Propagation: 10 * time.Minute,
	Serving: 30 * 24 * time.Hour, ServingOverlap: 15 * 24 * time.Hour,
}

// state is what the replicas share by the Secret.
type state struct {
	signer  *pair               // signs the serving certificate
	next    *pair               // is published, and signs when everybody trusts it; nil most of the time
	retired []*x509.Certificate // have signed, and are trusted until they end
	serving *pair
}

// trusted are all CAs that callers must believe, so that a replica that rotates a little later or earlier
// than another is believed as well (P27).
func (s *state) trusted() []*x509.Certificate {
	all := []*x509.Certificate{s.signer.cert}
	if s.next != nil {
		all = append(all, s.next.cert)
	}
	return append(all, s.retired...)
}

// rotation is what step works with.
type rotation struct {
	names     []string
	lifetimes Lifetimes
	now       time.Time
	published bool // callers are known to trust the whole state
	renewed   bool // somebody took the Secret away: begin a new CA, without a break
}

// step returns what follows from a state, nil included. It is the state itself if nothing is to be done.
// The order is what keeps handshakes from failing: a CA is published, then it signs, then what it signed is
// served. Only when what there is is of no use to anybody does all of it happen at once.
func (r rotation) step(s *state) (*state, error) {
	if s == nil || !valid(s.signer.cert, r.now) {
		return r.begin(s)
	}
	out := *s
	if err := r.authorities(&out); err != nil {
		return nil, err
	}
	if !r.serves(&out) {
		serving, err := newServing(r.names, r.now, r.lifetimes.Serving, out.signer)
		if err != nil {
			return nil, err
		}
		out.serving = serving
	}
	out.retired = slices.DeleteFunc(slices.Clone(out.retired), func(c *x509.Certificate) bool { return !valid(c, r.now) })
	if out.signer == s.signer && out.next == s.next && out.serving == s.serving && len(out.retired) == len(s.retired) {
		return s, nil
	}
	return &out, nil
}

func (r rotation) authorities(s *state) error {
	if s.next != nil && !valid(s.next.cert, r.now) {
		s.next = nil
	}
	switch due := !r.now.Before(s.signer.cert.NotAfter.Add(-r.lifetimes.AuthorityOverlap)); {
	case s.next == nil && (due || r.renewed):
		next, err := newAuthority(r.names[0], r.now, r.lifetimes.Authority)
		if err != nil {
			return err
		}
		s.next = next
	case s.next != nil && r.published && !r.now.Before(s.next.made().Add(r.lifetimes.Propagation)):
		s.retired = append([]*x509.Certificate{s.signer.cert}, s.retired...)
		s.signer, s.next = s.next, nil
	}
	return nil
}

// begin makes everything anew, or goes on with the next CA if that is still good.
func (r rotation) begin(s *state) (*state, error) {
	if s != nil && s.next != nil && valid(s.next.cert, r.now) {
		return r.step(&state{signer: s.next, serving: s.serving, retired: s.retired})
	}
	signer, err := newAuthority(r.names[0], r.now, r.lifetimes.Authority)
	if err != nil {
		return nil, err
	}
	return r.step(&state{signer: signer})
}

// serves reports whether the serving certificate is good for a while longer.
func (r rotation) serves(s *state) bool {
	if s.serving == nil {
		return false
	}
	cert := s.serving.cert
	names, ips := split(r.names)
	// A certificate that ends with its signer cannot be made to end later; it is then replaced with its signer.
	due := cert.NotAfter.Add(-r.lifetimes.ServingOverlap)
	if cert.NotAfter.Equal(s.signer.cert.NotAfter) {
		due = cert.NotAfter
	}
	return valid(cert, r.now) && r.now.Before(due) && cert.CheckSignatureFrom(s.signer.cert) == nil && slices.Equal(cert.DNSNames, names) &&
		slices.EqualFunc(cert.IPAddresses, ips, net.IP.Equal)
}

func split(names []string) (dns []string, ips []net.IP) {
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, n)
		}
	}
	return dns, ips
}

func (s *state) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{s.serving.cert.Raw}, PrivateKey: s.serving.key, Leaf: s.serving.cert}
}

// Keys of the Secret.
const (
	bundleKey      = "ca.crt" // all trusted CAs, the signing one first
	signerKey      = "ca.key"
	nextCertKey    = "next-ca.crt"
	nextKeyKey     = "next-ca.key"
	servingCertKey = "tls.crt"
	servingKeyKey  = "tls.key"
)

func (s *state) encode() (map[string][]byte, error) {
	data := map[string][]byte{bundleKey: encodeCerts(s.trusted()...), servingCertKey: encodeCerts(s.serving.cert)}
	keys := map[string]*pair{signerKey: s.signer, servingKeyKey: s.serving}
	if s.next != nil {
		data[nextCertKey] = encodeCerts(s.next.cert)
		keys[nextKeyKey] = s.next
	}
	for name, p := range keys {
		text, err := encodeKey(p.key)
		if err != nil {
			return nil, fmt.Errorf("writing %s: %w", name, err)
		}
		data[name] = text
	}
	return data, nil
}

func decode(data map[string][]byte) (*state, error) {
	bundle, err := decodeCerts(data[bundleKey])
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", bundleKey, err)
	}
	s := &state{}
	if s.signer, err = decodePair(data[bundleKey], data[signerKey]); err != nil {
		return nil, fmt.Errorf("reading %s and %s: %w", bundleKey, signerKey, err)
	}
	if len(data[nextCertKey]) > 0 {
		if s.next, err = decodePair(data[nextCertKey], data[nextKeyKey]); err != nil {
			return nil, fmt.Errorf("reading %s and %s: %w", nextCertKey, nextKeyKey, err)
		}
	}
	if s.serving, err = decodePair(data[servingCertKey], data[servingKeyKey]); err != nil {
		return nil, fmt.Errorf("reading %s and %s: %w", servingCertKey, servingKeyKey, err)
	}
	for _, c := range bundle[1:] {
		if s.next == nil || !c.Equal(s.next.cert) {
			s.retired = append(s.retired, c)
		}
	}
	return s, nil
}
