// Package steward closes the loop from a cluster's canary back to Git: it takes an image that
// a canary condemned out of Git and quarantines it, hands a release that has soaked on to the
// next wave, and reports to the commit that was pushed.
//
// There is one steward in each cluster, and no hub. What to do is decided by [Decide], a
// function of what Git and the forge say, what this cluster says, and the time: nothing is
// remembered between two steps, so a restart loses nothing, and a step may be repeated,
// interrupted anywhere, or taken by two stewards at once. They talk to each other through Git
// alone: by branches, pull requests and the commit statuses of the GitOps repository.
//
// This package knows no forge, no Git and no Kubernetes: steward/gitops and steward/observe
// do. docs/canary.md has the states as a diagram.
package steward

import (
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// View is all that a decision is made from.
type View struct {
	Now     time.Time // by this cluster's clock
	Cluster string    // whose steward this is
	Git     Git
	Here    map[string]Rollout // by app; an app without a Rollout is missing
	// Drain allows to cordon and drain nodes whose GPU is broken.
	Drain bool
}

// Git is what the GitOps repository and its forge say.
type Git struct {
	Commit     string // of the branch that the clusters follow
	Fleet      *fleet.Fleet
	Apps       map[string]App
	Quarantine fleet.Quarantine
	// Lifted is when digests that once were quarantined were taken off the list, by the
	// forge's clock.
	Lifted map[string]time.Time
}

// App is what Git says of one app.
type App struct {
	Wanted map[string]Wanted // by cluster
	Pulls  []Pull            // newest first; the open ones, and of each branch the newest
	// Sources are the commits that images were built from, by digest, as far as known.
	Sources map[string]string
}

// Wanted is what Git wants of an app in one cluster.
type Wanted struct {
	fleet.Release
	Commit string    // that brought it to the branch
	Since  time.Time // when it did, by the forge's clock
	Before []Landing // what was wanted before, the newest first
	Report Report    // what the cluster's steward last said of it; zero if nothing
	Link   string    // page that the report refers to; empty if to none
	Told   bool      // the source's commit says already that every cluster runs it
}

// Landing is a release that Git wanted once.
type Landing struct {
	fleet.Release
	Commit string
	// Report is what this steward last said of it. It is known for its own cluster, of the
	// newest and of what is quarantined now; zero otherwise.
	Report Report
}

// Kind tells the steward's pull requests apart.
type Kind string

// The kinds.
const (
	Release Kind = "release" // an image for the clusters of a wave
	Revert  Kind = "revert"  // takes an image out of every cluster and quarantines it
)

// Pull is a pull request from one of the branches that releases and stewards write.
type Pull struct {
	Number  int64
	URL     string
	Branch  string
	Kind    Kind
	Wave    int           // of a release
	Release fleet.Release // that it brings, or takes back
	State   forge.PullRequestState
	Created time.Time // by the forge's clock, as Updated is
	Updated time.Time
	// Withdrawn says that a steward closed it; otherwise a person did.
	Withdrawn bool
	Head      string // commit
	// Fresh says that the branch is one commit on top of Git.Commit that changes nothing but
	// the releases in Wants and the quarantine's Entry.
	Fresh bool
	// Foreign says that a person pushed to the branch.
	Foreign bool
	Wants   map[string]fleet.Release // by cluster, as the branch has them
	Entry   *fleet.Quarantined       // of Release on the branch's list; nil if it has none
	Title   string                   // of the branch's commit
	Body    string
	Time    time.Time // of that commit
}

// Phase is where a Rollout stands, in Argo Rollouts' words.
type Phase string

// The phases.
const (
	Healthy     Phase = "Healthy"
	Progressing Phase = "Progressing"
	Paused      Phase = "Paused"
	Degraded    Phase = "Degraded"
)

// Rollout is what this cluster says of an app.
type Rollout struct {
	Name    string
	Phase   Phase
	Message string
	Spec    fleet.Release // image that it was told to run
	Stable  fleet.Release // image of the stable ReplicaSet
	// HealthySince is since when it has been Healthy with Spec, without a break, by the
	// cluster's clock; zero if it is not.
	HealthySince time.Time
	Step, Steps  int // of the canary
	Weight       int // percent of the canary
	// PodShare is what the weight comes to where no traffic router shifts requests (P10):
	// the percentage of Pods that are canaries. -1 with a router.
	PodShare int
	// Inconclusive says why an analysis could not tell; empty if it could.
	Inconclusive string
	// Waiting says why a Pod of the canary finds no node (P15); empty if none waits.
	Waiting string
	Aborts  []Abort // newest first
	Faults  []Fault // broken GPUs under the canary
	Trouble string  // why Argo CD does not apply what Git wants; empty if it does
}

// Abort is a canary that was aborted.
type Abort struct {
	fleet.Release           // of the canary
	At            time.Time // by the cluster's clock
	// Live says that the Rollout is still aborted; otherwise a finished analysis tells of it.
	Live bool
	// Revision is the canary's pod-template-hash.
	Revision string
	Evidence Evidence
}

// Evidence is why a canary was aborted. All of it may come from anywhere.
type Evidence struct {
	Reason  string // one line
	Metrics []Metric
	Pods    []string // "name on node: what it says"
	Logs    Logs
}

// Logs are lines of the canary's containers.
type Logs struct {
	Source string    // who had them; empty if nobody was asked
	Lines  []LogLine // the newest last
	// Missing says why there are none; empty if there are, or if nobody was asked.
	Missing string
}

// LogLine is what a container wrote at once; a stack trace has several lines.
type LogLine struct {
	At             time.Time
	Pod, Container string
	Text           string // credentials are masked already
}

// Metric is what an analysis measured.
type Metric struct {
	Name, Phase, Message string
	Values               []Value // the newest last
	Window               Window
}

// Value is one measurement.
type Value struct {
	At    time.Time
	Value string
	Phase string
}

// Window is how the number that an analysis asks for went from before the canary to its abort.
type Window struct {
	From   time.Time
	Step   time.Duration
	Points []float64 // one for each step; NaN where there was no sample
	// Missing says why there are no points; empty if there are, or if nobody was asked.
	Missing string
}

// Fault is a GPU that reports an Xid of broken hardware, which condemns the node and not the
// image (P17).
type Fault struct {
	Node, Pod, Xid string
	Isolated       bool // cordoned, and none of the app's Pods left
}
