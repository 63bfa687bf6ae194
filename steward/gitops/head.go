package gitops

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/steward"
)

// head is what a branch's newest commit says, seen from the base.
type head struct {
	fresh, foreign bool
	wants          map[string]fleet.Release
	entry          *fleet.Quarantined
	title, body    string
	time           time.Time
}

func (r *Repository) head(ctx context.Context, branch, at string) (head, error) {
	if h, ok := r.heads[at]; ok {
		return h, nil
	}
	h, err := r.readHead(ctx, branch, at)
	if err != nil {
		return head{}, fmt.Errorf("reading %s: %w", branch, err)
	}
	r.heads[at] = h
	return h, nil
}

func (r *Repository) readHead(ctx context.Context, branch, at string) (head, error) {
	h := head{wants: map[string]fleet.Release{}}
	parents, err := r.git.Line(ctx, "rev-list", "--parents", "--max-count=1", at)
	if err != nil {
		return h, err
	}
	message, err := r.git.Run(ctx, "show", "--no-patch", "--format=%ct%n%B", at)
	if err != nil {
		return h, err
	}
	seconds, text, _ := strings.Cut(message, "\n")
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return h, fmt.Errorf("git show wrote %q", seconds)
	}
	h.time = time.Unix(unix, 0)
	title, body, _ := strings.Cut(strings.TrimSpace(text), "\n")
	h.title, h.body = title, strings.TrimSpace(body)
	if h.foreign, err = r.foreign(ctx, at); err != nil {
		return h, err
	}
	_, name, bad, _ := steward.Trailer(h.body)
	app, err := r.seen.fleet.App(name)
	if err != nil {
		return h, nil //nolint:nilerr // of no app: whoever asks sees an empty head
	}
	tree, err := r.revision.Tree(ctx, at, branch)
	if err != nil {
		return h, err
	}
	list, err := fleet.ReadQuarantine(tree)
	if err != nil {
		h.foreign = true // no steward writes a list that cannot be read
		return h, nil
	}
	if entry, ok := list.Find(bad.Digest); ok {
		h.entry = &entry
	}
	for _, c := range r.seen.fleet.Clusters {
		if release, err := fleet.ReadRelease(tree, app, c.Name); err == nil {
			h.wants[c.Name] = release
		}
	}
	if parents == at+" "+r.seen.base {
		h.fresh, err = r.justThis(ctx, at, tree, app, h)
	}
	return h, err
}

// foreign reports whether a person pushed to the branch.
func (r *Repository) foreign(ctx context.Context, at string) (bool, error) {
	out, err := r.git.Run(ctx, "log", "--first-parent", "--no-merges", "--format=%x01%B", at, "^"+r.seen.base)
	if err != nil {
		return false, err
	}
	for _, message := range strings.Split(out, "\x01")[1:] {
		if _, _, _, ok := steward.Trailer(message); !ok {
			return true, nil
		}
	}
	return false, nil
}

// justThis reports whether a commit changes nothing but the releases and the entry that it
// shows: nothing else may come in with a merge that nobody looks at.
func (r *Repository) justThis(ctx context.Context, at string, tree fs.FS, app fleet.App, h head) (bool, error) {
	want, err := edit(r.seen.tree, app, h.wants, h.entry)
	if err != nil {
		return false, nil //nolint:nilerr // then a person wrote it in another way
	}
	out, err := r.git.Run(ctx, "diff-tree", "-r", "-z", "--name-only", "--no-commit-id", r.seen.base, at)
	if err != nil {
		return false, err
	}
	for _, path := range strings.Split(strings.TrimSuffix(out, "\x00"), "\x00") {
		have, err := fs.ReadFile(tree, path)
		if content, ok := want[path]; !ok || err != nil || !bytes.Equal(content, have) {
			return false, nil
		}
		delete(want, path)
	}
	for path, content := range want { // what should have changed and did not
		have, err := fs.ReadFile(r.seen.tree, path)
		if err != nil || !bytes.Equal(content, have) {
			return false, nil
		}
	}
	return true, nil
}

// edit makes the files with these releases and this entry of a tree's.
func edit(tree fs.FS, app fleet.App, set map[string]fleet.Release, entry *fleet.Quarantined) (map[string][]byte, error) {
	files := map[string][]byte{}
	for cluster, release := range set {
		path := app.ReleaseFile(cluster)
		src, err := fs.ReadFile(tree, path)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if have, err := fleet.ParseRelease(path, src, app); err == nil && have == release {
			continue
		}
		if files[path], err = fleet.SetRelease(src, app, release); err != nil {
			return nil, fmt.Errorf("editing %s: %w", path, err)
		}
	}
	if entry == nil {
		return files, nil
	}
	src, err := fs.ReadFile(tree, fleet.QuarantineFile)
	if err != nil {
		src = nil
	}
	files[fleet.QuarantineFile], err = fleet.AddQuarantine(src, *entry)
	return files, err
}

var sourcePattern = regexp.MustCompile("(?m)^- " + propose.SourceFact + ": `([0-9a-f]{40})`\r?$")

func sourceOf(body string) string {
	if m := sourcePattern.FindStringSubmatch(body); m != nil {
		return m[1]
	}
	return ""
}
