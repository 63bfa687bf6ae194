package referrers_test

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/omnivision/omnivision/conveyor/referrers"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pushed is an image on a registry; wrap changes how the registry answers.
func pushed(t *testing.T, api bool, wrap func(http.Handler) http.Handler) name.Digest {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(api))
	server := httptest.NewServer(wrap(handler))
	t.Cleanup(server.Close)
	repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/omnivision-worker", name.Insecure)
	check(t, err)
	image, err := random.Image(10, 1)
	check(t, err)
	digest, err := image.Digest()
	check(t, err)
	ref := repository.Digest(digest.String())
	check(t, remote.Write(ref, image))
	return ref
}

func plain(h http.Handler) http.Handler { return h }

func bundles(t *testing.T, image name.Digest) []string {
	t.Helper()
	found, err := referrers.Bundles(t.Context(), image)
	check(t, err)
	texts := make([]string, len(found))
	for i, b := range found {
		texts[i] = string(b)
	}
	slices.Sort(texts)
	return texts
}

func TestBundlesAreFoundWithAndWithoutTheReferrersAPI(t *testing.T) {
	for name, api := range map[string]bool{"with it": true, "without it": false} {
		t.Run(name, func(t *testing.T) {
			image := pushed(t, api, plain)
			if got := bundles(t, image); len(got) != 0 {
				t.Errorf("before anything was attached there are %q", got)
			}
			for range 2 { // a repeated run
				check(t, referrers.Attach(t.Context(), image, []byte(`{"one":1}`), "https://example.com/one"))
				check(t, referrers.Attach(t.Context(), image, []byte(`{"two":2}`), "https://example.com/two"))
			}
			if got := bundles(t, image); !slices.Equal(got, []string{`{"one":1}`, `{"two":2}`}) {
				t.Errorf("found %q", got)
			}
		})
	}
}

// An upgraded registry answers the API, and what was pushed before is under the tag only.
func TestFallbackTagIsReadAlthoughTheAPIAnswers(t *testing.T) {
	upgraded := false
	image := pushed(t, false, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if upgraded && strings.Contains(r.URL.Path, "/referrers/") {
				w.Header().Set("Content-Type", string(types.OCIImageIndex))
				_, _ = io.WriteString(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	check(t, referrers.Attach(t.Context(), image, []byte(`{}`), "https://example.com/one"))
	upgraded = true
	if got := bundles(t, image); len(got) != 1 {
		t.Errorf("found %q", got)
	}
}

func TestArtifactsOfAnotherKindAreLeftAlone(t *testing.T) {
	image := pushed(t, true, plain)
	check(t, referrers.Attach(t.Context(), image, []byte(`{}`), "https://example.com/one"))
	descriptor, err := remote.Head(image)
	check(t, err)
	other := mutate.Subject(mutate.MediaType(empty.Image, types.OCIManifestSchema1), *descriptor).(v1.Image)
	digest, err := other.Digest()
	check(t, err)
	check(t, remote.Write(image.Context().Digest(digest.String()), other))
	if got := bundles(t, image); len(got) != 1 {
		t.Errorf("found %q", got)
	}
}

func TestNothingIsAttachedToAnImageThatIsNotThere(t *testing.T) {
	image := pushed(t, true, plain)
	none := image.Context().Digest("sha256:" + strings.Repeat("0", 64))
	if err := referrers.Attach(t.Context(), none, []byte(`{}`), "x"); err == nil || !strings.Contains(err.Error(), none.String()) {
		t.Errorf("error is %v", err)
	}
}

func TestRegistryThatFailsIsAnErrorAndNotAnEmptyList(t *testing.T) {
	down := false
	image := pushed(t, true, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if down {
				http.Error(w, "down", http.StatusForbidden)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	check(t, referrers.Attach(t.Context(), image, bytes.Repeat([]byte("x"), 10), "x"))
	down = true
	if found, err := referrers.Bundles(t.Context(), image); err == nil {
		t.Errorf("found %d and no error", len(found))
	}
}
