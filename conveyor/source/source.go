// Package source says what Git knows of the source that a release is built from:
// which commit, which version, when, and what changed since another commit.
//
// The version is a base version and the number of commits up to the one that is
// built, such as 0.1.0-57. It rises with every commit of a branch, for every app
// alike, and the same commit has the same version on every machine: nobody hands out
// numbers, so nothing can hand one out twice (P42).
package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/omnivision/omnivision/internal/git"
)

// BaseVersion is the release that the source leads to.
const BaseVersion = "0.1.0"

// ErrNoCheckout says that a directory is in no Git checkout, or in one without commits.
var ErrNoCheckout = errors.New("no Git checkout with a commit")

// Revision is one state of a source.
type Revision struct {
	Commit  string    `json:"commit"` // all 40 digits
	Version string    `json:"version"`
	Time    time.Time `json:"time"` // of the commit; the times of everything built from it
	// Dirty says that the working tree has changes that the commit has not.
	Dirty bool `json:"dirty,omitempty"`
}

// Commit is one commit, for people.
type Commit struct {
	SHA     string `json:"sha"`
	Subject string `json:"subject"`
	Author  string `json:"author"`
}

// Read asks Git about HEAD of the checkout around dir.
func Read(ctx context.Context, dir string) (Revision, error) {
	g := git.Own(dir)
	commit, err := g.Line(ctx, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if err != nil {
		return Revision{}, fmt.Errorf("reading the source's revision in %s: %w: %w", dir, ErrNoCheckout, err)
	}
	shallow, err := g.Line(ctx, "rev-parse", "--is-shallow-repository")
	if err != nil {
		return Revision{}, fmt.Errorf("reading the source's revision in %s: %w", dir, err)
	}
	if shallow == "true" {
		// A count of some commits would be a version that another commit has had.
		return Revision{}, fmt.Errorf("the checkout in %s is shallow, and versions count commits: fetch its history with git fetch --unshallow", dir)
	}
	return read(ctx, g, commit)
}

func read(ctx context.Context, g git.Git, commit string) (Revision, error) {
	count, err := g.Line(ctx, "rev-list", "--count", commit)
	if err != nil {
		return Revision{}, fmt.Errorf("counting the commits up to %s: %w", commit, err)
	}
	seconds, err := g.Line(ctx, "show", "--no-patch", "--format=%ct", commit)
	if err != nil {
		return Revision{}, fmt.Errorf("reading the time of %s: %w", commit, err)
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return Revision{}, fmt.Errorf("reading the time of %s: %w", commit, err)
	}
	status, err := g.Line(ctx, "status", "--porcelain")
	if err != nil {
		return Revision{}, fmt.Errorf("looking for changes in %s: %w", g.Dir, err)
	}
	return Revision{Commit: commit, Version: BaseVersion + "-" + count, Time: time.Unix(unix, 0).UTC(), Dirty: status != ""}, nil
}

// Log lists the commits that came after one and up to another, newest first, at most
// limit of them, and says how many there are. With paths only those count that touch
// one of them.
func Log(ctx context.Context, dir, after, upTo string, limit int, paths ...string) (commits []Commit, total int, err error) {
	g := git.Own(dir)
	span := after + ".." + upTo
	for _, end := range []string{after, upTo} {
		if !isCommit(end) {
			return nil, 0, fmt.Errorf("listing the commits %s: %q is no full commit", span, end)
		}
	}
	scope := append([]string{span, "--"}, paths...)
	count, err := g.Line(ctx, append([]string{"rev-list", "--count"}, scope...)...)
	if err == nil {
		total, err = strconv.Atoi(count)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("listing the commits %s: %w", span, err)
	}
	// NUL cannot be in a subject or a name.
	out, err := g.Run(ctx, append([]string{"log", "-z", "--max-count=" + strconv.Itoa(limit), "--format=%H%x00%s%x00%an"}, scope...)...)
	if err != nil {
		return nil, 0, fmt.Errorf("listing the commits %s: %w", span, err)
	}
	fields := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	for ; len(fields) >= 3; fields = fields[3:] {
		commits = append(commits, Commit{SHA: fields[0], Subject: fields[1], Author: fields[2]})
	}
	return commits, total, nil
}

// LastChange finds the commit that last changed something below the paths, up to another
// commit.
func LastChange(ctx context.Context, dir, upTo string, paths ...string) (string, error) {
	if !isCommit(upTo) {
		return "", fmt.Errorf("finding the last change of %s: %q is no full commit", strings.Join(paths, ", "), upTo)
	}
	commit, err := git.Own(dir).Line(ctx, append([]string{"log", "-1", "--format=%H", upTo, "--"}, paths...)...)
	if err != nil {
		return "", fmt.Errorf("finding the last change of %s: %w", strings.Join(paths, ", "), err)
	}
	if !isCommit(commit) {
		return "", fmt.Errorf("no commit up to %s has %s", upTo, strings.Join(paths, ", "))
	}
	return commit, nil
}

func isCommit(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

// Export writes the files of a commit, and nothing else, below an empty directory: what
// is built is what Git has, not what lies about in a working tree. Of the files only those are
// written that wanted takes, all if it is nil.
func Export(ctx context.Context, dir, commit, target string, wanted func(file string) (bool, error)) error {
	if !isCommit(commit) {
		return fmt.Errorf("exporting the source: %q is no full commit", commit)
	}
	target, err := filepath.Abs(target)
	if err != nil {
		return fmt.Errorf("exporting commit %s: %w", commit, err)
	}
	top, err := git.Own(dir).Line(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		return fmt.Errorf("exporting commit %s: %w", commit, err)
	}
	// An index of its own, so that the checkout's stays as it is.
	index := target + ".index"
	defer os.Remove(index) //nolint:errcheck // beside the target, which goes as a whole
	g := git.Own(top)
	g.Env = append(g.Env, "GIT_INDEX_FILE="+index)
	if _, err := g.Run(ctx, "read-tree", commit); err != nil {
		return fmt.Errorf("exporting commit %s: %w", commit, err)
	}
	files, err := listed(ctx, g, wanted)
	if err != nil {
		return fmt.Errorf("exporting commit %s: %w", commit, err)
	}
	if _, err := g.Feed(ctx, files, "-c", "core.autocrlf=false", "checkout-index", "-z", "--stdin", "--prefix="+target+"/"); err != nil {
		return fmt.Errorf("exporting commit %s to %s: %w", commit, target, err)
	}
	if err := plainModes(target); err != nil {
		return fmt.Errorf("exporting commit %s: %w", commit, err)
	}
	return nil
}

// listed are the wanted files of the index, each ended by NUL.
func listed(ctx context.Context, g git.Git, wanted func(string) (bool, error)) (string, error) {
	all, err := g.Run(ctx, "ls-files", "-z")
	if err != nil || wanted == nil {
		return all, err
	}
	var some strings.Builder
	for file := range strings.SplitSeq(strings.TrimSuffix(all, "\x00"), "\x00") {
		take, err := wanted(file)
		if err != nil {
			return "", err
		}
		if take {
			some.WriteString(file + "\x00")
		}
	}
	return some.String(), nil
}

// plainModes leaves of the modes what Git knows: another user's umask would be another
// image.
func plainModes(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() || info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		if info.Mode().Perm() == mode {
			return nil // what most umasks leave
		}
		return os.Chmod(path, mode)
	})
}

// Compare orders two versions: negative if a is older than b, zero if they are the
// same. It is Semantic Versioning's order, in which 0.1.0-9 is older than 0.1.0-10.
func Compare(a, b string) (int, error) {
	for _, v := range []string{a, b} {
		if !semver.IsValid("v" + v) {
			return 0, fmt.Errorf("%q is no version such as %s-57", v, BaseVersion)
		}
	}
	return semver.Compare("v"+a, "v"+b), nil
}
