package steward

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// state says how this cluster is with what Git wants of it.
func (s *story) state() Report {
	here, wanted := s.here, s.wanted
	for _, abort := range here.Aborts {
		if abort.Live && abort.Digest == wanted.Digest {
			return Report{StateAborted, oneLine(abort.Evidence.Reason)}
		}
	}
	switch {
	case here.Spec.Digest != wanted.Digest && here.Trouble != "":
		return Report{StateDegraded, oneLine("Argo CD: " + here.Trouble)}
	case here.Spec.Digest != wanted.Digest:
		return Report{StateWaiting, "Argo CD has not applied it yet"}
	case here.Phase == Healthy && here.Stable.Digest == wanted.Digest && !here.HealthySince.IsZero():
		since := "since " + here.HealthySince.UTC().Format(time.RFC3339)
		if s.Now.Sub(here.HealthySince) >= s.soak() {
			return Report{StateSoaked, since}
		}
		return Report{StateHealthy, since}
	case here.Inconclusive != "":
		return Report{StatePaused, oneLine("the analysis could not tell: " + here.Inconclusive)}
	case here.Phase == Degraded:
		return Report{StateDegraded, oneLine(here.Message)}
	case here.Waiting != "":
		return Report{StateProgressing, oneLine("a Pod of the canary finds no node: " + here.Waiting)}
	}
	return Report{StateProgressing, oneLine(fmt.Sprintf("step %d of %d, %s", here.Step, here.Steps, here.weight()))}
}

// weight is the canary's share of requests, or what it comes to in Pods (P10).
func (r Rollout) weight() string {
	if r.PodShare < 0 {
		return fmt.Sprintf("weight %d %% of requests", r.Weight)
	}
	return fmt.Sprintf("weight %d %% (%d %% of Pods)", r.Weight, r.PodShare)
}

func (s *story) soak() time.Duration {
	for _, c := range s.Git.Fleet.Clusters {
		if c.Name == s.Cluster {
			return s.Git.Fleet.Handover(c.Wave).Soak
		}
	}
	return fleet.DefaultSoak
}

// report tells what has changed. Of an abort it tells when there is the pull request to link
// to, which this step may be about to open.
func (s *story) report(back []Action) []Action {
	if s.wanted.Empty() || s.here.Name == "" {
		return nil
	}
	var actions []Action
	now, link := s.state(), s.link(s.wanted.Release)
	changed := now != trimmed(s.wanted.Report, now)
	if (changed || link != "" && link != s.wanted.Link) && !(now.State == StateAborted && s.answering(back)) {
		actions = append(actions, Tell{
			App: s.app.Name, Cluster: s.Cluster, Release: s.wanted.Release, Commit: s.wanted.Commit, Source: s.git.Sources[s.wanted.Digest],
			Report: now, URL: link, Notify: now.State != s.wanted.Report.State && now.State.news(),
		})
	}
	actions = append(actions, s.lateAborts()...)
	actions = append(actions, s.superseded(now)...)
	return append(actions, s.done(now)...)
}

// answering reports whether this step opens the pull request of a fresh abort.
func (s *story) answering(back []Action) bool {
	branch := RevertBranch(s.app.Name, s.wanted.Digest)
	opens := slices.ContainsFunc(back, func(a Action) bool { p, ok := a.(Propose); return ok && p.Branch == branch })
	abort := s.abortOf(s.wanted.Digest)
	return opens && s.open(branch) == nil && abort != nil && s.Now.Sub(abort.At) < LinkWithin
}

// trimmed allows for what a forge cut off.
func trimmed(told, now Report) Report {
	if told.State == now.State && (forge.Status{Description: now.String()}).Trimmed().Description == told.String() {
		return now
	}
	return told
}

// news reports whether people are to be notified of a state, besides seeing it.
func (s State) news() bool {
	return s == StateAborted || s == StatePaused || s == StateDegraded || s == StateHealthy
}

// lateAborts tells of canaries that Git wants no more and that nobody told of: their commits
// would say for ever that they are on their way. The steward did not look when they were
// aborted, or was killed between the merge of the answer and the news of it.
func (s *story) lateAborts() []Action {
	var actions []Action
	told := map[fleet.Release]bool{s.wanted.Release: true}
	for _, landing := range s.wanted.Before {
		if told[landing.Release] || landing.Report.State == StateAborted {
			told[landing.Release] = true
			continue
		}
		told[landing.Release] = true
		if reason, notify, ok := s.late(landing.Release); ok {
			actions = append(actions, Tell{
				App: s.app.Name, Cluster: s.Cluster, Release: landing.Release, Commit: landing.Commit, Source: s.git.Sources[landing.Digest],
				Report: Report{StateAborted, oneLine(reason)}, URL: s.link(landing.Release), Notify: notify,
			})
		}
	}
	return actions
}

// superseded tells of what Git wanted here before, once what it wants now runs: the commits
// would say for ever that it runs too, or is on its way. Of a release that is condemned the
// abort is told.
func (s *story) superseded(now Report) []Action {
	if now.State != StateHealthy && now.State != StateSoaked {
		return nil
	}
	var actions []Action
	told := map[fleet.Release]bool{s.wanted.Release: true}
	for _, landing := range s.wanted.Before {
		said := landing.Report.State
		if !told[landing.Release] && !s.condemned[landing.Digest] && said != "" && said != StateAborted && said != StateSuperseded {
			actions = append(actions, Tell{
				App: s.app.Name, Cluster: s.Cluster, Release: landing.Release, Commit: landing.Commit, Source: s.git.Sources[landing.Digest],
				Report: Report{StateSuperseded, oneLine("by " + s.wanted.Tag)}, URL: s.link(landing.Release),
			})
		}
		told[landing.Release] = true
	}
	return actions
}

// late says why a release that Git wants no more was bad. People are notified of what
// happened in this cluster, and lately.
func (s *story) late(r fleet.Release) (reason string, notify, ok bool) {
	entry, quarantined := s.Git.Quarantine.Find(r.Digest)
	for _, abort := range s.here.Aborts {
		if abort.Release != r {
			continue
		}
		fresh := s.Now.Sub(abort.At) < LostAfter
		// Whoever opened the pull request of one that is not yet on the list told it.
		if quarantined || s.unanswered(abort) && s.latest(RevertBranch(s.app.Name, r.Digest)) == nil {
			return abort.Evidence.Reason, quarantined && fresh, true
		}
	}
	return "taken back: its canary in " + entry.Cluster + " was aborted", false, quarantined
}

// link is the page of the pull request that takes a release back, or else of the one that
// brought it.
func (s *story) link(r fleet.Release) string {
	if pull := s.latest(RevertBranch(s.app.Name, r.Digest)); pull != nil && r.Digest != "" {
		return pull.URL
	}
	for _, cluster := range s.Git.Fleet.Clusters {
		if cluster.Name != s.Cluster {
			continue
		}
		if pull := s.latest(releaseBranch(s.app.Name, cluster.Wave)); pull != nil && pull.Release == r {
			return pull.URL
		}
	}
	return ""
}

// done tells the source's commit when every cluster runs a release. The last cluster's
// steward does: it sees all the others' reports.
func (s *story) done(now Report) []Action {
	last := s.waves[len(s.waves)-1]
	if s.wanted.Told || last[len(last)-1].Name != s.Cluster {
		return nil
	}
	var all []string
	for _, cluster := range s.Git.Fleet.Clusters {
		wanted := s.git.Wanted[cluster.Name]
		state := wanted.Report.State
		if cluster.Name == s.Cluster {
			state = now.State
		}
		if wanted.Release != s.wanted.Release || state != StateHealthy && state != StateSoaked {
			return nil
		}
		all = append(all, cluster.Name)
	}
	return []Action{TellDone{App: s.app.Name, Release: s.wanted.Release, Commit: s.wanted.Commit, Source: s.git.Sources[s.wanted.Digest], Clusters: all}}
}

// repair takes nodes with broken GPUs out of service, and then lets the canary go on: broken
// hardware says nothing about the image (P17).
func (s *story) repair() []Action {
	if !s.Drain || s.here.Inconclusive == "" || len(s.here.Faults) == 0 {
		return nil
	}
	var actions []Action
	for _, fault := range s.here.Faults {
		if !fault.Isolated {
			actions = append(actions, Isolate{fault})
		}
	}
	if len(actions) > 0 {
		return actions
	}
	return []Action{Resume{s.app.Name, s.here.Name}}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
