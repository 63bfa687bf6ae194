package steward

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// Action is something to make so. Each may be repeated.
type Action interface{ String() string }

// Propose makes a branch be one commit on top of Base with these releases and this
// quarantine entry, and one open pull request show it. If the clusters' branch is not at
// Base any more nothing happens, and the error is a forge.Conflict.
type Propose struct {
	App         string
	Kind        Kind
	Branch      string
	Base        string
	Set         map[string]fleet.Release // by cluster
	Entry       *fleet.Quarantined       // to add to the list; nil adds none
	Title, Body string
	Time        time.Time // of the commit: the same proposal is the same commit, whoever makes it
}

func (a Propose) String() string {
	return fmt.Sprintf("propose %s at %s: %s", a.Branch, a.Base, strings.Join(slices.Sorted(maps.Keys(a.Set)), " "))
}

// Withdraw closes a pull request, and says why so that it does not look like a person's no.
type Withdraw struct {
	Pull   Pull
	Reason string
}

func (a Withdraw) String() string { return fmt.Sprintf("withdraw %s: %s", a.Pull.Branch, a.Reason) }

// Merge merges a pull request whose head is still as it was seen.
type Merge struct{ Pull Pull }

func (a Merge) String() string { return fmt.Sprintf("merge %s at %s", a.Pull.Branch, a.Pull.Head) }

// Comment writes the one comment of this steward on a pull request.
type Comment struct {
	Pull         Pull
	Marker, Body string
}

func (a Comment) String() string { return "comment on " + a.Pull.Branch }

// Tell reports how an app is in this cluster: first to the notified and to the source's
// commit, at last to the commit in Git, which is the mark that it was told.
type Tell struct {
	App     string
	Cluster string
	Release fleet.Release
	Commit  string // in the GitOps repository
	Source  string // commit of the source; empty if unknown
	Report  Report
	URL     string // of the pull request that goes with it; may be empty
	Notify  bool
}

func (a Tell) String() string { return fmt.Sprintf("tell %s %s: %s", a.App, a.Commit, a.Report) }

// TellDone reports that every cluster runs a release.
type TellDone struct {
	App      string
	Release  fleet.Release
	Commit   string // in the GitOps repository, for the mark
	Source   string
	Clusters []string
}

func (a TellDone) String() string { return fmt.Sprintf("tell %s is everywhere", a.Release.Tag) }

// Isolate cordons and drains a node with a broken GPU.
type Isolate struct{ Fault Fault }

func (a Isolate) String() string { return "isolate " + a.Fault.Node }

// Resume continues a Rollout that paused because of broken hardware: its analysis starts
// anew.
type Resume struct{ App, Rollout string }

func (a Resume) String() string { return "resume " + a.Rollout }

// State is the word that a report begins with.
type State string

// The states. Only Soaked lets a wave hand over.
const (
	StateWaiting     State = "waiting"     // Git wants it, the cluster has not got it yet
	StateProgressing State = "progressing" // the canary is on its way
	StatePaused      State = "paused"      // waits for a person
	StateHealthy     State = "healthy"     // runs everywhere in the cluster, and soaks
	StateSoaked      State = "soaked"
	StateAborted     State = "aborted"
	StateDegraded    State = "degraded" // not healthy, and not aborted
	// StateSuperseded is the last word on a release that Git wants no more here, once what
	// replaced it runs.
	StateSuperseded State = "superseded"
)

// Report is what a steward says of a release in its cluster, as a commit status of the
// GitOps repository: the one way in which stewards hear of each other's canaries.
type Report struct {
	State State
	Text  string
}

func (r Report) String() string { return string(r.State) + ": " + r.Text }

// Context names the commit status that holds a cluster's report.
func Context(app, cluster string) string { return "omnivision/" + app + "/" + cluster }

// DoneContext names the commit status that says that every cluster runs a release.
func DoneContext(app string) string { return "omnivision/" + app }

// Status is the report as a commit status.
func (r Report) Status(app, cluster, url string) forge.Status {
	return forge.Status{Context: Context(app, cluster), State: r.State.status(), Description: r.String(), URL: url}
}

func (s State) status() forge.StatusState {
	switch s {
	case StateSoaked, StateSuperseded: // what replaced it did not make it bad
		return forge.Success
	case StateAborted:
		return forge.Failure
	case StateDegraded:
		return forge.Errored
	}
	return forge.Pending
}

// deployment is the state as a forge's deployments have it.
func (s State) deployment() forge.DeploymentState {
	switch s {
	case StateHealthy, StateSoaked:
		return forge.Deployed
	case StateAborted, StateDegraded:
		return forge.Failed
	case StateWaiting:
		return forge.Queued
	case StateSuperseded:
		return forge.Inactive
	}
	return forge.InProgress
}

// Deployment is the report as a deployment of the source's commit.
func (a Tell) Deployment(environmentURL string) forge.Deployment {
	return forge.Deployment{SHA: a.Source, Environment: a.Cluster + "/" + a.App, State: a.Report.State.deployment(), Description: a.App + " " + a.Release.Tag + " " + a.Report.String(), URL: a.URL, EnvironmentURL: environmentURL}
}

// ParseReport reads a commit status back. What no steward wrote is no report.
func ParseReport(s forge.Status) (Report, bool) {
	word, text, ok := strings.Cut(s.Description, ": ")
	r := Report{State: State(word), Text: text}
	switch r.State {
	case StateWaiting, StateProgressing, StatePaused, StateHealthy, StateSoaked, StateAborted, StateDegraded, StateSuperseded:
		return r, ok && s.State == r.State.status()
	}
	return Report{}, false
}
