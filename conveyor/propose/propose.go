// Package propose brings a release into the GitOps repository as a pull request: one
// branch for each app and wave, with at most one open pull request, which a later
// release replaces the content of.
//
// The branch holds one commit on top of the base: the base's files with tag and digest
// of the app in the clusters of the wave, and nothing else. That commit's message is
// the text of the pull request, so whoever comes last, and whoever was killed half way,
// can make the pull request say what its branch holds.
//
// Nothing is remembered between two calls. What there is to do follows from the base,
// the branch and the forge alone, so every call may be repeated, and several may run at
// once: a push is refused by Git when the branch has moved, and then all is looked at
// anew. A build never replaces a newer one (P42), and one that was taken out of Git, or
// whose pull request a person closed, is not proposed again by itself; one that is
// quarantined is not proposed at all (P43).
package propose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/internal/tooltime"
	"github.com/omnivision/omnivision/plan/revision"
)

// Forge is what is asked of a forge.
type Forge interface {
	forge.PullRequests
	Head(ctx context.Context, branch string) (sha string, err error)
}

// Proposer proposes to one GitOps repository.
type Proposer struct {
	Forge  Forge
	Remote Remote
	Base   string // branch that the clusters follow

	// Patience is how long a call may take, waiting for the forge included; zero is
	// three minutes.
	Patience time.Duration
	// Report is told what is waited for; nil is allowed.
	Report func(detail string)

	// before is called with the name of each step that asks or changes something
	// outside; a test ends a run there.
	before func(step string) error
}

// Request is what to propose.
type Request struct {
	App string
	// Wave of the clusters; 0 is an app's first, or for a component every cluster.
	Wave    int
	Release fleet.Release
	// Time dates the commit; that of the source's makes the same proposal the same
	// commit.
	Time time.Time
	Text Text
	// Describe, if set, makes the text when it is known what is to change.
	Describe func(ctx context.Context, change Change) (Text, error)
	// Again proposes a build although it was taken out of Git, or its pull request
	// was closed by a person.
	Again bool
}

// Change is what a proposal does to the GitOps repository.
type Change struct {
	Released map[string]fleet.Release // what is in each place on the base, by its name
	// Base is the tree that the clusters follow, Head the one that is proposed. The text
	// goes into the commit, so the head's commit is not known while it is written.
	Base, Head *revision.Tree
}

// State is what became of a request.
type State string

// The states.
const (
	Proposed   State = "proposed"   // a pull request is open with exactly this release
	Released   State = "released"   // the base has it already: there is nothing to propose
	Superseded State = "superseded" // a newer build is on the base, or proposed
)

// Result is what a call ends in.
type Result struct {
	State State `json:"state"`
	// By is the newer release, if superseded.
	By       string   `json:"by,omitempty"`
	Clusters []string `json:"clusters"` // that the release goes to
	Branch   string   `json:"branch"`
	Commit   string   `json:"commit,omitempty"` // that the branch points at
	Number   int64    `json:"number,omitempty"` // of the pull request
	URL      string   `json:"url,omitempty"`
}

// What a person has to decide.
var (
	// ErrTagMoved says that the base has another image under the same tag (P3).
	ErrTagMoved = errors.New("the tag names another image in Git already")
	// ErrTakenBack says that the base had this image and has it no more.
	ErrTakenBack = errors.New("this image was in Git and was taken out again")
	// ErrRejected says that a person closed the pull request of this release.
	ErrRejected = errors.New("the pull request of this release was closed without a merge")
	// ErrQuarantined says that a canary condemned this image. Asking again is no way
	// around it: the entry has to be lifted first (P14).
	ErrQuarantined = errors.New("this image is quarantined")
	// ErrForeign says that the branch holds commits that no release made.
	ErrForeign = errors.New("the branch holds somebody else's commits")
)

// Branch is the one branch of an app and a wave, or of a component, whose wave is 0.
func Branch(app string, wave int) string {
	if wave == 0 {
		return fmt.Sprintf("release/%s/every-cluster", app)
	}
	return fmt.Sprintf("release/%s/wave-%d", app, wave)
}

// Propose makes the state of the repository and the forge be as the request says.
func (p *Proposer) Propose(ctx context.Context, r Request) (Result, error) {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	result, err := p.propose(ctx, r)
	if err != nil {
		return Result{}, fmt.Errorf("proposing %s %s: %w", r.App, r.Release.Tag, err)
	}
	return result, nil
}

func (p *Proposer) propose(ctx context.Context, r Request) (Result, error) {
	repo, err := p.Remote.open(ctx)
	if err != nil {
		return Result{}, err
	}
	defer repo.close() //nolint:errcheck // below the system's temporary directory
	for {
		result, err := p.attempt(ctx, repo, r)
		if !errors.Is(err, errMoved) && !errors.Is(err, forge.Conflict) {
			return result, err
		}
		p.report("looking again: " + err.Error())
		if end := pause(ctx, movedPause); end != nil {
			return Result{}, fmt.Errorf("%w; the last attempt ended with: %w", end, err)
		}
	}
}

// Preview is the change that a request makes to the base as it is now. It changes nothing,
// reports nothing, and asks the forge for nothing but the base: Propose looks for itself.
func (p *Proposer) Preview(ctx context.Context, r Request) (Change, error) {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	repo, err := p.Remote.open(ctx)
	if err != nil {
		return Change{}, err
	}
	defer repo.close() //nolint:errcheck // below the system's temporary directory
	v := &view{}
	silent := Proposer{Base: p.Base}
	if err := silent.find(ctx, repo, v, r); err != nil {
		return Change{}, err
	}
	if err := v.read(repo.tree(ctx, v.base), r.Release); err != nil {
		return Change{}, err
	}
	return p.change(ctx, repo, v, r)
}

// errMoved says that somebody else changed what this attempt was made for.
var errMoved = errors.New("it moved meanwhile")

const movedPause = 100 * time.Millisecond

// attempt is the story of a proposal: look, decide, push, show.
func (p *Proposer) attempt(ctx context.Context, repo *repository, r Request) (Result, error) {
	view, err := p.look(ctx, repo, r)
	if err != nil {
		return Result{}, err
	}
	result, err := p.decide(ctx, view, r)
	if err != nil || result.State == Released {
		return result, err
	}
	switch {
	case result.State == Proposed:
		result.Commit, err = p.push(ctx, repo, view, r)
	case result.Commit != "":
		// The run that pushed the newer build may have been killed before it
		// showed it, or this one may have just written its text over the other's.
		err = repo.ours(ctx, view)
	default:
		return result, nil
	}
	if err != nil {
		return Result{}, err
	}
	pr, err := p.show(ctx, repo, view, result.Commit)
	if moved := p.settled(ctx, repo, view, result.Commit); moved != nil && (err == nil || errors.Is(moved, errMoved)) {
		err = moved
	}
	result.Number, result.URL = pr.Number, pr.URL
	return result, err
}

// view is the state of the world that a proposal is decided from.
type view struct {
	branch    string
	base      string // commit of the base
	head      string // commit of the branch; empty if there is none
	target    fleet.Target
	released  map[string]fleet.Release // on the base, by place
	proposed  map[string]fleet.Release // on the branch, by place; nil if there is none
	files     map[string][]byte        // with the new release, by path
	condemned fleet.Quarantine         // on the base
	latest    forge.PullRequest        // newest that was ever opened from the branch; number 0 if none was
}

func (p *Proposer) look(ctx context.Context, repo *repository, r Request) (*view, error) {
	v := &view{}
	if err := p.find(ctx, repo, v, r); err != nil {
		return nil, err
	}
	tree := repo.tree(ctx, v.base)
	if err := v.read(tree, r.Release); err != nil {
		return nil, err
	}
	var err error
	if v.condemned, err = fleet.ReadQuarantine(tree); err != nil {
		return nil, err
	}
	if v.head != "" {
		// A branch that does not parse holds no release of ours to respect; whose
		// commits it has is looked at before anything is pushed.
		v.proposed, _ = releases(repo.tree(ctx, v.head), v.target)
	}
	v.latest, err = p.latest(ctx, v.branch)
	return v, err
}

// read reads what the base has where the release goes, and what becomes of it.
func (v *view) read(base fs.FS, release fleet.Release) (err error) {
	if v.released, err = releases(base, v.target); err != nil {
		return err
	}
	v.files, err = edited(base, v.target, release)
	return err
}

// find looks where the release goes. Which branch that is follows from the base, so the base
// is fetched before it.
func (p *Proposer) find(ctx context.Context, repo *repository, v *view, r Request) error {
	fetch := func() error {
		return p.ask(ctx, "fetch", func() (err error) {
			v.base, v.head, err = repo.fetch(ctx, p.Base, v.branch)
			return err
		})
	}
	v.branch = Branch(r.App, r.Wave)
	if err := fetch(); err != nil {
		return err
	}
	files := repo.tree(ctx, v.base)
	f, err := fleet.Load(files)
	if err != nil {
		return err
	}
	if _, unknown := f.App(r.App); unknown != nil {
		// A component's file is looked for.
		if files, err = repo.whole(ctx, v.base); err != nil {
			return err
		}
	}
	if v.target, err = f.Target(files, r.App, r.Wave); err != nil {
		return err
	}
	if branch := Branch(r.App, v.target.Wave); branch != v.branch {
		v.branch = branch
		return fetch()
	}
	return nil
}

func releases(tree fs.FS, target fleet.Target) (map[string]fleet.Release, error) {
	found := map[string]fleet.Release{}
	for _, place := range target.Places {
		release, err := place.Read(tree)
		if err != nil {
			return nil, err
		}
		found[place.Name] = release
	}
	return found, nil
}

// edited returns the files with the new release: the values change in place, and it is
// proved that nothing else does (P5).
func edited(tree fs.FS, target fleet.Target, release fleet.Release) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, place := range target.Places {
		after, err := place.Edit(tree, release)
		if err != nil {
			return nil, err
		}
		files[place.File] = after
	}
	return files, nil
}

// decide says what a view means for a request. It changes nothing, except that it
// closes a pull request that the base has overtaken.
func (p *Proposer) decide(ctx context.Context, v *view, r Request) (Result, error) {
	result := Result{State: Proposed, Branch: v.branch, Clusters: v.target.Clusters}
	newer, err := newest(v.released, r.Release)
	switch {
	case err != nil:
		return Result{}, fmt.Errorf("%s at %s: %w", p.Base, short(v.base), err)
	case newer != "":
		result.State, result.By = Superseded, newer
		return result, p.retire(ctx, v)
	case all(v.released, r.Release):
		result.State = Released
		return result, p.retire(ctx, v)
	}
	if entry, ok := v.condemned.Find(r.Release.Digest); ok {
		return Result{}, fmt.Errorf("%w since its canary in %s: %s; release another build, or lift the entry in %s", ErrQuarantined, entry.Cluster, entry.Reason, fleet.QuarantineFile)
	}
	if v.live() && v.proposed != nil {
		// Another image under the same tag is replaced here: nobody runs it yet.
		if newer, err := newest(v.proposed, r.Release); err == nil && newer != "" {
			result.State, result.By, result.Commit = Superseded, newer, v.head
			return result, nil
		}
	}
	if !r.Again && v.latest.State == forge.Closed && r.named(v.latest.Body) {
		return Result{}, fmt.Errorf("%w: see %s; ask for it again to propose it anyway", ErrRejected, v.latest.URL)
	}
	return result, nil
}

// newest returns the newest release that is newer than the one to propose, if any.
func newest(have map[string]fleet.Release, proposed fleet.Release) (string, error) {
	newest := proposed.Tag
	for cluster, release := range have {
		if release.Empty() {
			continue
		}
		if release.Tag == proposed.Tag && release.Digest != proposed.Digest {
			return "", fmt.Errorf("%w: %s of %s is %s, not %s; a build is never replaced under its tag: commit something and build that", ErrTagMoved, release.Tag, cluster, release.Digest, proposed.Digest)
		}
		order, err := source.Compare(release.Tag, newest)
		if err != nil {
			return "", fmt.Errorf("comparing with what %s runs: %w", cluster, err)
		}
		if order > 0 {
			newest = release.Tag
		}
	}
	if newest == proposed.Tag {
		return "", nil
	}
	return newest, nil
}

func all(have map[string]fleet.Release, want fleet.Release) bool {
	for _, release := range have {
		if release != want {
			return false
		}
	}
	return true
}

// latest returns the branch's open pull request, or else the newest that was ever opened
// from it, duplicates apart.
func (p *Proposer) latest(ctx context.Context, branch string) (forge.PullRequest, error) {
	var found []forge.PullRequest
	err := p.ask(ctx, "find pull requests", func() (err error) {
		found, err = p.Forge.FindPullRequests(ctx, forge.Query{Head: branch, Base: p.Base, State: forge.All, Limit: 10})
		return err
	})
	found = slices.DeleteFunc(found, func(pr forge.PullRequest) bool { return strings.HasPrefix(pr.Body, DuplicateNote) })
	if err != nil || len(found) == 0 {
		return forge.PullRequest{}, err
	}
	if open := slices.DeleteFunc(slices.Clone(found), func(pr forge.PullRequest) bool { return pr.State != forge.Open }); len(open) > 0 {
		return slices.MinFunc(open, byNumber), nil
	}
	return found[0], nil
}

// live reports whether the branch is a proposal: its pull request is open, or a run was
// killed before it opened one. A branch that was left behind by a merge, or by a person
// who closed its pull request, is none.
func (v *view) live() bool {
	return v.head != "" && (v.latest.Number == 0 || v.latest.State == forge.Open || v.latest.HeadSHA != v.head)
}

// retire closes the open pull request of the branch if it proposes nothing that is newer
// than the base: merging it would take the base back.
func (p *Proposer) retire(ctx context.Context, v *view) error {
	if v.head == "" || v.proposed == nil {
		return nil
	}
	for cluster, release := range v.proposed {
		order, err := source.Compare(release.Tag, v.released[cluster].Tag)
		if err != nil || order > 0 {
			return nil
		}
	}
	if v.latest.State != forge.Open {
		return nil
	}
	return p.ask(ctx, "close pull request", func() error { return p.Forge.ClosePullRequest(ctx, v.latest.Number) })
}

// push makes the branch hold the release, and returns its commit.
func (p *Proposer) push(ctx context.Context, repo *repository, v *view, r Request) (string, error) {
	// Git searches its history while the plan is rendered for the text.
	back := make(chan error, 1)
	go func() { back <- repo.notTakenBack(ctx, v, r) }()
	text, failed := p.describe(ctx, repo, v, r)
	if err := <-back; err != nil {
		return "", err
	}
	if failed != nil {
		return "", fmt.Errorf("describing the release: %w", failed)
	}
	r.Text = text
	commit, err := repo.commit(ctx, v, r.message(v), r.Time)
	if err != nil || commit == v.head {
		return commit, err
	}
	if err := repo.ours(ctx, v); err != nil {
		return "", err
	}
	return commit, p.ask(ctx, "push", func() error { return repo.push(ctx, v.branch, v.head, commit) })
}

// describe asks for the text.
func (p *Proposer) describe(ctx context.Context, repo *repository, v *view, r Request) (Text, error) {
	if r.Describe == nil {
		return r.Text, nil
	}
	change, err := p.change(ctx, repo, v, r)
	if err != nil {
		return Text{}, err
	}
	return r.Describe(ctx, change)
}

// change has the trees of just the change that will be committed.
func (p *Proposer) change(ctx context.Context, repo *repository, v *view, r Request) (Change, error) {
	// A branch is named as a clone knows it, so that a command with its name works.
	base, head, err := repo.trees(ctx, v, r, p.Base, "origin/"+v.branch)
	return Change{Released: v.released, Base: base, Head: head}, err
}

// show makes the forge have one open pull request that says what the branch holds.
func (p *Proposer) show(ctx context.Context, repo *repository, v *view, commit string) (forge.PullRequest, error) {
	if err := p.known(ctx, repo, v.branch, commit); err != nil {
		return forge.PullRequest{}, err
	}
	title, body, err := repo.message(ctx, commit)
	if err != nil {
		return forge.PullRequest{}, err
	}
	var pr forge.PullRequest
	err = p.ask(ctx, "ensure pull request", func() (err error) {
		pr, _, err = forge.EnsurePullRequest(ctx, p.Forge, forge.Proposal{Title: title, Body: body, Head: v.branch, Base: p.Base})
		return err
	})
	if err != nil {
		return forge.PullRequest{}, err
	}
	return p.onlyOne(ctx, pr)
}

// DuplicateNote begins the text of a pull request that was closed for being the second
// one of its branch. It names no release: nobody rejected one.
const DuplicateNote = "Opened by a release that ran beside another one, whose pull request is "

// onlyOne closes all but the first of the branch's open pull requests: a forge may open
// two when it is asked twice at the same moment, as Gitea does. Whoever opened the later
// one sees both.
func (p *Proposer) onlyOne(ctx context.Context, pr forge.PullRequest) (forge.PullRequest, error) {
	var open []forge.PullRequest
	err := p.ask(ctx, "find open pull requests", func() (err error) {
		open, err = p.Forge.FindPullRequests(ctx, forge.Query{Head: pr.Head, Base: pr.Base, State: forge.Open})
		return err
	})
	if err != nil || len(open) < 2 {
		return pr, err
	}
	first := slices.MinFunc(open, byNumber)
	for _, other := range open {
		if other.Number == first.Number {
			continue
		}
		note := DuplicateNote + first.URL
		err := p.ask(ctx, "close duplicate", func() error {
			if _, err := p.Forge.UpdatePullRequest(ctx, other.Number, forge.Change{Body: &note}); err != nil {
				return err
			}
			return p.Forge.ClosePullRequest(ctx, other.Number)
		})
		if err != nil {
			return pr, err
		}
	}
	return first, p.ask(ctx, "update pull request", func() (err error) {
		first, err = p.Forge.UpdatePullRequest(ctx, first.Number, forge.Change{Title: &pr.Title, Body: &pr.Body})
		return err
	})
}

func byNumber(a, b forge.PullRequest) int { return cmp.Compare(a.Number, b.Number) }

// known waits until the forge knows the branch at the commit: it takes a push in first,
// and enters it into its database a moment later.
func (p *Proposer) known(ctx context.Context, repo *repository, branch, commit string) error {
	defer tooltime.Begin(ctx, "forge")()
	for {
		var head string
		err := p.ask(ctx, "get branch", func() (err error) {
			if head, err = p.Forge.Head(ctx, branch); errors.Is(err, forge.NotFound) {
				head, err = "", nil
			}
			return err
		})
		if err != nil || head == commit {
			return err
		}
		// It may never know it: another run may have pushed over this commit.
		if _, now, err := repo.heads(ctx, p.Base, branch); err == nil && now != commit {
			return fmt.Errorf("%s is at %s, not at %s: %w", branch, short(now), short(commit), errMoved)
		}
		p.report(fmt.Sprintf("waiting until the forge knows %s at %s; it has %s", branch, short(commit), short(head)))
		if err := pause(ctx, knownPause); err != nil {
			return fmt.Errorf("waiting until the forge knows %s at %s, it has %s: %w", branch, short(commit), short(head), err)
		}
	}
}

const knownPause = 50 * time.Millisecond

// settled reports errMoved unless base and branch are what they were: another run may
// have pushed while this one wrote its text over the other's.
func (p *Proposer) settled(ctx context.Context, repo *repository, v *view, commit string) error {
	var base, head string
	err := p.ask(ctx, "look again", func() (err error) {
		base, head, err = repo.heads(ctx, p.Base, v.branch)
		return err
	})
	switch {
	case err != nil:
		return err
	case base != v.base:
		return fmt.Errorf("%s went from %s to %s: %w", p.Base, short(v.base), short(base), errMoved)
	case head != commit:
		return fmt.Errorf("%s went from %s to %s: %w", v.branch, short(commit), short(head), errMoved)
	}
	return nil
}

func (p *Proposer) report(detail string) {
	if p.Report != nil {
		p.Report(detail)
	}
}

func short(commit string) string {
	if len(commit) > 10 {
		return commit[:10]
	}
	if commit == "" {
		return "nothing"
	}
	return commit
}
