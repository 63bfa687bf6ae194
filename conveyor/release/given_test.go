package release

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/sign"
)

// given pushes an image without an index to every repository.
func (s *site) given() build.Result {
	s.t.Helper()
	image, err := random.Image(20, 1)
	check(s.t, err)
	digest, err := image.Digest()
	check(s.t, err)
	for _, repository := range s.repos {
		check(s.t, remote.Write(repository.Tag("assembled"), image))
	}
	return build.Result{
		Digest: digest.String(), Tag: "assembled",
		Platforms: []build.Platform{{Platform: "linux/amd64", Digest: digest.String()}},
	}
}

func TestAGivenImageIsScannedAndSignedAsAnyOther(t *testing.T) {
	s := newSite(t)
	image := s.given()
	r := s.release()
	subject := conveyor.Subject{App: r.App, Commit: CommitOf("unknown"), Version: "assembled"}
	outcomes, err := r.GivenBelt(image, subject, s.store, &watcher{}).Run(t.Context(), "")
	check(t, err)
	var signed sign.Result
	check(t, json.Unmarshal(outcomes[2].Result, &signed))
	for _, repository := range s.repos {
		believed, refused, err := s.signer.Policy().Image(t.Context(), repository.Digest(image.Digest))
		check(t, err)
		if len(believed) != 4 || len(refused) != 0 || signed.Statements != 4 {
			t.Errorf("in %s are %d statements, %d of %d refused; want signature, provenance, SBOM and scan", repository, len(believed), len(refused), signed.Statements)
		}
	}
	if len(s.proposer.requests) != 0 {
		t.Error("it was proposed")
	}

	again, err := r.GivenBelt(image, subject, s.store, &watcher{}).Run(t.Context(), "")
	check(t, err)
	for _, o := range again {
		if !o.Kept {
			t.Errorf("%s was done twice", o.Stage)
		}
	}
	w := &watcher{}
	_, err = r.GivenBelt(s.given(), subject, s.store, w).Run(t.Context(), "")
	check(t, err)
	if len(w.again) != 3 {
		t.Errorf("of another image was done again: %q; want every stage", w.again)
	}
	gone := s.given()
	gone.Digest = "sha256:" + strings.Repeat("0", 64)
	if _, err := r.GivenBelt(gone, subject, s.store, &watcher{}).Run(t.Context(), ""); err == nil {
		t.Error("an image that no registry has was vouched for")
	}
}

func TestCommitOfASourceWithChanges(t *testing.T) {
	commit := strings.Repeat("a", 40)
	for described, want := range map[string]string{commit: commit, commit + "-dirty": commit, "unknown": strings.Repeat("0", 40), "": strings.Repeat("0", 40)} {
		if got := CommitOf(described); got != want {
			t.Errorf("%q is of %s, want %s", described, got, want)
		}
	}
}
