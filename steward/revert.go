package steward

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// takeBack sees to it that every image which has to go leaves Git: one pull request for each,
// with the last good release of every cluster that Git wants it in, and the quarantine entry.
func (s *story) takeBack() []Action {
	var actions []Action
	for _, bad := range s.bad() {
		actions = append(actions, s.takeBackOne(bad)...)
	}
	return actions
}

// bad lists the images that have to leave Git: those that this cluster's canaries condemned,
// those with an open pull request, which every steward keeps on top of the base, and those
// that are quarantined and wanted all the same.
func (s *story) bad() []fleet.Release {
	var bad []fleet.Release
	add := func(r fleet.Release) {
		if r.Digest != "" && !slices.ContainsFunc(bad, func(b fleet.Release) bool { return b.Digest == r.Digest }) {
			bad = append(bad, r)
		}
	}
	for _, abort := range s.here.Aborts {
		if s.unanswered(abort) {
			add(abort.Release)
		}
	}
	for _, pull := range s.git.Pulls {
		if pull.Kind == Revert && pull.State == forge.Open {
			add(pull.Release)
		}
	}
	for _, cluster := range slices.Sorted(maps.Keys(s.git.Wanted)) {
		if release := s.git.Wanted[cluster].Release; s.Git.Quarantine.Has(release.Digest) {
			add(release)
		}
	}
	return bad
}

// unanswered reports whether Git has not yet heard of an abort. A person answers one by
// lifting the quarantine, or by letting the Rollout try again with success.
func (s *story) unanswered(a Abort) bool {
	if a.Digest == "" {
		return false
	}
	if a.Live && s.wanted.Digest == a.Digest {
		return true
	}
	if s.Git.Quarantine.Has(a.Digest) || !a.Live && s.here.Stable.Digest == a.Digest {
		return false
	}
	// Two clocks meet here. Lifting takes people minutes and a canary after it some more.
	lifted, ok := s.Git.Lifted[a.Digest]
	return !ok || a.At.After(lifted)
}

func (s *story) takeBackOne(bad fleet.Release) []Action {
	branch := RevertBranch(s.app.Name, bad.Digest)
	pull, abort := s.open(branch), s.abortOf(bad.Digest)
	if pull != nil && s.lifted(*pull) {
		// Where the Rollout is still aborted the next step opens one that says so.
		return s.giveUp(pull, "The quarantine of "+bad.Tag+" was lifted while this was open, and with it the reason to take the image back.")
	}
	change, possible := s.change(bad, pull, abort)
	switch {
	case possible && len(change.Set) == 0 && change.Entry == nil:
		return s.giveUp(pull, "Git has it already: "+bad.Tag+" is quarantined, and no cluster is told to run it.")
	case !possible || s.refused(branch, abort != nil && abort.Live || change.Entry == nil):
		return nil
	case pull == nil || !pull.Foreign && !s.shows(pull, change):
		return []Action{change}
	}
	var actions []Action
	if abort != nil && pull.Entry != nil && pull.Entry.Cluster != s.Cluster {
		actions = append(actions, Comment{*pull, "evidence/" + s.Cluster, evidenceText(s.Cluster, *abort)})
	}
	if s.app.Merges(fleet.MergeRevert) && !pull.Foreign {
		actions = append(actions, Merge{*pull})
	}
	return actions
}

// lifted reports whether a pull request was open already when somebody took its image off
// the quarantine list: the answer to it, whoever had asked. Both times are the forge's.
func (s *story) lifted(p Pull) bool {
	at, ok := s.Git.Lifted[p.Release.Digest]
	return ok && p.Created.Before(at)
}

// giveUp closes a pull request that nobody but stewards wrote to.
func (s *story) giveUp(pull *Pull, reason string) []Action {
	if pull == nil || pull.Foreign {
		return nil
	}
	return []Action{Withdraw{*pull, reason}}
}

// change is what takes an image back. It is not possible where no cluster's canary explains
// the quarantine entry, or a cluster has nothing that it could go back to.
func (s *story) change(bad fleet.Release, pull *Pull, abort *Abort) (p Propose, possible bool) {
	p = Propose{App: s.app.Name, Kind: Revert, Branch: RevertBranch(s.app.Name, bad.Digest), Base: s.Git.Commit, Set: map[string]fleet.Release{}}
	entry, quarantined := s.Git.Quarantine.Find(bad.Digest)
	switch {
	case quarantined:
	case pull != nil && pull.Entry != nil:
		entry = *pull.Entry
		p.Entry = &entry
	case abort != nil:
		entry = s.entry(*abort)
		p.Entry = &entry
	default:
		return p, false
	}
	for cluster, wanted := range s.git.Wanted {
		if wanted.Digest != bad.Digest {
			continue
		}
		good, ok := s.lastGood(cluster, pull)
		if !ok {
			return p, false
		}
		p.Set[cluster] = good
	}
	p.Title, p.Body, p.Time = s.revertText(bad, entry, pull, abort)
	return p, true
}

// lastGood is what a cluster goes back to. This cluster knows what its stable ReplicaSet
// runs; of others the branch's word stands, so that two stewards never argue, and where it
// has none, Git's history tells.
func (s *story) lastGood(cluster string, pull *Pull) (fleet.Release, bool) {
	good := func(r fleet.Release) bool { return !r.Empty() && !s.condemned[r.Digest] }
	before := s.git.Wanted[cluster].Before
	if stable := s.here.Stable; cluster == s.Cluster && good(stable) {
		for _, landing := range before {
			if landing.Release == stable {
				return stable, true
			}
		}
	}
	if pull != nil && good(pull.Wants[cluster]) {
		return pull.Wants[cluster], true
	}
	for _, landing := range before {
		if good(landing.Release) {
			return landing.Release, true
		}
	}
	return fleet.Release{}, false
}

// refused reports whether a person's no to the pull request has to be respected: for good if
// the canary is over, and for a while if the matter stands: the Rollout is still aborted, or
// Git wants what it quarantines, for which lifting is the way.
func (s *story) refused(branch string, stands bool) bool {
	last := s.latest(branch)
	if last == nil || last.State != forge.Closed || last.Withdrawn {
		return false
	}
	return !stands || s.Now.Sub(last.Updated) < ReopenAfter
}

// shows reports whether a pull request is just this change.
func (s *story) shows(p *Pull, change Propose) bool {
	if !p.Fresh || change.Entry != nil && (p.Entry == nil || p.Entry.Digest != change.Entry.Digest) {
		return false
	}
	if !covers(p.Wants, change.Set) {
		return false
	}
	for cluster, release := range p.Wants {
		if _, ok := change.Set[cluster]; !ok && release != s.git.Wanted[cluster].Release {
			return false
		}
	}
	return true
}

// abortOf is this cluster's unanswered abort of an image, if it has one.
func (s *story) abortOf(digest string) *Abort {
	for i := range s.here.Aborts {
		if a := &s.here.Aborts[i]; a.Digest == digest && s.unanswered(*a) {
			return a
		}
	}
	return nil
}

// maxReason is how many characters of a reason go onto the list; the pull request has the rest.
const maxReason = 300

func (s *story) entry(a Abort) fleet.Quarantined {
	reason := []rune(cmp.Or(oneLine(a.Evidence.Reason), "its canary was aborted"))
	return fleet.Quarantined{
		Digest: a.Digest, App: path.Base(s.app.Repository), Version: a.Tag, Cluster: s.Cluster,
		Reason: string(reason[:min(len(reason), maxReason)]), Since: a.At.UTC().Truncate(time.Second),
	}
}
