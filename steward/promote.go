package steward

import (
	"fmt"
	"slices"
	"strings"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// tend looks after the open releases, whoever proposed them: those that must not, or need not,
// be merged any more are closed, and the others are kept on top of the base, where the
// branch's protection wants them and a revert may have put a conflict in their way.
func (s *story) tend() []Action {
	var actions []Action
	for _, pull := range s.git.Pulls {
		if pull.Kind != Release || pull.State != forge.Open {
			continue
		}
		if reason := s.outdated(pull); reason != "" {
			actions = append(actions, Withdraw{pull, reason})
		} else if !pull.Fresh && !pull.Foreign {
			actions = append(actions, Propose{App: s.app.Name, Kind: Release, Branch: pull.Branch, Base: s.Git.Commit, Set: s.brings(pull), Title: pull.Title, Body: pull.Body, Time: pull.Time})
		}
	}
	return actions
}

// brings is what an open release sets, in the clusters of its wave.
func (s *story) brings(pull Pull) map[string]fleet.Release {
	set := map[string]fleet.Release{}
	for _, cluster := range s.Git.Fleet.Clusters {
		if cluster.Wave == pull.Wave && pull.Wants[cluster.Name] == pull.Release {
			set[cluster.Name] = pull.Release
		}
	}
	return set
}

// outdated says why an open release is not to be merged; empty if it may be.
func (s *story) outdated(pull Pull) string {
	if s.condemned[pull.Release.Digest] {
		return "A canary of " + pull.Release.Tag + " was aborted: it is quarantined, or about to be."
	}
	if s.overtaken(pull) {
		return "Git has it already, or something newer."
	}
	before := s.waveBefore(pull.Wave)
	for _, cluster := range before {
		if wanted := s.git.Wanted[cluster.Name]; newer(wanted.Release, pull.Release) {
			return fmt.Sprintf("Superseded: %s is on its way to %s already, and comes here when it has soaked.", wanted.Tag, cluster.Name)
		}
	}
	for _, cluster := range before {
		if wanted := s.git.Wanted[cluster.Name]; wanted.Release == pull.Release || !wanted.takenBack(pull.Release) {
			return ""
		}
	}
	if len(before) > 0 {
		return pull.Release.Tag + " was taken out of the wave before this one."
	}
	return ""
}

// overtaken reports whether an open release would bring no cluster anything newer.
func (s *story) overtaken(pull Pull) bool {
	if pull.Foreign {
		return false
	}
	for cluster := range s.brings(pull) {
		if wanted := s.git.Wanted[cluster].Release; wanted.Empty() || newer(pull.Release, wanted) {
			return false
		}
	}
	return true
}

// waveBefore returns the clusters of the wave before one; nil before the first.
func (s *story) waveBefore(wave int) []fleet.Cluster {
	for i := 1; i < len(s.waves); i++ {
		if s.waves[i][0].Wave == wave {
			return s.waves[i-1]
		}
	}
	return nil
}

// takenBack reports whether a release was once wanted here and then replaced by an older one.
// One that a newer one replaced was only overtaken.
func (w Wanted) takenBack(r fleet.Release) bool {
	after := w.Release
	for _, landing := range w.Before {
		if landing.Release == r && newer(r, after) {
			return true
		}
		after = landing.Release
	}
	return false
}

// promote proposes what has soaked in this cluster to those clusters of its wave that were
// left behind, and then to the next wave.
func (s *story) promote() []Action {
	for i, wave := range s.waves {
		me := slices.IndexFunc(wave, func(c fleet.Cluster) bool { return c.Name == s.Cluster })
		if me < 0 {
			continue
		}
		if behind := s.behind(wave); len(behind) > 0 {
			if s.state().State == StateSoaked && s.due(s.wanted.Release, behind) {
				return s.handOver(s.wanted.Release, wave[me:me+1], behind)
			}
			return nil
		}
		if release, ok := s.soaked(wave); ok && i+1 < len(s.waves) && s.due(release, s.waves[i+1]) {
			return s.handOver(release, wave, s.waves[i+1])
		}
	}
	return nil
}

// behind lists the clusters of the wave that want an older release than this one. A revert
// leaves them so: each cluster goes back to what it last ran in full.
func (s *story) behind(wave []fleet.Cluster) []fleet.Cluster {
	var behind []fleet.Cluster
	for _, cluster := range wave {
		if newer(s.wanted.Release, s.git.Wanted[cluster.Name].Release) {
			behind = append(behind, cluster)
		}
	}
	return behind
}

// soaked returns the one release that a wave wants and has proven. A steward speaks for its
// own wave alone, and for its own cluster by what it sees and not by what was reported.
func (s *story) soaked(wave []fleet.Cluster) (fleet.Release, bool) {
	terms := s.Git.Fleet.Handover(wave[0].Wave)
	mine, lost := false, 0
	for _, cluster := range wave {
		wanted := s.git.Wanted[cluster.Name]
		if wanted.Release != s.wanted.Release {
			return fleet.Release{}, false
		}
		state := wanted.Report.State
		if cluster.Name == s.Cluster {
			mine, state = true, s.state().State
		}
		switch {
		case state == StateSoaked:
		case s.lost(wanted, state, terms):
			lost++
		default:
			return fleet.Release{}, false
		}
	}
	return s.wanted.Release, mine && s.state().State == StateSoaked && lost <= terms.FailureBudget
}

// lost reports whether a cluster is of those that the failure budget is for: silent or
// degraded for so long that it will not prove the release.
func (s *story) lost(w Wanted, state State, terms fleet.Handover) bool {
	return (state == "" || state == StateDegraded) && s.Now.Sub(w.Since) >= terms.Soak+LostAfter
}

// due reports whether a release is for the next wave: newer than what is there, not
// condemned, and neither taken back nor turned down by a person.
func (s *story) due(r fleet.Release, next []fleet.Cluster) bool {
	if r.Empty() || s.condemned[r.Digest] {
		return false
	}
	missing := false
	for _, cluster := range next {
		wanted := s.git.Wanted[cluster.Name]
		if wanted.Release == r {
			continue
		}
		missing = true
		if _, lifted := s.Git.Lifted[r.Digest]; wanted.takenBack(r) && !lifted {
			return false
		}
		if !wanted.Empty() && !newer(r, wanted.Release) {
			return false
		}
	}
	last := s.latest(releaseBranch(s.app.Name, next[0].Wave))
	if last == nil {
		return missing
	}
	rejected := last.State == forge.Closed && !last.Withdrawn && last.Release == r
	ahead := last.State == forge.Open && newer(last.Release, r)
	return missing && !rejected && !ahead
}

func (s *story) handOver(r fleet.Release, wave, next []fleet.Cluster) []Action {
	change := Propose{
		App: s.app.Name, Kind: Release, Branch: releaseBranch(s.app.Name, next[0].Wave), Base: s.Git.Commit,
		Set: map[string]fleet.Release{}, Time: s.git.Wanted[wave[0].Name].Since,
	}
	for _, cluster := range next {
		change.Set[cluster.Name] = r
	}
	change.Title, change.Body = s.promotionText(r, wave, next)
	pull := s.open(change.Branch)
	switch {
	case pull == nil:
		return []Action{change}
	case pull.Foreign:
		return nil
	case pull.Release != r || !covers(pull.Wants, change.Set):
		return []Action{change}
	case pull.Fresh && s.app.Merges(fleet.MergePromote):
		return []Action{Merge{*pull}}
	}
	return nil // tend keeps it fresh
}

func covers(have, want map[string]fleet.Release) bool {
	for cluster, release := range want {
		if have[cluster] != release {
			return false
		}
	}
	return true
}

func names(clusters []fleet.Cluster) string {
	all := make([]string, len(clusters))
	for i, c := range clusters {
		all[i] = c.Name
	}
	return strings.Join(all, ", ")
}
