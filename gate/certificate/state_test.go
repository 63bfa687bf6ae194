package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	epoch = time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	names = []string{"gate.omnivision-system.svc", "127.0.0.1"}
)

func mustStep(t *testing.T, r rotation, s *state) *state {
	t.Helper()
	r.names = names
	if r.lifetimes == (Lifetimes{}) {
		r.lifetimes = DefaultLifetimes
	}
	next, err := r.step(s)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// handshake is what an API server that trusts a bundle asks of the certificate that it is shown, at a time.
func handshake(t *testing.T, serving *tls.Certificate, bundle []byte, now time.Time) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := serving.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: names[0], CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

func bundle(s *state) []byte { return encodeCerts(s.trusted()...) }

// P27, for two years, hour by hour: what is served is always trusted by who has today's CAs, and by who has those of an
// hour ago; and who serves yesterday's certificate is still trusted today.
func TestNoHandshakeFailsOverTwoYears(t *testing.T) {
	s := mustStep(t, rotation{now: epoch}, nil)
	yesterday, lastHour, rotated, signers := s.certificate(), bundle(s), 0, 0
	for hour := range 2 * 365 * 24 {
		now := epoch.Add(time.Duration(hour) * time.Hour)
		next := mustStep(t, rotation{now: now, published: true}, s)
		if next.serving != s.serving {
			rotated++
		}
		if next.signer != s.signer {
			signers++
		}
		if next != s || hour%24 == 0 {
			for what, err := range map[string]error{
				"today's certificate, today's CAs":                    handshake(t, next.certificate(), bundle(next), now),
				"today's certificate, CAs of an hour ago":             handshake(t, next.certificate(), lastHour, now),
				"yesterday's certificate (slow replica), today's CAs": handshake(t, yesterday, bundle(next), now),
			} {
				if err != nil {
					t.Fatalf("after %d hours: %s: %v", hour, what, err)
				}
			}
		}
		if hour%24 == 0 {
			yesterday = next.certificate()
		}
		s, lastHour = next, bundle(next)
	}
	if rotated < 2*365/30 || signers != 2 {
		t.Errorf("%d serving certificates and %d CAs in two years", rotated, signers)
	}
	if n := len(s.trusted()); n > 3 {
		t.Errorf("%d CAs are trusted in the end", n)
	}
}

func TestNothingChangesWithoutNeed(t *testing.T) {
	s := mustStep(t, rotation{now: epoch}, nil)
	if again := mustStep(t, rotation{now: epoch.Add(time.Hour), published: true}, s); again != s {
		t.Error("a state that was good for a month was replaced")
	}
}

func TestCADoesNotSignBeforeItIsTrusted(t *testing.T) {
	old := mustStep(t, rotation{now: epoch}, nil)
	due := epoch.Add(DefaultLifetimes.Authority - DefaultLifetimes.AuthorityOverlap)
	s := mustStep(t, rotation{now: due, published: true}, old)
	if s.next == nil || s.signer != old.signer {
		t.Fatal("the next CA is not announced, or signs at once")
	}
	for name, r := range map[string]rotation{
		"too early":     {now: due.Add(DefaultLifetimes.Propagation - time.Second), published: true},
		"not published": {now: due.Add(24 * time.Hour), published: false},
	} {
		if got := mustStep(t, r, s); got.signer != old.signer {
			t.Errorf("%s: the next CA signs", name)
		}
	}
	if got := mustStep(t, rotation{now: due.Add(DefaultLifetimes.Propagation), published: true}, s); got.signer != s.next || len(got.retired) != 1 {
		t.Error("the next CA does not sign, or the last one is not trusted any more")
	}
}

func TestClockJumpsEndInATrustedCertificate(t *testing.T) {
	s := mustStep(t, rotation{now: epoch}, nil)
	for _, jump := range []time.Duration{40 * 24 * time.Hour, 10 * 365 * 24 * time.Hour, -time.Hour, -20 * 365 * 24 * time.Hour, 24 * time.Hour, 300 * 24 * time.Hour, 100 * 24 * time.Hour} {
		now := epoch.Add(jump)
		s = mustStep(t, rotation{now: now, published: true}, s)
		if err := handshake(t, s.certificate(), bundle(s), now); err != nil {
			t.Errorf("after a jump to %s: %v", now, err)
		}
	}
}

func TestSecretHoldsTheWholeState(t *testing.T) {
	s := mustStep(t, rotation{now: epoch}, nil)
	s = mustStep(t, rotation{now: epoch, renewed: true}, s)
	s = mustStep(t, rotation{now: epoch.Add(time.Hour), published: true}, s)
	s = mustStep(t, rotation{now: epoch.Add(time.Hour), renewed: true}, s)
	if s.next == nil || len(s.retired) != 1 {
		t.Fatalf("not the state that this test is about: %+v", s)
	}
	data, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if string(bundle(got)) != string(bundle(s)) || !got.next.cert.Equal(s.next.cert) || !got.serving.cert.Equal(s.serving.cert) {
		t.Error("the state changed on its way")
	}
	for key := range data {
		for name, broken := range map[string]string{"empty": "", "half": string(data[key][:len(data[key])/2]), "other": "-----BEGIN X-----\n-----END X-----\n"} {
			if key == nextCertKey && name == "empty" {
				continue // there is no next one
			}
			changed := map[string][]byte{}
			for k, v := range data {
				changed[k] = v
			}
			changed[key] = []byte(broken)
			if _, err := decode(changed); err == nil || !strings.Contains(err.Error(), "reading") {
				t.Errorf("%s is %s: %v", key, name, err)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	s, err := rotation{names: names, lifetimes: DefaultLifetimes, now: epoch}.step(nil)
	if err != nil {
		f.Fatal(err)
	}
	data, err := s.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[bundleKey], data[signerKey], data[servingCertKey], data[servingKeyKey])
	f.Fuzz(func(t *testing.T, a, b, c, d []byte) {
		s, err := decode(map[string][]byte{bundleKey: a, signerKey: b, servingCertKey: c, servingKeyKey: d})
		if err == nil && (s.signer == nil || s.serving == nil) {
			t.Error("half a state")
		}
	})
}

// The gate's own clock may jump: what counts is the API server's.
func TestClockIsTheAPIServers(t *testing.T) {
	local := epoch
	c := &APIClock{local: func() time.Time { return local }}
	if !c.Now().Equal(epoch) {
		t.Error("before an answer the local clock counts")
	}
	for _, jump := range []time.Duration{0, time.Second, 24 * time.Hour, -10 * 365 * 24 * time.Hour} {
		local = epoch.Add(jump)
		c.hear(epoch.Format("Mon, 02 Jan 2006 15:04:05 GMT"))
		if d := c.Now().Sub(epoch).Abs(); d >= tolerated {
			t.Errorf("after a jump of %s the clock is %s off", jump, d)
		}
	}
	before := c.Now()
	for _, junk := range []string{"", "yesterday", fmt.Sprint(epoch.Unix())} {
		c.hear(junk)
	}
	if !c.Now().Equal(before) {
		t.Error("an answer without a date changed the clock")
	}
}
