// Package gitops shows a steward the GitOps repository with its forge, and does there what
// the steward decided.
//
// It keeps a clone for reading and nothing else; a lost one is made anew. What is written
// goes through branches and pull requests (conveyor/propose): the token needs no right to
// push to the branch that the clusters follow.
package gitops

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/internal/git"
	"github.com/omnivision/omnivision/plan/revision"
	"github.com/omnivision/omnivision/steward"
)

// Forge is what is asked of the GitOps repository's forge.
type Forge interface {
	forge.PullRequests
	forge.Commits
}

// Source is what is asked of the forge of the source.
type Source interface {
	SetStatus(ctx context.Context, sha string, s forge.Status) error
	ReportDeployment(ctx context.Context, d forge.Deployment) error
}

// Repository is a GitOps repository; it implements steward.Repository. It is for one
// goroutine.
type Repository struct {
	Forge  Forge
	Remote propose.Remote
	Base   string // branch that the clusters follow
	Dir    string // for the clone; made if it is not there
	// Source is where the progress of releases is reported; nil reports it to the GitOps
	// repository alone.
	Source Source

	git      git.Git
	revision *revision.Repository
	seen     *seen
	heads    map[string]head           // by base and head commit
	final    map[string]steward.Report // by context and commit
}

// Where the clone keeps what it fetched.
const (
	baseRef     = "refs/steward/base"
	branchesRef = "refs/steward/branches/"
)

// branchPatterns are the branches that releases and stewards write.
var branchPatterns = []string{"release/", "revert/"}

// fetch brings the clone up to date, and returns the base's commit and the branches' heads.
func (r *Repository) fetch(ctx context.Context) (base string, heads map[string]string, err error) {
	if err := r.open(ctx); err != nil {
		return "", nil, err
	}
	authorised, err := r.authorised(ctx)
	if err != nil {
		return "", nil, err
	}
	args := []string{"fetch", "--quiet", "--no-tags", "--prune", r.Remote.URL, "+refs/heads/" + r.Base + ":" + baseRef}
	for _, p := range branchPatterns {
		args = append(args, "+refs/heads/"+p+"*:"+branchesRef+p+"*")
	}
	if _, err := authorised.Run(ctx, args...); err != nil {
		return "", nil, propose.Classify("fetching "+r.Base+" of "+r.Remote.URL, err)
	}
	out, err := r.git.Run(ctx, "for-each-ref", "--format=%(objectname) %(refname)", "refs/steward")
	if err != nil {
		return "", nil, err
	}
	heads = map[string]string{}
	for line := range strings.Lines(out) {
		sha, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		if ref == baseRef {
			base = sha
		} else if name, ok := strings.CutPrefix(ref, branchesRef); ok {
			heads[name] = sha
		}
	}
	if base == "" {
		return "", nil, fmt.Errorf("%s has no branch %s: name the one that the clusters follow", r.Remote.URL, r.Base)
	}
	return base, heads, nil
}

// open makes the clone, or takes the one that is there if it is sound.
func (r *Repository) open(ctx context.Context) error {
	if r.revision != nil {
		return nil
	}
	dir := filepath.Join(r.Dir, "gitops.git")
	r.git = git.Clean(dir, git.Settings(git.Setting{Key: "safe.directory", Value: "*"})...)
	if _, err := os.Stat(dir); err == nil {
		if _, err := r.git.Run(ctx, "rev-parse", "--git-dir"); err != nil {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("removing a clone that was left half made: %w", err)
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the clone: %w", err)
	}
	if _, err := r.git.Run(ctx, "init", "--quiet", "--bare"); err != nil {
		return fmt.Errorf("making the clone: %w", err)
	}
	opened, err := revision.Open(ctx, dir)
	if err != nil {
		return err
	}
	r.revision, r.heads, r.final = opened, map[string]head{}, map[string]steward.Report{}
	return nil
}

// authorised is the clone's git with the credentials of the moment: tokens expire.
func (r *Repository) authorised(ctx context.Context) (git.Git, error) {
	settings, err := r.Remote.Settings(ctx)
	if err != nil {
		return git.Git{}, err
	}
	return git.Clean(r.git.Dir, git.Settings(settings...)...), nil
}

// proposer pushes branches and opens pull requests.
func (r *Repository) proposer() *propose.Proposer {
	return &propose.Proposer{Forge: r.Forge, Remote: r.Remote, Base: r.Base}
}
