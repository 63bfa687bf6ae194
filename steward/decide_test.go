package steward

import (
	"testing"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func release(w *world) fleet.Release { return w.build().wants[w.clusters[0].name] }

// two is a view of the first of two clusters, a wave each, which run the first build and
// of which the first wants and runs the second one, soaked.
func two() (v View, one, second fleet.Release) {
	w := newWorld(1)
	one, second = release(w), release(w)
	f := &fleet.Fleet{
		Clusters: []fleet.Cluster{{Name: "a", Wave: 1}, {Name: "b", Wave: 1}, {Name: "c", Wave: 2}},
		Apps:     []fleet.App{{Name: simulatedApp, Repository: simulatedApp}},
	}
	wants := func(r fleet.Release, before ...Landing) Wanted {
		return Wanted{Release: r, Commit: "m", Since: noon.Add(-3 * time.Hour), Before: before, Report: Report{StateSoaked, "since"}}
	}
	was := Landing{Release: one, Commit: "m0"}
	return View{
		Now: noon, Cluster: "a",
		Here: map[string]Rollout{simulatedApp: {Name: "worker", Phase: Healthy, Spec: second, Stable: second, HealthySince: noon.Add(-time.Hour)}},
		Git: Git{Commit: "m1", Fleet: f, Apps: map[string]App{simulatedApp: {Wanted: map[string]Wanted{
			"a": wants(second, was), "b": wants(second, was), "c": wants(one),
		}}}},
	}, one, second
}

func proposals(v View) []Propose {
	var found []Propose
	for _, a := range Decide(v) {
		if p, ok := a.(Propose); ok {
			found = append(found, p)
		}
	}
	return found
}

func (v View) report(cluster string, r Report) {
	w := v.Git.Apps[simulatedApp].Wanted[cluster]
	w.Report = r
	v.Git.Apps[simulatedApp].Wanted[cluster] = w
}

func TestFailureBudgetCoversSilenceAndNeverAnAbort(t *testing.T) {
	for _, test := range []struct {
		name   string
		state  State
		budget int
		after  time.Duration // since the release landed
		want   bool
	}{
		{"all soaked", StateSoaked, 0, 3 * time.Hour, true},
		{"one silent, no budget", "", 0, 3 * time.Hour, false},
		{"one silent, with budget", "", 1, 3 * time.Hour, true},
		{"one silent, but not for long", "", 1, time.Hour, false},
		{"one degraded, with budget", StateDegraded, 1, 3 * time.Hour, true},
		{"one on its way, with budget", StateProgressing, 1, 3 * time.Hour, false},
		{"one paused, with budget", StatePaused, 1, 3 * time.Hour, false},
		{"one healthy and not soaked", StateHealthy, 1, 3 * time.Hour, false},
		{"one aborted, with budget", StateAborted, 1, 3 * time.Hour, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, _, second := two()
			v.Git.Fleet.Handovers = []fleet.Handover{{Wave: 1, Soak: 30 * time.Minute, FailureBudget: test.budget}}
			w := v.Git.Apps[simulatedApp].Wanted["b"]
			w.Since = noon.Add(-test.after)
			v.Git.Apps[simulatedApp].Wanted["b"] = w
			v.report("b", Report{State: test.state})
			found := proposals(v)
			if (len(found) == 1) != test.want || test.want && (found[0].Set["c"] != second || len(found[0].Set) != 1) {
				t.Errorf("proposed is %+v, want it: %v", found, test.want)
			}
		})
	}
}

func TestPersonsNoToTheNextWaveIsRespected(t *testing.T) {
	v, _, second := two()
	pull := Pull{Number: 1, Branch: releaseBranch(simulatedApp, 2), Kind: Release, Wave: 2, Release: second, State: forge.Closed}
	for _, test := range []struct {
		name      string
		withdrawn bool
		want      int
	}{{"a person closed it", false, 0}, {"a steward did", true, 1}} {
		pull.Withdrawn = test.withdrawn
		app := v.Git.Apps[simulatedApp]
		app.Pulls = []Pull{pull}
		v.Git.Apps[simulatedApp] = app
		if found := proposals(v); len(found) != test.want {
			t.Errorf("%s: proposed is %+v", test.name, found)
		}
	}
}

func TestAbortTakesTheImageOutOfEveryCluster(t *testing.T) {
	v, one, second := two()
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Degraded, Spec: second, Stable: one, Aborts: []Abort{{Release: second, At: noon, Live: true, Evidence: Evidence{Reason: "Xid\n31"}}}}
	found := proposals(v)
	if len(found) != 1 || found[0].Kind != Revert || found[0].Set["a"] != one || found[0].Set["b"] != one || len(found[0].Set) != 2 {
		t.Fatalf("proposed is %+v", found)
	}
	if e := found[0].Entry; e == nil || e.Digest != second.Digest || e.Cluster != "a" || e.Reason != "Xid 31" || !e.Since.Equal(noon) {
		t.Errorf("the entry is %+v", e)
	}
	// Closed by a person while the Rollout is aborted: opened again, after a while.
	app := v.Git.Apps[simulatedApp]
	app.Pulls = []Pull{{Number: 1, Branch: found[0].Branch, Kind: Revert, Release: second, State: forge.Closed, Updated: noon}}
	v.Git.Apps[simulatedApp] = app
	if again := proposals(v); len(again) != 0 {
		t.Errorf("at once it is proposed again: %+v", again)
	}
	v.Now = noon.Add(ReopenAfter)
	if again := proposals(v); len(again) != 1 {
		t.Errorf("later proposed is %+v", again)
	}
}

func TestNothingToGoBackToProposesNothing(t *testing.T) {
	v, _, second := two()
	for _, name := range []string{"a", "b"} {
		w := v.Git.Apps[simulatedApp].Wanted[name]
		w.Before = nil
		v.Git.Apps[simulatedApp].Wanted[name] = w
	}
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Degraded, Spec: second, Aborts: []Abort{{Release: second, At: noon, Live: true}}}
	if found := proposals(v); len(found) != 0 {
		t.Errorf("proposed is %+v", found)
	}
}

func TestReportsAreReadBackAsTheyWereWritten(t *testing.T) {
	for _, state := range []State{StateWaiting, StateProgressing, StatePaused, StateHealthy, StateSoaked, StateAborted, StateDegraded, StateSuperseded} {
		r := Report{state, "since: then"}
		if got, ok := ParseReport(r.Status("app", "cluster", "")); !ok || got != r {
			t.Errorf("%v became %v", r, got)
		}
	}
	for _, s := range []forge.Status{{}, {Description: "soaked", State: forge.Success}, {Description: "soaked: x", State: forge.Failure}, {Description: "good: x", State: forge.Success}} {
		if got, ok := ParseReport(s); ok {
			t.Errorf("%+v was taken for the report %v", s, got)
		}
	}
}

func FuzzTrailer(f *testing.F) {
	f.Add("OmniVision-Release: a 1 sha256:x")
	f.Add("OmniVision-Revert: a 1 x")
	f.Add("x\r\nOmniVision-Revert: a 1 sha256:x\r\n")
	f.Fuzz(func(t *testing.T, body string) {
		kind, app, r, ok := Trailer(body)
		if ok != (kind != "") || ok && (app == "" || r.Tag == "") {
			t.Errorf("%q reads as %q %q %v", body, kind, app, r)
		}
		RevertBranch(app, r.Digest)
	})
}

// Found by the simulation with seed 4699: a no to the pull request left a quarantined image
// wanted for ever.
func TestPersonsNoDoesNotKeepAQuarantinedImage(t *testing.T) {
	v, one, second := two()
	v.Git.Quarantine = fleet.Quarantine{{Digest: second.Digest, Cluster: "a"}}
	app := v.Git.Apps[simulatedApp]
	app.Pulls = []Pull{{Number: 1, Branch: RevertBranch(simulatedApp, second.Digest), Kind: Revert, Release: second, State: forge.Closed, Updated: noon}}
	v.Git.Apps[simulatedApp] = app
	if found := proposals(v); len(found) != 0 {
		t.Errorf("at once proposed is %+v", found)
	}
	v.Now = noon.Add(ReopenAfter)
	if found := proposals(v); len(found) != 1 || found[0].Entry != nil || found[0].Set["a"] != one || found[0].Set["b"] != one {
		t.Errorf("later proposed is %+v", found)
	}
}

// N+1 lands while the canary of N is on its way here, and N waits to be merged further on.
func TestNewerReleaseSupersedesCanaryAndWave(t *testing.T) {
	v, one, second := two()
	third := fleet.Release{Tag: "0.1.0-9", Digest: "sha256:9"}
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Progressing, Spec: second, Stable: one}
	app := v.Git.Apps[simulatedApp]
	app.Pulls = []Pull{{
		Number: 4, Branch: releaseBranch(simulatedApp, 2), Kind: Release, Wave: 2, Release: second, State: forge.Open, Fresh: true,
		Wants: map[string]fleet.Release{"a": second, "b": second, "c": second},
	}}
	for _, name := range []string{"a", "b"} {
		w := app.Wanted[name]
		w.Release, w.Before, w.Report = third, append([]Landing{{Release: second, Commit: "m"}}, w.Before...), Report{}
		app.Wanted[name] = w
	}
	v.Git.Apps[simulatedApp] = app
	var withdrawn []string
	for _, a := range Decide(v) {
		switch a := a.(type) {
		case Withdraw:
			withdrawn = append(withdrawn, a.Pull.Branch+": "+a.Reason)
		case Tell:
			if a.Release != third || a.Report.State != StateWaiting {
				t.Errorf("told is %v", a)
			}
		default:
			t.Errorf("decided is %v", a)
		}
	}
	if want := releaseBranch(simulatedApp, 2) + ": Superseded: 0.1.0-9 is on its way to a already, and comes here when it has soaked."; len(withdrawn) != 1 || withdrawn[0] != want {
		t.Errorf("withdrawn is %q", withdrawn)
	}
}

func TestLiftClosesTheRevertThatIsOpen(t *testing.T) {
	v, _, second := two()
	app := v.Git.Apps[simulatedApp]
	pull := Pull{
		Number: 3, Branch: RevertBranch(simulatedApp, second.Digest), Kind: Revert, Release: second, State: forge.Open, Created: noon,
		Entry: &fleet.Quarantined{Digest: second.Digest, Cluster: "c"},
	}
	for _, test := range []struct {
		name   string
		lifted time.Time // zero is never
		live   bool      // the Rollout is aborted
		want   string
	}{
		{"never lifted", time.Time{}, false, "propose"},
		{"lifted before it was opened", noon.Add(-time.Hour), false, "propose"},
		{"lifted while it was open", noon.Add(time.Minute), false, "withdraw"},
		{"lifted while the canary is aborted still", noon.Add(time.Minute), true, "withdraw"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v.Git.Lifted = map[string]time.Time{}
			if !test.lifted.IsZero() {
				v.Git.Lifted[second.Digest] = test.lifted
			}
			app.Pulls = []Pull{pull}
			v.Git.Apps[simulatedApp] = app
			here := v.Here[simulatedApp]
			here.Aborts = nil
			if test.live {
				here.Aborts = []Abort{{Release: second, At: noon, Live: true}}
			}
			v.Here[simulatedApp] = here
			got := ""
			for _, a := range Decide(v) {
				switch a := a.(type) {
				case Propose:
					if a.Kind == Revert {
						got += "propose"
					}
				case Withdraw:
					got += "withdraw"
				}
			}
			if got != test.want {
				t.Errorf("decided to %q, want %q", got, test.want)
			}
		})
	}
	// After it is closed the release goes on as if nothing had been.
	pull.State, pull.Withdrawn = forge.Closed, true
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Healthy, Spec: second, Stable: second, HealthySince: noon.Add(-time.Hour)}
	app.Pulls = []Pull{pull}
	v.Git.Apps[simulatedApp] = app
	if found := proposals(v); len(found) != 1 || found[0].Kind != Release {
		t.Errorf("proposed is %+v", found)
	}
}

func TestNewsOfAnAbortWaitForTheLink(t *testing.T) {
	v, one, second := two()
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Degraded, Spec: second, Stable: one, Aborts: []Abort{{Release: second, At: noon, Live: true, Evidence: Evidence{Reason: "Xid 31"}}}}
	tells := func() (found []Tell) {
		for _, a := range Decide(v) {
			if tell, ok := a.(Tell); ok {
				found = append(found, tell)
			}
		}
		return found
	}
	if found := tells(); len(found) != 0 {
		t.Errorf("before there is a pull request told is %v", found)
	}
	v.Now = noon.Add(LinkWithin)
	if found := tells(); len(found) != 1 || found[0].URL != "" || !found[0].Notify || found[0].Report != (Report{StateAborted, "Xid 31"}) {
		t.Errorf("after a minute without one told is %+v", found)
	}
	app := v.Git.Apps[simulatedApp]
	app.Pulls = []Pull{{Number: 7, URL: "https://git.example.com/pulls/7", Branch: RevertBranch(simulatedApp, second.Digest), Kind: Revert, Release: second, State: forge.Open}}
	v.Git.Apps[simulatedApp] = app
	if found := tells(); len(found) != 1 || found[0].URL != app.Pulls[0].URL || !found[0].Notify {
		t.Errorf("with one told is %+v", found)
	}
	w := app.Wanted["a"]
	w.Report = Report{StateAborted, "Xid 31"}
	app.Wanted["a"] = w
	if found := tells(); len(found) != 1 || found[0].URL != app.Pulls[0].URL || found[0].Notify {
		t.Errorf("what was told without the link is told as %+v", found)
	}
	w.Link = app.Pulls[0].URL
	app.Wanted["a"] = w
	if found := tells(); len(found) != 0 {
		t.Errorf("what was told is told again: %+v", found)
	}
}

// The steward was killed between the merge of the answer and the news of it.
func TestAbortThatWasNotToldBeforeTheMergeIsToldAfterIt(t *testing.T) {
	v, one, second := two()
	v.Git.Quarantine = fleet.Quarantine{{Digest: second.Digest, Cluster: "b"}}
	v.Here[simulatedApp] = Rollout{Name: "worker", Phase: Healthy, Spec: one, Stable: one, HealthySince: noon}
	for _, name := range []string{"a", "b"} {
		w := v.Git.Apps[simulatedApp].Wanted[name]
		w.Release, w.Before, w.Report = one, []Landing{{Release: second, Commit: "m2", Report: Report{StateProgressing, "step 1"}}, {Release: one, Commit: "m1"}}, Report{StateHealthy, "since 2026-11-27T12:00:00Z"}
		v.Git.Apps[simulatedApp].Wanted[name] = w
	}
	late := func() (found []Tell) {
		for _, a := range Decide(v) {
			if tell, ok := a.(Tell); ok && tell.Commit == "m2" {
				found = append(found, tell)
			}
		}
		return found
	}
	if found := late(); len(found) != 1 || found[0].Report != (Report{StateAborted, "taken back: its canary in b was aborted"}) || found[0].Notify {
		t.Errorf("of another cluster's abort told is %+v", found)
	}
	here := v.Here[simulatedApp]
	here.Aborts = []Abort{{Release: second, At: noon, Evidence: Evidence{Reason: "Xid 31"}}}
	v.Here[simulatedApp] = here
	if found := late(); len(found) != 1 || found[0].Report != (Report{StateAborted, "Xid 31"}) || !found[0].Notify {
		t.Errorf("of this cluster's abort told is %+v", found)
	}
	v.Git.Apps[simulatedApp].Wanted["a"].Before[0].Report = Report{StateAborted, "Xid 31"}
	if found := late(); len(found) != 0 {
		t.Errorf("what was told is told again: %+v", found)
	}
}
