package steward

import (
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// How long stewards wait where no number in fleet.yaml says it.
const (
	// ReopenAfter is how long after a person closed the pull request of an abort that still
	// stands it is opened again.
	ReopenAfter = 10 * time.Minute
	// LostAfter is how long beyond its soak time a cluster may be silent before the failure
	// budget covers it.
	LostAfter = time.Hour
	// LinkWithin is how long the news of an abort wait for the pull request that answers it.
	LinkWithin = time.Minute
)

// Decide says what there is to do, the most urgent first. It is the whole protocol: it asks
// nobody and remembers nothing.
func Decide(v View) []Action {
	var actions []Action
	for _, app := range v.Git.Fleet.Apps {
		a := v.of(app)
		if _, ok := a.git.Wanted[v.Cluster]; !ok {
			continue // Git does not know this cluster
		}
		back := a.takeBack()
		actions = slices.Concat(actions, back, a.tend(), a.promote(), a.repair(), a.report(back))
	}
	return actions
}

// story is the view of one app.
type story struct {
	View
	app    fleet.App
	git    App
	here   Rollout
	wanted Wanted // of this cluster
	waves  [][]fleet.Cluster
	// condemned are the digests that no cluster should get, quarantined or about to be.
	condemned map[string]bool
}

func (v View) of(app fleet.App) *story {
	s := &story{View: v, app: app, git: v.Git.Apps[app.Name], here: v.Here[app.Name], waves: v.Git.Fleet.Waves(), condemned: map[string]bool{}}
	s.wanted = s.git.Wanted[v.Cluster]
	for _, entry := range v.Git.Quarantine {
		s.condemned[entry.Digest] = true
	}
	for _, pull := range s.git.Pulls {
		if pull.Kind == Revert && pull.State == forge.Open && !s.lifted(pull) {
			s.condemned[pull.Release.Digest] = true
		}
	}
	for _, abort := range s.here.Aborts {
		if s.unanswered(abort) {
			s.condemned[abort.Digest] = true
		}
	}
	return s
}

// RevertBranch is the one branch of an image that is taken back.
func RevertBranch(app, digest string) string {
	const digits = 12
	hex := strings.TrimPrefix(digest, "sha256:")
	return "revert/" + app + "/" + hex[:min(digits, len(hex))]
}

// open returns the open pull request of a branch; latest the newest there ever was.
func (s *story) open(branch string) *Pull {
	if p := s.latest(branch); p != nil && p.State == forge.Open {
		return p
	}
	return nil
}

func (s *story) latest(branch string) *Pull {
	var latest *Pull
	for i := range s.git.Pulls {
		p := &s.git.Pulls[i]
		if p.Branch != branch {
			continue
		}
		if p.State == forge.Open {
			return p
		}
		if latest == nil || p.Number > latest.Number {
			latest = p
		}
	}
	return latest
}

func releaseBranch(app string, wave int) string { return propose.Branch(app, wave) }

// newer reports whether a is a later build than b. Whatever is no version is not newer.
func newer(a, b fleet.Release) bool {
	order, err := source.Compare(a.Tag, b.Tag)
	return err == nil && order > 0
}
