package api

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
)

// Response headers of a generation, beside those of Identity.
const (
	HeaderRequestID = "X-Request-Id"
	HeaderSeed      = "X-Omnivision-Seed"   // the seed that was used
	HeaderFrames    = "X-Omnivision-Frames" // how many frames the stream will have
	HeaderModel     = "X-Omnivision-Model"
	HeaderDevice    = "X-Omnivision-Device"
)

// Prefixes of the identity headers. A generation that came through the ui
// carries both: who made the animation, and who served the page.
const (
	PrefixWorker = "X-Omnivision-"
	PrefixUI     = "X-Omnivision-Ui-"
)

// Unknown stands for a part of the identity that nobody supplied, as on a
// laptop: a header that is always there is easier to check than one that may be.
const Unknown = "unknown"

// Identity says which process answered: where it runs and what it is.
type Identity struct {
	Region  string
	Cluster string
	Version string
	Commit  string
	Digest  string // of the image, sha256:…
}

var (
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	labelPattern  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._+-]{0,126}[A-Za-z0-9])?$`)
)

// Validate completes the identity with Unknown and refuses what could not be
// trusted as evidence later.
func (id Identity) Validate() (Identity, error) {
	out := Identity{
		Region:  cmp.Or(id.Region, Unknown),
		Cluster: cmp.Or(id.Cluster, Unknown),
		Version: cmp.Or(id.Version, Unknown),
		Commit:  cmp.Or(id.Commit, Unknown),
		Digest:  cmp.Or(id.Digest, Unknown),
	}
	for _, part := range []struct{ name, value string }{
		{"region", out.Region}, {"cluster", out.Cluster}, {"version", out.Version}, {"commit", out.Commit},
	} {
		if !labelPattern.MatchString(part.value) {
			return Identity{}, fmt.Errorf("%s %q is not a plain name: use letters, digits and . _ + -, at most 128", part.name, part.value)
		}
	}
	if out.Digest != Unknown && !digestPattern.MatchString(out.Digest) {
		return Identity{}, fmt.Errorf("image digest %q is malformed: it must be sha256: and 64 hexadecimal digits, or empty", out.Digest)
	}
	return out, nil
}

// SetHeaders writes the identity under PrefixWorker or PrefixUI.
func (id Identity) SetHeaders(h http.Header, prefix string) {
	h.Set(prefix+"Region", id.Region)
	h.Set(prefix+"Cluster", id.Cluster)
	h.Set(prefix+"Version", id.Version)
	h.Set(prefix+"Commit", id.Commit)
	h.Set(prefix+"Digest", id.Digest)
}
