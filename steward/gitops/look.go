package gitops

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/plan/revision"
	"github.com/omnivision/omnivision/steward"
)

// seen is what one commit of the base says. It never changes, so it is read once.
type seen struct {
	base       string
	tree       *revision.Tree
	fleet      *fleet.Fleet
	quarantine fleet.Quarantine
	history
}

// Look implements steward.Repository.
func (r *Repository) Look(ctx context.Context, cluster string) (steward.Git, error) {
	base, heads, err := r.fetch(ctx)
	if err != nil {
		return steward.Git{}, err
	}
	if err := r.read(ctx, base); err != nil {
		return steward.Git{}, err
	}
	s := r.seen
	view := steward.Git{Commit: base, Fleet: s.fleet, Quarantine: s.quarantine, Lifted: s.lifted, Apps: map[string]steward.App{}}
	pulls, sources, err := r.pulls(ctx, heads)
	if err != nil {
		return steward.Git{}, err
	}
	for _, app := range s.fleet.Apps {
		shown := steward.App{Wanted: map[string]steward.Wanted{}, Pulls: pulls[app.Name], Sources: sources}
		for name, wanted := range s.wanted[app.Name] {
			shown.Wanted[name] = wanted
		}
		if err := r.reports(ctx, app.Name, cluster, shown.Wanted); err != nil {
			return steward.Git{}, err
		}
		if err := r.lateReports(ctx, app.Name, cluster, shown.Wanted); err != nil {
			return steward.Git{}, err
		}
		view.Apps[app.Name] = shown
	}
	return view, nil
}

func (r *Repository) read(ctx context.Context, base string) error {
	if r.seen != nil && r.seen.base == base {
		return nil
	}
	tree, err := r.revision.Tree(ctx, base, r.Base)
	if err != nil {
		return err
	}
	s := &seen{base: base, tree: tree}
	if s.fleet, err = fleet.Load(tree); err != nil {
		return err
	}
	if s.quarantine, err = fleet.ReadQuarantine(tree); err != nil {
		return err
	}
	if s.history, err = r.history(ctx, base, s.fleet); err != nil {
		return err
	}
	r.seen, r.heads = s, map[string]head{}
	return nil
}

// pulls lists the pull requests by app, and the sources that their texts name.
func (r *Repository) pulls(ctx context.Context, heads map[string]string) (map[string][]steward.Pull, map[string]string, error) {
	const enough = 100
	recent, err := r.Forge.FindPullRequests(ctx, forge.Query{Base: r.Base, State: forge.All, Limit: enough})
	if err != nil {
		return nil, nil, err
	}
	open := slices.DeleteFunc(slices.Clone(recent), func(pr forge.PullRequest) bool { return pr.State != forge.Open })
	if len(recent) == enough { // there may be older ones that are open
		if open, err = r.Forge.FindPullRequests(ctx, forge.Query{Base: r.Base, State: forge.Open, Limit: enough}); err != nil {
			return nil, nil, err
		}
	}
	found, sources, latest := map[string][]steward.Pull{}, map[string]string{}, map[string]bool{}
	for _, pr := range append(open, slices.DeleteFunc(recent, func(pr forge.PullRequest) bool { return pr.State == forge.Open })...) {
		if !slices.ContainsFunc(branchPatterns, func(p string) bool { return strings.HasPrefix(pr.Head, p) }) {
			continue
		}
		if _, _, release, ok := steward.Trailer(pr.Body); ok && sources[release.Digest] == "" {
			sources[release.Digest] = sourceOf(pr.Body)
		}
		if latest[pr.Head] && pr.State != forge.Open {
			continue
		}
		latest[pr.Head] = true
		pull, app, ok, err := r.pull(ctx, pr, heads[pr.Head])
		if err != nil {
			return nil, nil, err
		}
		if ok {
			found[app] = append(found[app], pull)
		}
	}
	return found, sources, nil
}

// pull shows a pull request as the steward knows it; of an open one the branch has the say.
func (r *Repository) pull(ctx context.Context, pr forge.PullRequest, at string) (pull steward.Pull, app string, ok bool, err error) {
	pull = steward.Pull{Number: pr.Number, URL: pr.URL, Branch: pr.Head, State: pr.State, Created: pr.Created, Updated: pr.Updated, Head: pr.HeadSHA, Withdrawn: withdrawn(pr.Body)}
	body := pr.Body
	if pr.State == forge.Open {
		if at == "" {
			return pull, "", false, nil // the branch is gone: nothing can be merged
		}
		h, err := r.head(ctx, pr.Head, at)
		if err != nil {
			return pull, "", false, err
		}
		pull.Head, pull.Fresh, pull.Foreign, pull.Wants, pull.Entry, pull.Title, pull.Body, pull.Time = at, h.fresh, h.foreign, h.wants, h.entry, h.title, h.body, h.time
		if _, _, _, named := steward.Trailer(h.body); named {
			body = h.body
		}
	}
	pull.Kind, app, pull.Release, ok = steward.Trailer(body)
	parts := strings.Split(pr.Head, "/")
	if len(parts) != 3 || parts[1] != app || parts[0] != string(pull.Kind) {
		return pull, "", false, nil // the text speaks of another branch
	}
	if pull.Kind == steward.Release {
		pull.Wave, err = strconv.Atoi(strings.TrimPrefix(parts[2], "wave-"))
		return pull, app, ok && err == nil, nil
	}
	return pull, app, ok && pr.Head == steward.RevertBranch(app, pull.Release.Digest), nil
}

// reports reads what the stewards said. A steward needs its own wave's word, and the last
// cluster's everybody's.
func (r *Repository) reports(ctx context.Context, app, cluster string, wanted map[string]steward.Wanted) error {
	said := map[string][]forge.Status{}
	for _, other := range r.listened(cluster) {
		w := wanted[other]
		if w.Commit == "" {
			continue
		}
		if _, ok := said[w.Commit]; !ok {
			statuses, err := r.Forge.Statuses(ctx, w.Commit)
			if err != nil {
				return fmt.Errorf("reading the reports on %s: %w", w.Commit, err)
			}
			said[w.Commit] = statuses
		}
		for _, status := range said[w.Commit] {
			switch status.Context {
			case steward.Context(app, other):
				if report, ok := steward.ParseReport(status); ok {
					w.Report, w.Link = report, status.URL
				}
			case steward.DoneContext(app):
				w.Told = status.State == forge.Success
			}
		}
		wanted[other] = w
	}
	return nil
}

// newestLandings is of how many releases before the one that is wanted the reports are read.
const newestLandings = 3

// lateReports reads what this cluster's steward said of the newest releases that Git wanted
// before, and of those that are quarantined since. A last word is not asked for again: that a
// release was aborted, or superseded as long as nobody quarantines it, or that nobody ever
// said anything.
func (r *Repository) lateReports(ctx context.Context, app, cluster string, wanted map[string]steward.Wanted) error {
	w := wanted[cluster]
	w.Before = slices.Clone(w.Before)
	for i, landing := range w.Before {
		quarantined := r.seen.quarantine.Has(landing.Digest)
		if i >= newestLandings && !quarantined {
			continue
		}
		key := steward.Context(app, cluster) + " " + landing.Commit
		report, known := r.final[key]
		if !known || quarantined && report.State != steward.StateAborted {
			var err error
			if report, err = r.said(ctx, steward.Context(app, cluster), landing.Commit); err != nil {
				return err
			}
		}
		switch report.State {
		case steward.StateAborted, steward.StateSuperseded, "":
			r.final[key] = report
		}
		w.Before[i].Report = report
	}
	wanted[cluster] = w
	return nil
}

// said is the report on a commit; zero if there is none.
func (r *Repository) said(ctx context.Context, name, commit string) (report steward.Report, err error) {
	statuses, err := r.Forge.Statuses(ctx, commit)
	if err != nil {
		return report, fmt.Errorf("reading the reports on %s: %w", commit, err)
	}
	for _, status := range statuses {
		if said, ok := steward.ParseReport(status); ok && status.Context == name {
			report = said
		}
	}
	return report, nil
}

func (r *Repository) listened(cluster string) []string {
	waves := r.seen.fleet.Waves()
	last := waves[len(waves)-1]
	var names []string
	for _, wave := range waves {
		mine := slices.ContainsFunc(wave, func(c fleet.Cluster) bool { return c.Name == cluster })
		for _, c := range wave {
			if mine || last[len(last)-1].Name == cluster {
				names = append(names, c.Name)
			}
		}
	}
	return names
}

// history is what the base's past says.
type history struct {
	wanted map[string]map[string]steward.Wanted // by app and cluster
	lifted map[string]time.Time
}

// version is a file at a commit of the base.
type version struct {
	commit string
	at     time.Time
	data   []byte
}

// maxHistory is how many commits are looked back: what is older nobody goes back to.
const maxHistory = 1000

func (r *Repository) history(ctx context.Context, base string, f *fleet.Fleet) (history, error) {
	h := history{wanted: map[string]map[string]steward.Wanted{}}
	var paths []string
	for _, app := range f.Apps {
		for _, c := range f.Clusters {
			paths = append(paths, app.ReleaseFile(c.Name))
		}
	}
	versions, err := r.versions(ctx, base, append(paths, fleet.QuarantineFile))
	if err != nil {
		return h, fmt.Errorf("reading the history of releases: %w", err)
	}
	for _, app := range f.Apps {
		h.wanted[app.Name] = map[string]steward.Wanted{}
		for _, c := range f.Clusters {
			h.wanted[app.Name][c.Name] = wanted(app, app.ReleaseFile(c.Name), versions[app.ReleaseFile(c.Name)])
		}
	}
	h.lifted = lifted(versions[fleet.QuarantineFile])
	return h, nil
}

// wanted reads the versions of a release file, the newest first. A release is of the commit
// that brought it, not of later ones that touched the file.
func wanted(app fleet.App, path string, versions []version) steward.Wanted {
	var w steward.Wanted
	var landings []steward.Landing
	for _, v := range versions {
		release, err := fleet.ParseRelease(path, v.data, app)
		if err != nil {
			continue // a file that was broken for a while wanted nothing
		}
		if n := len(landings); n > 0 && landings[n-1].Release == release {
			landings[n-1].Commit = v.commit
		} else {
			landings = append(landings, steward.Landing{Release: release, Commit: v.commit})
		}
		if len(landings) == 1 {
			w.Release, w.Commit, w.Since = release, v.commit, v.at
		}
	}
	if len(landings) > 1 {
		w.Before = landings[1:]
	}
	return w
}

// lifted finds what was on the list once and is not now.
func lifted(versions []version) map[string]time.Time {
	lifted := map[string]time.Time{}
	var before fleet.Quarantine
	for _, v := range slices.Backward(versions) {
		var list fleet.Quarantine
		if v.data != nil { // a file that is gone lifted everything
			var err error
			if list, err = fleet.ParseQuarantine(v.data); err != nil {
				continue
			}
		}
		for _, entry := range before {
			if !list.Has(entry.Digest) {
				lifted[entry.Digest] = v.at
			}
		}
		for _, entry := range list {
			delete(lifted, entry.Digest)
		}
		before = list
	}
	return lifted
}

// versions reads files at all commits of the base that touched them, the newest first, with
// two runs of git.
func (r *Repository) versions(ctx context.Context, base string, paths []string) (map[string][]version, error) {
	out, err := r.git.Run(ctx, append([]string{
		"log", "--first-parent", "--diff-merges=first-parent", "--no-renames", "--max-count=" + strconv.Itoa(maxHistory),
		"--name-only", "--format=%x01%H %ct", base, "--",
	}, paths...)...)
	if err != nil {
		return nil, err
	}
	found := map[string][]version{}
	var asked []string
	for _, block := range strings.Split(out, "\x01")[1:] {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		commit, seconds, _ := strings.Cut(lines[0], " ")
		unix, err := strconv.ParseInt(seconds, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("git log wrote %q", lines[0])
		}
		for _, path := range lines[1:] {
			if path != "" {
				found[path] = append(found[path], version{commit: commit, at: time.Unix(unix, 0)})
				asked = append(asked, commit+":"+path)
			}
		}
	}
	contents, err := r.contents(ctx, asked)
	if err != nil {
		return nil, err
	}
	for path, versions := range found {
		for i, v := range versions {
			versions[i].data = contents[v.commit+":"+path]
		}
	}
	return found, nil
}

// contents reads blobs; one that is not there is missing.
func (r *Repository) contents(ctx context.Context, names []string) (map[string][]byte, error) {
	out, err := r.git.Feed(ctx, strings.Join(names, "\n")+"\n", "cat-file", "--batch")
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for _, name := range names {
		header, rest, ok := strings.Cut(out, "\n")
		if !ok {
			return nil, fmt.Errorf("git cat-file ended before %s", name)
		}
		fields := strings.Fields(header)
		if len(fields) != 3 || fields[1] != "blob" {
			out = rest
			continue
		}
		size, err := strconv.Atoi(fields[2])
		if err != nil || size > len(rest)-1 {
			return nil, fmt.Errorf("git cat-file wrote %q", header)
		}
		found[name], out = []byte(rest[:size]), rest[size+1:]
	}
	return found, nil
}
