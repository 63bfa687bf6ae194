package steward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
)

// The world of the simulation: a forge with a protected branch, and clusters with Argo CD,
// Argo Rollouts and a steward, on one clock that only the simulation moves.

const simulatedApp = "omnivision-worker"

// commit is a state of the clusters' branch.
type commit struct {
	id         string
	at         time.Time
	wants      map[string]fleet.Release
	quarantine fleet.Quarantine
}

// branch is what a pull request would make of the clusters' branch.
type branch struct {
	head, base  string
	wants       map[string]fleet.Release
	quarantine  fleet.Quarantine
	from        *commit // that it was made on
	foreign     bool
	single      bool // one commit on top of its base
	title, body string
}

type world struct {
	random  *rand.Rand
	now     time.Time
	fleet   *fleet.Fleet
	main    *commit
	commits int
	wanted  map[string]Wanted // by cluster, but for the reports
	lifted  map[string]time.Time
	ever    map[string]bool // digests that ever were quarantined
	// mentioned are digests that a revert's pull request was ever open for.
	mentioned map[string]bool
	branches  map[string]*branch
	pulls     []*Pull
	reports   map[string]Report // by commit and cluster
	links     map[string]string // of the reports
	midway    int               // how often a newer release replaced a canary on its way
	told      map[string]bool
	clusters  []*cluster
	builds    int
	bad       map[string]map[string]bool // digest to the clusters whose canary notices
	down      time.Time                  // until when the forge is
	faults    bool
	lax       bool // main takes merges of branches that are behind it, checked or not
	view      *Git // of now; nil after a change
	old       []*Git
	trace     []string
	broken    error // the first invariant that did not hold
}

var errCrash = errors.New("the steward was killed")

func (w *world) chance(p float64) bool { return w.random.Float64() < p }

func (w *world) log(format string, args ...any) {
	w.trace = append(w.trace, w.now.UTC().Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

func (w *world) violated(format string, args ...any) {
	if w.broken == nil {
		w.broken = fmt.Errorf(format, args...)
		w.log("VIOLATED: %v", w.broken)
	}
}

func newWorld(seed uint64) *world {
	w := &world{
		random: rand.New(rand.NewPCG(seed, 42)), now: time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC), //nolint:gosec // it must repeat
		wanted: map[string]Wanted{}, lifted: map[string]time.Time{}, ever: map[string]bool{}, mentioned: map[string]bool{},
		branches: map[string]*branch{}, reports: map[string]Report{}, links: map[string]string{}, told: map[string]bool{}, bad: map[string]map[string]bool{}, faults: true, lax: seed%4 == 3,
	}
	size := 1 + w.random.IntN(5)
	switch {
	case seed%200 == 99:
		size = 100
	case seed%20 == 7:
		size = 8 + w.random.IntN(8)
	}
	w.makeFleet(size)
	first := w.build()
	first.wants = maps.Clone(first.wants)
	w.land("the first release", first.wants, nil)
	for _, c := range w.clusters {
		r := w.main.wants[c.name]
		c.spec, c.stable, c.phase, c.since = r, r, Healthy, w.now
	}
	return w
}

func (w *world) makeFleet(size int) {
	waves := 1 + w.random.IntN(min(size, 4))
	w.fleet = &fleet.Fleet{Apps: []fleet.App{{Name: simulatedApp, Repository: simulatedApp}}}
	for i := range size {
		wave := 1 + i*waves/size
		name := fmt.Sprintf("c%02d", i)
		w.fleet.Clusters = append(w.fleet.Clusters, fleet.Cluster{Name: name, Wave: wave * 2}) // gaps are allowed
		c := &cluster{world: w, name: name, skew: time.Duration(w.random.IntN(180)-90) * time.Second, healthyFor: map[string]bool{}}
		c.steward = &Steward{Name: name, Repository: repository{w, c}, Cluster: c, Clock: func() time.Time { return w.now.Add(c.skew) }, Log: slog.New(slog.DiscardHandler)}
		w.clusters = append(w.clusters, c)
	}
	for _, wave := range w.fleet.Waves() {
		h := fleet.Handover{Wave: wave[0].Wave, Soak: time.Duration(2+w.random.IntN(10)) * time.Minute}
		if len(wave) > 1 && w.chance(0.3) {
			h.FailureBudget = 1
		}
		w.fleet.Handovers = append(w.fleet.Handovers, h)
	}
	for _, kind := range []fleet.Merge{fleet.MergeRevert, fleet.MergePromote} {
		if w.chance(0.5) {
			w.fleet.Apps[0].AutoMerge = append(w.fleet.Apps[0].AutoMerge, kind)
		}
	}
}

// build makes a new image, and decides where it will fail.
func (w *world) build() *commit {
	w.builds++
	r := fleet.Release{Tag: fmt.Sprintf("0.1.0-%d", w.builds), Digest: fmt.Sprintf("sha256:%012d%052d", w.builds, 0)}
	wants := map[string]fleet.Release{}
	w.bad[r.Digest] = map[string]bool{}
	spoiled := w.builds > 1 && w.chance(0.35)
	for _, c := range w.clusters {
		wants[c.name] = r
		if spoiled && w.chance(0.5) {
			w.bad[r.Digest][c.name] = true
		}
	}
	return &commit{wants: wants}
}

// land puts a commit on the clusters' branch. The protection has been asked before.
func (w *world) land(what string, wants map[string]fleet.Release, quarantine fleet.Quarantine) {
	w.commits++
	next := &commit{id: fmt.Sprintf("m%d", w.commits), at: w.now, wants: wants, quarantine: quarantine}
	w.log("%s: %s", next.id, what)
	if w.main != nil {
		for _, entry := range w.main.quarantine {
			if !quarantine.Has(entry.Digest) {
				w.lifted[entry.Digest] = w.now
			}
		}
	}
	for _, entry := range quarantine {
		w.ever[entry.Digest] = true
		delete(w.lifted, entry.Digest)
	}
	for name, r := range wants {
		had := w.wanted[name]
		if had.Release == r {
			continue
		}
		before := had.Before
		if had.Commit != "" {
			before = append([]Landing{{Release: had.Release, Commit: had.Commit}}, before...)
		}
		w.wanted[name] = Wanted{Release: r, Commit: next.id, Since: w.now, Before: before}
	}
	w.main, w.view = next, nil
	for name, r := range wants {
		if quarantine.Has(r.Digest) && !w.lax {
			w.violated("%s wants %s, which is quarantined", name, r.Tag)
		}
	}
}

// valid is what the required check says of a branch's content, as fleet.Validate does.
func (b *branch) valid() bool {
	for _, r := range b.wants {
		if b.quarantine.Has(r.Digest) {
			return false
		}
	}
	return true
}

// merge takes a pull request in, if the protection lets it.
func (w *world) merge(p *Pull, who string) error {
	switch {
	case p.State == forge.Merged:
		return nil
	case p.State != forge.Open:
		return &forge.Error{Code: forge.Conflict, Op: "merge"}
	case w.lax:
		w.update(p)
	}
	b := w.branches[p.Branch]
	if b.base != w.main.id || !b.valid() && !w.lax {
		return &forge.Error{Code: forge.NotReady, Op: "merge"}
	}
	w.checkWaves(p, b)
	p.State, p.Updated, p.Head = forge.Merged, w.now, b.head
	w.land(fmt.Sprintf("%s merges #%d %s", who, p.Number, p.Branch), b.wants, b.quarantine)
	return nil
}

// checkWaves holds every release of a steward's against the truth about the wave before.
func (w *world) checkWaves(p *Pull, b *branch) {
	if p.Kind != Release || b.foreign {
		return
	}
	waves := w.fleet.Waves()
	for i, wave := range waves {
		for _, c := range wave {
			r := b.wants[c.Name]
			if i == 0 || r == w.main.wants[c.Name] {
				continue
			}
			soaked := w.soaked(waves[i-1], r)
			if budget := w.fleet.Handover(waves[i-1][0].Wave).FailureBudget; soaked < len(waves[i-1])-budget && w.soaked(wave, r) == 0 {
				w.violated("%s starts %s, which soaked in %d of the %d clusters before it", c.Name, r.Tag, soaked, len(waves[i-1]))
			}
		}
	}
}

func (w *world) soaked(wave []fleet.Cluster, r fleet.Release) int {
	n := 0
	for _, c := range w.clusters {
		if c.healthyFor[r.Digest] && slices.ContainsFunc(wave, func(f fleet.Cluster) bool { return f.Name == c.name }) {
			n++
		}
	}
	return n
}

// propose is what a push and an open pull request amount to.
func (w *world) propose(name, title, body string, kind Kind, wave int, r fleet.Release, b *branch) {
	w.commits++
	b.head, b.base, b.from, b.single, b.title, b.body = fmt.Sprintf("b%d", w.commits), w.main.id, w.main, true, title, body
	w.branches[name], w.view = b, nil
	for _, p := range w.pulls {
		if p.Branch == name && p.State == forge.Open {
			p.Release, p.Head, p.Updated = r, b.head, w.now
			w.log("#%d %s is pushed anew for %s", p.Number, name, r.Tag)
			return
		}
	}
	p := &Pull{Number: int64(len(w.pulls) + 1), Branch: name, Kind: kind, Wave: wave, Release: r, State: forge.Open, Created: w.now, Updated: w.now, Head: b.head}
	p.URL = fmt.Sprintf("#%d", p.Number)
	w.pulls = append(w.pulls, p)
	w.log("#%d %s is opened for %s", p.Number, name, r.Tag)
	if kind == Revert {
		w.mentioned[r.Digest] = true
	}
	for _, other := range w.pulls {
		if other != p && other.State == forge.Open && other.Kind == kind && (kind == Release && other.Wave == wave || kind == Revert && other.Release.Digest == r.Digest) {
			w.violated("#%d and #%d are open for the same", other.Number, p.Number)
		}
	}
}

// look is what a steward's repository shows; one value for all that look at the same moment.
func (w *world) look() *Git {
	if w.view != nil {
		return w.view
	}
	app := App{Wanted: make(map[string]Wanted, len(w.wanted))}
	for name, wanted := range w.wanted {
		wanted.Report, wanted.Link, wanted.Told = w.reports[wanted.Commit+name], w.links[wanted.Commit+name], w.told[wanted.Commit]
		wanted.Before = slices.Clone(wanted.Before)
		for i, landing := range wanted.Before {
			wanted.Before[i].Report = w.reports[landing.Commit+name]
		}
		app.Wanted[name] = wanted
	}
	seen := map[string]bool{}
	for _, p := range slices.Backward(w.pulls) {
		if seen[p.Branch] && p.State != forge.Open {
			continue
		}
		seen[p.Branch] = true
		shown := *p
		if b := w.branches[p.Branch]; p.State == forge.Open {
			shown.Fresh, shown.Foreign, shown.Wants = b.single && !b.foreign && b.base == w.main.id, b.foreign, b.wants
			shown.Title, shown.Body = b.title, b.body
			if entry, ok := b.quarantine.Find(p.Release.Digest); ok {
				shown.Entry = &entry
			}
		}
		app.Pulls = append(app.Pulls, shown)
	}
	w.view = &Git{Commit: w.main.id, Fleet: w.fleet, Apps: map[string]App{simulatedApp: app}, Quarantine: w.main.quarantine, Lifted: maps.Clone(w.lifted)}
	w.old = append(w.old, w.view)
	if len(w.old) > 8 {
		w.old = w.old[1:]
	}
	return w.view
}

// repository is the world as one cluster's steward reaches it.
type repository struct {
	*world
	from *cluster
}

func (r repository) reach() error {
	if r.from.cut || r.now.Before(r.down) {
		return &forge.Error{Code: forge.Unavailable, Op: "reach the forge"}
	}
	return nil
}

func (r repository) Look(context.Context, string) (Git, error) {
	if err := r.reach(); err != nil {
		return Git{}, err
	}
	git := r.look()
	if r.faults && r.chance(0.1) {
		git = r.old[r.random.IntN(len(r.old))] // a replica that lags
	}
	return *git, nil
}

// Do may end before the action or after it, as a kill does.
func (r repository) Do(_ context.Context, a Action) error {
	if err := r.reach(); err != nil {
		return err
	}
	if r.faults && r.chance(0.05) {
		r.log("%s is killed before it can %s", r.from.name, a)
		return errCrash
	}
	err := r.apply(a)
	if err == nil && r.faults && r.chance(0.05) {
		r.log("%s is killed after it did %s", r.from.name, a)
		return errCrash
	}
	return err
}

func (r repository) apply(a Action) error {
	switch a := a.(type) {
	case Propose:
		return r.proposed(a)
	case Withdraw:
		p := r.pulls[a.Pull.Number-1]
		if p.State == forge.Open {
			r.log("%s withdraws #%d: %s", r.from.name, p.Number, a.Reason)
			p.State, p.Withdrawn, p.Updated, r.view = forge.Closed, true, r.now, nil
		}
		return nil
	case Merge:
		p := r.pulls[a.Pull.Number-1]
		if p.State == forge.Open && r.branches[p.Branch].head != a.Pull.Head {
			return &forge.Error{Code: forge.Conflict, Op: "merge"}
		}
		return r.merge(p, r.from.name)
	case Tell:
		r.reports[a.Commit+a.Cluster], r.links[a.Commit+a.Cluster], r.view = a.Report, a.URL, nil
	case TellDone:
		r.told[a.Commit], r.view = true, nil
	}
	return nil
}

func (r repository) proposed(a Propose) error {
	if a.Base != r.main.id {
		return &forge.Error{Code: forge.Conflict, Op: "propose"}
	}
	if b := r.branches[a.Branch]; b != nil && b.foreign && r.isOpen(a.Branch) {
		return errors.New("the branch holds somebody else's commits")
	}
	b := &branch{wants: maps.Clone(r.main.wants), quarantine: slices.Clone(r.main.quarantine)}
	for name, release := range a.Set {
		b.wants[name] = release
		if r.main.quarantine.Has(release.Digest) {
			r.violated("%s proposes %s to %s, which is quarantined", r.from.name, release.Tag, name)
		}
	}
	if a.Entry != nil {
		b.quarantine = append(b.quarantine, *a.Entry)
		r.checkLift(*a.Entry)
	}
	kind, _, release, ok := Trailer(a.Body)
	if !ok || kind != a.Kind {
		r.violated("the text of %s names nothing", a.Branch)
	}
	wave := 0
	if at := strings.LastIndex(a.Branch, "wave-"); kind == Release && at >= 0 {
		_, _ = fmt.Sscanf(a.Branch[at:], "wave-%d", &wave)
	}
	r.propose(a.Branch, a.Title, a.Body, a.Kind, wave, release, b)
	return nil
}

// checkLift holds that what a person lifted is condemned again by a canary, and by nothing else.
func (r repository) checkLift(entry fleet.Quarantined) {
	lifted, ok := r.lifted[entry.Digest]
	if !ok {
		return
	}
	for _, c := range r.clusters {
		aborts := c.aborts
		if c.stale != nil {
			aborts = slices.Concat(aborts, c.stale.Aborts)
		}
		if slices.ContainsFunc(aborts, func(a Abort) bool { return a.Digest == entry.Digest && (a.Live || a.At.After(lifted)) }) {
			return
		}
	}
	r.violated("%s quarantines %s again, which a person lifted and no canary condemned since", r.from.name, entry.Version)
}

func (w *world) isOpen(name string) bool {
	return slices.ContainsFunc(w.pulls, func(p *Pull) bool { return p.Branch == name && p.State == forge.Open })
}

// cluster is Argo CD, Argo Rollouts and a steward.
type cluster struct {
	*world
	name    string
	steward *Steward
	skew    time.Duration
	cut     bool // from the forge

	spec, stable fleet.Release
	phase        Phase
	since        time.Time // of the phase, or of the step
	step         int
	aborts       []Abort
	stale        *Rollout
	healthyFor   map[string]bool // digests that truly soaked here
}

const simulatedSteps = 3

// sync is Argo CD, when it comes to it.
func (c *cluster) sync() {
	want := c.main.wants[c.name]
	if c.cut || c.now.Before(c.down) || want == c.spec {
		return
	}
	c.log("%s: Argo CD applies %s", c.name, want.Tag)
	for i := range c.aborts {
		c.aborts[i].Live = false
	}
	if c.phase == Progressing && newer(want, c.spec) {
		c.midway++
	}
	c.spec, c.step, c.since, c.phase = want, 0, c.now, Progressing
	if want == c.stable {
		c.phase = Healthy
	}
}

// roll is Argo Rollouts.
func (c *cluster) roll() {
	soak := fleet.DefaultSoak
	for _, f := range c.fleet.Clusters {
		if f.Name == c.name {
			soak = c.fleet.Handover(f.Wave).Soak
		}
	}
	if c.phase == Healthy {
		if c.now.Sub(c.since) >= soak {
			c.healthyFor[c.spec.Digest] = true
		}
		if c.faults && c.chance(0.01) {
			c.log("%s: a Pod of %s dies", c.name, c.spec.Tag)
			c.since = c.now
		}
		return
	}
	if c.phase != Progressing || c.now.Sub(c.since) < time.Minute {
		return
	}
	c.since = c.now
	if c.bad[c.spec.Digest][c.name] && c.chance(0.6) {
		c.phase = Degraded
		c.aborts = append([]Abort{{Release: c.spec, At: c.now.Add(c.skew), Live: true, Evidence: Evidence{Reason: "Xid 31"}}}, c.aborts...)
		c.log("%s: the canary of %s is aborted", c.name, c.spec.Tag)
		return
	}
	if c.step++; c.step > simulatedSteps {
		c.phase, c.stable = Healthy, c.spec
		c.log("%s: %s is promoted", c.name, c.spec.Tag)
	}
}

func (c *cluster) Look(context.Context, Git) (map[string]Rollout, error) {
	r := Rollout{Name: "worker", PodShare: -1, Phase: c.phase, Spec: c.spec, Stable: c.stable, Step: c.step, Steps: simulatedSteps, Aborts: slices.Clone(c.aborts)}
	if c.phase == Healthy {
		r.HealthySince = c.since.Add(c.skew)
	}
	if c.faults && c.stale != nil && c.chance(0.05) {
		r = *c.stale // an informer that lags by one step
	}
	c.stale = &r
	return map[string]Rollout{simulatedApp: r}, nil
}

func (c *cluster) Do(context.Context, Action) error { return nil }
