package judge

import (
	"net/http"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/gate"
)

// Whatever a Pod names, there is an answer, and none that admits without a signature.
func FuzzReferences(f *testing.F) {
	s := newSite(f)
	s.registry.dead.Store(true)
	for _, seed := range []string{"", "a", "a:b@sha256:" + strings.Repeat("0", 64), "a@sha512:" + strings.Repeat("0", 128), "a b", "@", "[::1]:5000/x", "a/../b", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, reference string) {
		// Nobody outside is asked: a name with a host is made one of the dead registry.
		at := strings.LastIndex(reference, "/") + 1
		v := s.judge.Judge(t.Context(), gate.Image{Reference: s.host + "/" + reference[at:]})
		if v.Allowed || len(v.Denials) == 0 || v.Denials[0].Reason == "" || v.Denials[0].Message == "" {
			t.Errorf("%q: %s", reference, show(v))
		}
		if _, err := s.judge.target(reference); err != nil && !strings.Contains(err.Error(), "reference") && !strings.Contains(err.Error(), "digest") {
			t.Errorf("%q: %v", reference, err)
		}
	})
}

// Whatever a registry says lies beside an image, nothing is admitted and nothing panics.
func FuzzWhatTheRegistrySays(f *testing.F) {
	s := newSite(f)
	of := s.push("omnivision-worker", "1")
	real := s.release("omnivision-ui", "1.0.0")
	f.Add(0, []byte(`{"schemaVersion":2}`))
	f.Add(1, []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	f.Add(2, []byte(`{"critical":{"type":"cosign container image signature"}}`))
	for _, raw := range bundles(f, real) {
		f.Add(1, raw)
	}
	f.Fuzz(func(t *testing.T, kind int, body []byte) {
		change := func(w http.ResponseWriter, r *http.Request) bool {
			beside := strings.Contains(r.URL.Path, "/referrers/") || strings.Contains(r.URL.Path, "/manifests/sha256-")
			if kind%3 == 0 && beside || kind%3 == 1 && strings.Contains(r.URL.Path, "/blobs/") || kind%3 == 2 && (beside || strings.Contains(r.URL.Path, "/blobs/")) {
				w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
				_, _ = w.Write(body)
				return true
			}
			return false
		}
		s.t = t
		s.registry.change.Store(&change)
		s.judge = New(Options{Registry: anonymous{}})
		s.use(keyless(workflow), rules)
		if v := s.ask(of.at()); v.Allowed {
			t.Errorf("%d, %q: %s", kind, body, show(v))
		}
	})
}
