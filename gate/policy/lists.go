package policy

import (
	"slices"
	"strings"

	"github.com/omnivision/omnivision/apis/v1alpha1"
)

// IsIn reports whether a whole repository is the one that a list means by the whole of
// it or by its last elements.
func IsIn(repository, listed string) bool {
	return repository == listed || strings.HasSuffix(repository, "/"+listed)
}

// Floor is an oldest version, and which policy says so.
type Floor struct {
	v1alpha1.Floor
	Policy string
	Warn   bool
}

// Floors are those for a repository.
func (s *Set) Floors(repository string) []Floor {
	var floors []Floor
	for _, f := range s.floors {
		if IsIn(repository, f.Repository) {
			floors = append(floors, f)
		}
	}
	return floors
}

// Admitted reports whether Git names a digest in a repository, or named it before and
// something still uses it.
func (s *Set) Admitted(repository, digest string) bool {
	return slices.ContainsFunc(s.admitted[digest], func(listed string) bool { return IsIn(repository, listed) })
}

// AdmittedIn lists the digests that Git names in a repository.
func (s *Set) AdmittedIn(repository string) []string {
	var digests []string
	for digest := range s.admitted {
		if s.Admitted(repository, digest) {
			digests = append(digests, digest)
		}
	}
	slices.Sort(digests)
	return digests
}

// Quarantine is an entry of the quarantine that an image fell under.
type Quarantine struct {
	Policy string
	Warn   bool
	Entry  string // what was taken back and why, for people
}

// Quarantined finds the entry for an image: by its digest, or because its signatures say that
// it is the version of the app that was taken back. The repository's last element is the
// app. One that is enforced goes before one that only warns.
func (s *Set) Quarantined(repository, digest string, versions []string) (Quarantine, bool) {
	app := repository[strings.LastIndex(repository, "/")+1:]
	var found Quarantine
	var ok bool
	for _, q := range s.quarantine {
		same := q.Digest == digest || q.App != "" && q.App == app && q.Version != "" && slices.Contains(versions, q.Version)
		if !same || ok && !found.Warn {
			continue
		}
		found, ok = Quarantine{Policy: q.policy, Warn: q.warn, Entry: describe(q)}, true
	}
	return found, ok
}

func describe(q quarantined) string {
	text := strings.TrimSpace(q.App + " " + q.Version)
	if q.Cluster != "" {
		text += " failed in " + q.Cluster
	}
	if !q.Since.IsZero() {
		text += " on " + q.Since.UTC().Format("2006-01-02 15:04 MST")
	}
	text = strings.TrimSpace(text + ": " + q.Reason)
	if q.Evidence != "" {
		text += " (" + q.Evidence + ")"
	}
	return strings.TrimPrefix(text, ": ")
}
