// Package revision shows a directory of a Git repository as it is at a commit, or as it
// lies in the working tree, as a file system in memory.
//
// It asks the git program for objects and changes nothing: no checkout, no index, no
// lock. Symbolic links and submodules are seen and never followed, because Argo CD
// refuses what leaves the repository. A tree is read whole; files above MaxFile are
// named and not read.
package revision

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// MaxFile is the size of the largest file that is read. Manifests are smaller by far.
const MaxFile = 8 << 20

// Repository is a directory inside a Git repository.
type Repository struct {
	dir    string
	prefix string // of dir within the repository, without a slash at the end

	mu    sync.Mutex
	blobs map[string][]byte // shared by the trees of several revisions
}

// Open finds the Git repository around a directory.
func Open(ctx context.Context, dir string) (*Repository, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("opening %s: it is no directory", dir)
	}
	r := &Repository{dir: dir, blobs: map[string][]byte{}}
	prefix, err := r.git(ctx, nil, "rev-parse", "--show-prefix")
	if err != nil {
		return nil, fmt.Errorf("opening %s: it is not in a Git repository that can be read: %w", dir, err)
	}
	r.prefix = strings.TrimSuffix(strings.TrimSuffix(string(prefix), "\n"), "/")
	return r, nil
}

// Resolve finds the commit that a revision names.
func (r *Repository) Resolve(ctx context.Context, rev string) (string, error) {
	// --end-of-options: a revision may come from a pull request and begin with a dash.
	out, err := r.git(ctx, nil, "rev-parse", "--verify", "--quiet", "--end-of-options", rev+"^{commit}")
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("no commit %q is known here: check its spelling, or run `git fetch` first", rev)
	}
	return strings.TrimSpace(string(out)), nil
}

// MergeBase finds where two commits parted.
func (r *Repository) MergeBase(ctx context.Context, a, b string) (string, error) {
	out, err := r.git(ctx, nil, "merge-base", "--end-of-options", a, b)
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%s and %s have no common commit here: a shallow clone lacks it, run `git fetch --unshallow` (%w)", short(a), short(b), err)
	}
	commit, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return commit, nil
}

// Followed finds the commit from which head parted from the branch that the clusters
// follow, as the remote has it if it is known, and the name under which it was found.
func (r *Repository) Followed(ctx context.Context, branch, head string) (commit, name string, err error) {
	for _, ref := range []string{"refs/remotes/origin/" + branch, "refs/heads/" + branch} {
		tip, err := r.Resolve(ctx, ref)
		if err != nil {
			continue
		}
		commit, err := r.MergeBase(ctx, tip, head)
		name := strings.TrimPrefix(strings.TrimPrefix(ref, "refs/remotes/"), "refs/heads/")
		return commit, name, err
	}
	if ctx.Err() != nil {
		return "", "", ctx.Err()
	}
	return "", "", fmt.Errorf("there is no branch %s, which the clusters follow, to compare with: run `git fetch`, or name the base with --base", branch)
}

func short(commit string) string {
	if len(commit) > 8 {
		return commit[:8]
	}
	return commit
}

// git runs git in the directory and returns what it prints.
func (r *Repository) git(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.dir
	// English messages, no lock files, no question on the terminal.
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	waited := tooltime.Begin(ctx, "git")
	err := cmd.Run()
	waited()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("git is not installed: %w", err)
	case err != nil:
		return nil, fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
