package propose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/omnivision/omnivision/forge"
)

// Files is a pull request whose content is known file by file, such as one that takes an
// image back.
type Files struct {
	Branch string
	// Base is the commit of the base that the content was made for. If the base has moved
	// on, nothing is pushed and the error is a forge.Conflict: look again.
	Base string
	// Edit returns the files that are to be other than in the base's tree.
	Edit func(tree fs.FS) (map[string][]byte, error)
	// Title and Body are the texts of commit and pull request. The body ends with the
	// RevertTrailer, by which a later call knows the commit for one of its own.
	Title, Body string
	Time        time.Time // dates the commit; a fixed one makes the same change the same commit
}

// ProposeFiles makes the branch hold the base with these files, as one commit, and one
// open pull request show it. It may be repeated. ErrForeign means that a person pushed
// to the branch, which is left alone.
func (p *Proposer) ProposeFiles(ctx context.Context, f Files) (Result, error) {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	result, err := p.proposeFiles(ctx, f)
	if errors.Is(err, errMoved) {
		err = &forge.Error{Code: forge.Conflict, Op: "propose " + f.Branch, Err: err, Next: "look at the repository again"}
	}
	if err != nil {
		return Result{}, fmt.Errorf("proposing %s: %w", f.Branch, err)
	}
	return result, nil
}

func (p *Proposer) proposeFiles(ctx context.Context, f Files) (Result, error) {
	repo, err := p.Remote.open(ctx)
	if err != nil {
		return Result{}, err
	}
	defer repo.close() //nolint:errcheck // below the system's temporary directory
	v := &view{branch: f.Branch}
	err = p.ask(ctx, "fetch", func() (err error) {
		v.base, v.head, err = repo.fetch(ctx, p.Base, v.branch)
		return err
	})
	if err != nil {
		return Result{}, err
	}
	if v.base != f.Base {
		return Result{}, fmt.Errorf("%s is at %s, not at %s: %w", p.Base, short(v.base), short(f.Base), errMoved)
	}
	if v.files, err = f.Edit(repo.tree(ctx, v.base)); err != nil {
		return Result{}, err
	}
	if v.latest, err = p.latest(ctx, v.branch); err != nil {
		return Result{}, err
	}
	result := Result{State: Proposed, Branch: f.Branch}
	if result.Commit, err = p.pushFiles(ctx, repo, v, f); err != nil {
		return Result{}, err
	}
	pr, err := p.show(ctx, repo, v, result.Commit)
	result.Number, result.URL = pr.Number, pr.URL
	return result, err
}

func (p *Proposer) pushFiles(ctx context.Context, repo *repository, v *view, f Files) (string, error) {
	commit, err := repo.commit(ctx, v, f.Title+"\n\n"+f.Body+"\n", f.Time)
	if err != nil || commit == v.head {
		return commit, err
	}
	if err := repo.ours(ctx, v); err != nil {
		return "", err
	}
	return commit, p.ask(ctx, "push", func() error { return repo.push(ctx, v.branch, v.head, commit) })
}

// limit bounds a call by the proposer's patience.
func (p *Proposer) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	patience := p.Patience
	if patience == 0 {
		patience = 3 * time.Minute
	}
	return context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done within %s", patience))
}
