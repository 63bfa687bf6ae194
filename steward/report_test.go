package steward

import (
	"slices"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// P10: where a weight is shown, so is what it comes to.
func TestProgressNamesWhatTheWeightComesTo(t *testing.T) {
	for want, r := range map[string]Rollout{
		"weight 5 % of requests":    {Weight: 5, PodShare: -1},
		"weight 5 % (50 % of Pods)": {Weight: 5, PodShare: 50},
		"weight 0 % (0 % of Pods)":  {},
	} {
		if got := r.weight(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// P15: a canary that waits for a GPU says so.
func TestCanaryWithoutANodeIsToldWithTheReason(t *testing.T) {
	v, one, second := two()
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Progressing, Spec: second, Stable: one, PodShare: -1, Waiting: "0/2 nodes are available: 1 Insufficient nvidia.com/gpu"}
	want := Report{StateProgressing, "a Pod of the canary finds no node: 0/2 nodes are available: 1 Insufficient nvidia.com/gpu"}
	if got := v.of(v.Git.Fleet.Apps[0]).state(); got != want {
		t.Errorf("the report is %v, want %v", got, want)
	}
}

// A change around the image that is stable may be aborted, for lack of a GPU for example:
// that is for people to see, and no reason to take the image back.
func TestAbortedChangeAroundTheStableImageTakesNothingBack(t *testing.T) {
	v, _, second := two()
	here := Rollout{Name: "worker", Phase: Degraded, Spec: second, Stable: second, Message: "RolloutAborted: ReplicaSet has timed out progressing"}
	for name, aborts := range map[string][]Abort{"by the deadline": nil, "by an analysis, of which nothing else is known": {{Release: second, At: noon}}} {
		here.Aborts = aborts
		v.Here[simulatedApp] = here
		for _, a := range Decide(v) {
			if tell, ok := a.(Tell); !ok || tell.Report.State != StateDegraded || !strings.Contains(tell.Report.Text, "timed out") {
				t.Errorf("%s: decided is %v", name, a)
			}
		}
	}
}

func TestBrokenNodesAreIsolatedBeforeTheCanaryGoesOn(t *testing.T) {
	v, one, second := two()
	here := Rollout{Name: "worker", Phase: Paused, Spec: second, Stable: one, Inconclusive: "worker-gpu-hardware"}
	left, done := Fault{Node: "gpu-0", Pod: "p", Xid: "79"}, Fault{Node: "gpu-1", Pod: "q", Xid: "48", Isolated: true}
	for _, test := range []struct {
		name   string
		drain  bool
		faults []Fault
		want   []Action
	}{
		{"one is left", true, []Fault{left, done}, []Action{Isolate{left}}},
		{"none is left", true, []Fault{done}, []Action{Resume{simulatedApp, "worker"}}},
		{"no hardware is broken", true, nil, nil},
		{"nobody has opted in", false, []Fault{left}, nil},
	} {
		v.Drain, here.Faults = test.drain, test.faults
		v.Here = map[string]Rollout{simulatedApp: here}
		if got := v.of(fleet.App{Name: simulatedApp}).repair(); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestReplacedReleaseIsInactiveOnceItsSuccessorRuns(t *testing.T) {
	for _, test := range []struct {
		name        string
		phase       Phase
		said        State
		quarantined bool
		want        State // what is told of the release before; empty if nothing
	}{
		{"the successor runs", Healthy, StateSoaked, false, StateSuperseded},
		{"it was replaced on its way", Healthy, StateProgressing, false, StateSuperseded},
		{"the successor is on its way", Progressing, StateSoaked, false, ""},
		{"it was told", Healthy, StateSuperseded, false, ""},
		{"it was aborted", Healthy, StateAborted, false, ""},
		{"it is condemned", Healthy, StateProgressing, true, StateAborted},
		{"nothing was ever said of it", Healthy, "", false, ""},
	} {
		v, one, _ := two()
		here := v.Here[simulatedApp]
		here.Phase = test.phase
		v.Here[simulatedApp] = here
		v.Git.Apps[simulatedApp].Wanted["a"].Before[0].Report = Report{State: test.said}
		if test.quarantined {
			v.Git.Quarantine = fleet.Quarantine{{Digest: one.Digest, Cluster: "c"}}
		}
		var told State
		for _, a := range Decide(v) {
			if tell, ok := a.(Tell); ok && tell.Release == one {
				told = tell.Report.State
				if told == StateSuperseded && (tell.Commit != "m0" || tell.Notify || tell.Deployment("").State != forge.Inactive || tell.Report.Text != "by 0.1.0-3") {
					t.Errorf("%s: told is %+v", test.name, tell)
				}
			}
		}
		if told != test.want {
			t.Errorf("%s: told is %q, want %q", test.name, told, test.want)
		}
	}
}

// A release that is wanted again is not told to be superseded by what came between.
func TestReleaseThatIsWantedAgainIsNotSuperseded(t *testing.T) {
	v, one, second := two()
	w := v.Git.Apps[simulatedApp].Wanted["a"]
	w.Before = []Landing{{Release: one, Commit: "m1", Report: Report{StateHealthy, "since"}}, {Release: second, Commit: "m0", Report: Report{StateSoaked, "since"}}, {Release: one, Commit: "m", Report: Report{StateSoaked, "since"}}}
	v.Git.Apps[simulatedApp].Wanted["a"] = w
	var told []string
	for _, a := range Decide(v) {
		if tell, ok := a.(Tell); ok && tell.Report.State == StateSuperseded {
			told = append(told, tell.Commit)
		}
	}
	if !slices.Equal(told, []string{"m1"}) {
		t.Errorf("told is of %v", told)
	}
}
