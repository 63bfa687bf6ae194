package steward

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "run this one history of the simulation, and print its trace")
	historiesFlag = flag.Int("histories", 200, "how many histories to simulate")
)

// simulate runs one history: trouble for some hours, then quiet until nothing moves, and
// returns the first invariant that did not hold.
func simulate(seed uint64, decide func(View) []Action) *world {
	w := newWorld(seed)
	for _, c := range w.clusters {
		c.steward.decide = decide
	}
	for range 60 + w.random.IntN(120) {
		if w.tick(); w.broken != nil {
			return w
		}
	}
	w.log("the faults stop")
	w.faults, w.down = false, time.Time{}
	for _, c := range w.clusters {
		c.cut = false
	}
	for quiet, i := 0, 0; i < 600 && w.broken == nil; i++ {
		before := len(w.trace)
		w.tick()
		// Longer than any soak time, and than a person's no to a revert holds.
		if quiet++; len(w.trace) != before {
			quiet = 0
		}
		if quiet > 40 {
			break
		}
	}
	w.checkEnd()
	return w
}

// tick is up to a minute in which everybody may do something, in any order.
func (w *world) tick() {
	w.now = w.now.Add(time.Duration(1+w.random.IntN(60)) * time.Second)
	if w.faults {
		w.trouble()
		w.people()
	} else {
		w.attentivePeople()
	}
	for _, i := range w.random.Perm(len(w.clusters)) {
		c := w.clusters[i]
		if w.chance(0.6) {
			c.sync()
		}
		c.roll()
		// A webhook may be lost, or come twice: a step more or less.
		for range w.steps() {
			_, _ = c.steward.Step(context.Background())
		}
	}
}

func (w *world) steps() int {
	switch {
	case !w.faults:
		return 1
	case w.chance(0.25):
		return 0
	case w.chance(0.15):
		return 2
	}
	return 1
}

func (w *world) trouble() {
	if w.chance(0.01) {
		w.down = w.now.Add(time.Duration(w.random.IntN(60)) * time.Minute)
		w.log("the forge is down until %s", w.down.Format("15:04"))
	}
	for _, c := range w.clusters {
		if w.chance(0.01) {
			c.cut = !c.cut
			w.log("%s is cut off: %v", c.name, c.cut)
		}
	}
}

// people do what people do, not always at the right moment.
func (w *world) people() {
	if w.chance(0.06) {
		w.conveyor(w.build().wants)
	}
	if w.chance(0.1) {
		w.land("an unrelated commit", w.main.wants, w.main.quarantine)
	}
	if w.chance(0.03) && len(w.main.quarantine) > 0 {
		w.lift()
	}
	if w.lax && w.chance(0.03) && len(w.main.quarantine) > 0 {
		w.bringBack()
	}
	for _, p := range w.pulls {
		if p.State != forge.Open {
			continue
		}
		switch {
		case w.chance(0.25):
			_ = w.merge(p, "a person")
		case w.chance(0.02):
			w.log("a person closes #%d", p.Number)
			p.State, p.Updated, w.view = forge.Closed, w.now, nil
		case w.chance(0.02):
			w.edit(p)
		case w.chance(0.03):
			w.update(p)
		}
	}
}

// attentivePeople merge what is ready, and look after what they touched.
func (w *world) attentivePeople() {
	for _, p := range w.pulls {
		if p.State != forge.Open {
			continue
		}
		if b := w.branches[p.Branch]; b.foreign || p.Kind == Release && p.Wave == w.fleet.Waves()[0][0].Wave {
			w.update(p)
		}
		if w.chance(0.5) && w.merge(p, "a person") != nil && w.branches[p.Branch].foreign {
			w.log("a person gives #%d up", p.Number)
			p.State, p.Updated, w.view = forge.Closed, w.now, nil
		}
	}
}

// conveyor proposes a build to the first wave, as conveyor/propose does.
func (w *world) conveyor(wants map[string]fleet.Release) {
	wave := w.fleet.Waves()[0]
	r := wants[wave[0].Name]
	b := &branch{wants: maps.Clone(w.main.wants), quarantine: slices.Clone(w.main.quarantine)}
	for _, c := range wave {
		if newer(w.main.wants[c.Name], r) || w.main.quarantine.Has(r.Digest) {
			return
		}
		b.wants[c.Name] = r
	}
	name := releaseBranch(simulatedApp, wave[0].Wave)
	if have := w.branches[name]; have != nil && have.foreign && w.isOpen(name) {
		return
	}
	w.log("the conveyor has %s", r.Tag)
	w.propose(name, "Release", fmt.Sprintf("OmniVision-Release: %s %s %s", simulatedApp, r.Tag, r.Digest), Release, wave[0].Wave, r, b)
}

// lift takes an image off the list, by a reviewed change; perhaps it is released again.
func (w *world) lift() {
	entry := w.main.quarantine[w.random.IntN(len(w.main.quarantine))]
	// Nobody reviews within minutes of the abort, and clocks differ by less.
	if w.now.Sub(entry.Since) < 15*time.Minute {
		return
	}
	kept := slices.DeleteFunc(slices.Clone(w.main.quarantine), func(q fleet.Quarantined) bool { return q.Digest == entry.Digest })
	w.land("a person lifts "+entry.Version, w.main.wants, kept)
	if w.chance(0.5) {
		w.bad[entry.Digest] = map[string]bool{} // it was the driver
	}
	wants := map[string]fleet.Release{}
	for _, c := range w.clusters {
		wants[c.name] = fleet.Release{Tag: entry.Version, Digest: entry.Digest}
	}
	w.conveyor(wants)
}

// bringBack writes a quarantined image into a cluster's file, as somebody does who reverts the
// revert where nothing checks it.
func (w *world) bringBack() {
	entry := w.main.quarantine[w.random.IntN(len(w.main.quarantine))]
	wants := maps.Clone(w.main.wants)
	name := w.clusters[w.random.IntN(len(w.clusters))].name
	wants[name] = fleet.Release{Tag: entry.Version, Digest: entry.Digest}
	w.land("a person brings "+entry.Version+" back to "+name, wants, w.main.quarantine)
}

// edit pushes a person's commit to a branch.
func (w *world) edit(p *Pull) {
	b := *w.branches[p.Branch]
	w.commits++
	b.foreign, b.single, b.head = true, false, fmt.Sprintf("b%d", w.commits)
	if p.Kind == Revert && w.chance(0.5) {
		b.quarantine = w.main.quarantine // "not so fast"
	}
	w.log("a person pushes to #%d", p.Number)
	w.branches[p.Branch], p.Head, w.view = &b, b.head, nil
}

// update merges the base into a branch, as the forge's button does; what both sides changed
// is a conflict.
func (w *world) update(p *Pull) {
	b := *w.branches[p.Branch]
	if b.base == w.main.id {
		return
	}
	wants := maps.Clone(w.main.wants)
	for name, r := range b.wants {
		if r == b.from.wants[name] {
			continue
		}
		if w.main.wants[name] != b.from.wants[name] && w.main.wants[name] != r {
			return
		}
		wants[name] = r
	}
	list := w.main.quarantine
	if len(b.quarantine) != len(b.from.quarantine) {
		if len(w.main.quarantine) != len(b.from.quarantine) {
			return
		}
		list = b.quarantine
	}
	w.commits++
	b.wants, b.quarantine, b.base, b.from, b.single, b.head = wants, list, w.main.id, w.main, false, fmt.Sprintf("b%d", w.commits)
	w.log("a person updates #%d", p.Number)
	w.branches[p.Branch], p.Head, w.view = &b, b.head, nil
}

// checkEnd holds what has to be true when nothing disturbs any more.
func (w *world) checkEnd() {
	for _, p := range w.pulls {
		if p.State == forge.Open {
			w.violated("#%d %s is still open", p.Number, p.Branch)
		}
	}
	for _, c := range w.clusters {
		if r := w.main.wants[c.name]; w.main.quarantine.Has(r.Digest) {
			w.violated("%s still wants %s, which is quarantined", c.name, r.Tag)
		}
		if want := w.main.wants[c.name]; c.phase != Healthy || c.spec != want {
			w.violated("%s is %s with %s, and Git wants %s", c.name, c.phase, c.spec.Tag, want.Tag)
		}
		for _, a := range c.aborts {
			if !w.ever[a.Digest] && !w.mentioned[a.Digest] {
				w.violated("nobody took %s back, whose canary %s aborted", a.Tag, c.name)
			}
			w.checkTold(c, a)
		}
	}
	w.checkWavesLevel()
}

// checkTold holds that whoever pushed what is quarantined hears that its canary was aborted.
func (w *world) checkTold(c *cluster, a Abort) {
	wanted := w.wanted[c.name]
	if wanted.Release == a.Release || !w.main.quarantine.Has(a.Digest) {
		return
	}
	for _, landing := range wanted.Before {
		if landing.Release != a.Release {
			continue
		}
		if report := w.reports[landing.Commit+c.name]; report.State != StateAborted {
			w.violated("nobody was told that the canary of %s was aborted in %s: the report says %q", a.Tag, c.name, report)
		}
		return
	}
}

// checkWavesLevel finds releases that stay where they are for no reason.
func (w *world) checkWavesLevel() {
	git := w.look()
	app := git.Apps[simulatedApp]
	waves := w.fleet.Waves()
	for _, wave := range waves {
		for _, c := range wave {
			r := w.main.wants[c.Name]
			for _, other := range wave {
				if newer(r, w.main.wants[other.Name]) && !w.reasonToStay(app, wave, r) && !app.Wanted[other.Name].takenBack(r) {
					w.violated("%s stays at %s although %s of its wave runs %s", other.Name, w.main.wants[other.Name].Tag, c.Name, r.Tag)
				}
			}
		}
	}
	for i, wave := range waves[:len(waves)-1] {
		r := w.main.wants[wave[0].Name]
		uniform := !slices.ContainsFunc(wave, func(c fleet.Cluster) bool { return w.main.wants[c.Name] != r })
		for _, c := range waves[i+1] {
			wanted := app.Wanted[c.Name]
			if !uniform || w.reasonToStay(app, waves[i+1], r) || !newer(r, wanted.Release) {
				continue
			}
			w.violated("%s stays at %s although the wave before it runs %s", c.Name, wanted.Tag, r.Tag)
		}
	}
}

// reasonToStay: a person said no, or has put something newer there.
func (w *world) reasonToStay(app App, next []fleet.Cluster, r fleet.Release) bool {
	branch := releaseBranch(simulatedApp, next[0].Wave)
	for _, p := range app.Pulls {
		if p.Branch == branch && p.State == forge.Closed && !p.Withdrawn && p.Release == r {
			return true
		}
	}
	return slices.ContainsFunc(next, func(c fleet.Cluster) bool {
		wanted := app.Wanted[c.Name]
		return newer(wanted.Release, r) || wanted.takenBack(r)
	})
}

func report(t *testing.T, seed uint64, w *world) {
	t.Helper()
	t.Errorf("seed %d: %v\nrepeat it with: go test ./steward -run TestFleetOfStewards -seed %d\n%s", seed, w.broken, seed, strings.Join(w.trace, "\n"))
}

// TestFleetOfStewards runs the protocol through seeded histories of everything that can go
// wrong between stewards, forge, clusters and people.
func TestFleetOfStewards(t *testing.T) {
	if *seedFlag != 0 {
		w := simulate(*seedFlag, nil)
		t.Log(strings.Join(w.trace, "\n"))
		if w.broken != nil {
			report(t, *seedFlag, w)
		}
		return
	}
	aborts, reverts, waves, midway := 0, 0, 0, 0
	for seed := range uint64(max(*historiesFlag, 1)) {
		w := simulate(seed+1, nil)
		if w.broken != nil {
			report(t, seed+1, w)
			return
		}
		midway += w.midway
		for _, c := range w.clusters {
			aborts += len(c.aborts)
		}
		for _, p := range w.pulls {
			if p.State == forge.Merged && p.Kind == Revert {
				reverts++
			} else if p.State == forge.Merged && p.Wave != w.fleet.Clusters[0].Wave {
				waves++
			}
		}
	}
	t.Logf("%d histories with %d aborts, %d reverts, %d further waves and %d canaries that a newer release replaced", *historiesFlag, aborts, reverts, waves, midway)
	if aborts == 0 || reverts == 0 || waves == 0 || midway == 0 {
		t.Error("the histories try nothing")
	}
}

// BenchmarkTenThousandHistories is the same at length; make bench runs it.
func BenchmarkTenThousandHistories(b *testing.B) {
	for b.Loop() {
		for seed := range uint64(10_000) {
			if w := simulate(seed+1, nil); w.broken != nil {
				b.Fatalf("seed %d: %v\n%s", seed+1, w.broken, strings.Join(w.trace, "\n"))
			}
		}
	}
}

func TestHistoryIsTheSameForTheSameSeed(t *testing.T) {
	a, b := simulate(17, nil), simulate(17, nil)
	if strings.Join(a.trace, "\n") != strings.Join(b.trace, "\n") {
		t.Error("two runs of seed 17 differ")
	}
}

// TestSimulationFindsFlaws puts a bug into each invariant's path and demands that it is found.
func TestSimulationFindsFlaws(t *testing.T) {
	for _, flaw := range []struct {
		name, want string
		decide     func(View) []Action
		from       uint64 // a seed before the one that finds it, which saves time
	}{
		{"the next wave does not wait", "which soaked in", func(v View) []Action {
			hasty := *v.Git.Fleet
			hasty.Handovers = slices.Clone(hasty.Handovers)
			for i := range hasty.Handovers {
				hasty.Handovers[i].Soak = 0
			}
			v.Git.Fleet = &hasty
			return Decide(v)
		}, 0},
		{"the quarantine is not read", "which is quarantined", func(v View) []Action {
			v.Git.Quarantine = nil
			return Decide(v)
		}, 100},
		{"aborts are not taken back", "nobody took", func(v View) []Action {
			return slices.DeleteFunc(Decide(v), func(a Action) bool { p, ok := a.(Propose); return ok && p.Kind == Revert })
		}, 0},
		{"what is quarantined and wanted all the same stays", "still wants", func(v View) []Action {
			return slices.DeleteFunc(Decide(v), func(a Action) bool { p, ok := a.(Propose); return ok && p.Kind == Revert && p.Entry == nil })
		}, 0},
		{"aborts of the past are forgotten", "nobody took", func(v View) []Action {
			here := v.Here[simulatedApp]
			here.Aborts = slices.DeleteFunc(slices.Clone(here.Aborts), func(a Abort) bool { return !a.Live })
			v.Here = map[string]Rollout{simulatedApp: here}
			return Decide(v)
		}, 0},
		{"each steward has a branch of its own", "are open for the same", func(v View) []Action {
			actions := Decide(v)
			for i, a := range actions {
				if p, ok := a.(Propose); ok {
					p.Branch = strings.Replace(p.Branch, "/", "/"+v.Cluster+"-", 1)
					actions[i] = p
				}
			}
			return actions
		}, 0},
		{"pull requests do not follow the base", "is still open", func(v View) []Action {
			return slices.DeleteFunc(Decide(v), func(a Action) bool {
				p, ok := a.(Propose)
				return ok && slices.ContainsFunc(v.Git.Apps[p.App].Pulls, func(pull Pull) bool { return pull.Branch == p.Branch && pull.State == forge.Open })
			})
		}, 0},
		{"a lift does not count for what is open", "which a person lifted", func(v View) []Action {
			app := v.Git.Apps[simulatedApp]
			app.Pulls = slices.Clone(app.Pulls)
			for i := range app.Pulls {
				app.Pulls[i].Created = v.Now.Add(time.Hour)
			}
			v.Git.Apps = map[string]App{simulatedApp: app}
			return Decide(v)
		}, 650},
		{"what was not told before the merge is never told", "nobody was told", func(v View) []Action {
			wanted := v.Git.Apps[simulatedApp].Wanted[v.Cluster].Release
			return slices.DeleteFunc(Decide(v), func(a Action) bool { t, ok := a.(Tell); return ok && t.Release != wanted })
		}, 0},
		{"a withdrawn pull request counts as a person's no", "stays at", func(v View) []Action {
			app := v.Git.Apps[simulatedApp]
			app.Pulls = slices.Clone(app.Pulls)
			for i := range app.Pulls {
				app.Pulls[i].Withdrawn = false
			}
			v.Git.Apps = map[string]App{simulatedApp: app}
			return Decide(v)
		}, 3460},
	} {
		t.Run(flaw.name, func(t *testing.T) {
			for seed := range uint64(2000) {
				seed += flaw.from
				w := simulate(seed+1, flaw.decide)
				if w.broken != nil && strings.Contains(w.broken.Error(), flaw.want) {
					t.Logf("found by seed %d: %v", seed+1, w.broken)
					return
				}
			}
			t.Error("2000 histories did not find it")
		})
	}
}
