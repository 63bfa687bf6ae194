package steward

import (
	"fmt"
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

// report tells what has changed.
func (s *story) report() []Action {
	if s.wanted.Empty() || s.here.Name == "" {
		return nil
	}
	var actions []Action
	now := s.state()
	if now != trimmed(s.wanted.Report, now) {
		actions = append(actions, Tell{
			App: s.app.Name, Cluster: s.Cluster, Release: s.wanted.Release, Commit: s.wanted.Commit, Source: s.git.Sources[s.wanted.Digest],
			Report: now, URL: s.link(s.wanted.Digest), Notify: now.State != s.wanted.Report.State && now.State.news(),
		})
	}
	actions = append(actions, s.lateAborts()...)
	return append(actions, s.done(now)...)
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

// lateAborts tells of canaries that were aborted while nobody looked and that Git wants no
// more: their commits would say for ever that they are on their way.
func (s *story) lateAborts() []Action {
	var actions []Action
	for _, abort := range s.here.Aborts {
		if abort.Digest == s.wanted.Digest || !s.unanswered(abort) || s.latest(RevertBranch(s.app.Name, abort.Digest)) != nil {
			continue // the one who opened its pull request told it
		}
		for _, landing := range s.wanted.Before {
			if landing.Release == abort.Release {
				actions = append(actions, Tell{App: s.app.Name, Cluster: s.Cluster, Release: abort.Release, Commit: landing.Commit, Source: s.git.Sources[abort.Digest], Report: Report{StateAborted, oneLine(abort.Evidence.Reason)}, URL: s.link(abort.Digest)})
				break
			}
		}
	}
	return actions
}

// link is the page of the pull request that takes an image back, if there is one.
func (s *story) link(digest string) string {
	if digest == "" {
		return ""
	}
	if pull := s.latest(RevertBranch(s.app.Name, digest)); pull != nil {
		return pull.URL
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
