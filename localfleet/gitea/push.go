package gitea

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/omnivision/omnivision/forge"
)

// worktreeTrailer marks the commits that hold a working tree as it was.
const worktreeTrailer = "OmniVision-Worktree: true"

// Push is what became of a push.
type Push struct {
	Commit string // that the branch points at
	Pushed bool   // false if there was nothing new
}

// PushTree brings a directory's files onto a branch: those that Git tracks and
// those that it does not ignore, committed or not.
//
// The working tree has a line of commits of its own, which is merged into the
// branch. So what the forge took in meanwhile, such as a promotion, stays, and
// a working tree that did not change brings nothing. When both changed the same
// lines the error is a forge.Conflict that names the files.
func (s *Server) PushTree(ctx context.Context, name forge.Name, dir, branch, message string) (Push, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("not pushed within 5 minutes"))
	defer cancel()
	push, err := s.pushTree(ctx, name, dir, branch, message)
	return push, describe(err, "push %s to %s", dir, name)
}

func (s *Server) pushTree(ctx context.Context, name forge.Name, dir, branch, message string) (Push, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Push{}, err
	}
	scratch, err := os.MkdirTemp("", "omnivision-push-")
	if err != nil {
		return Push{}, err
	}
	defer os.RemoveAll(scratch) //nolint:errcheck // it is below the system's temporary directory

	g, err := s.git(dir, "GIT_DIR="+filepath.Join(scratch, ".git"), "GIT_WORK_TREE="+dir)
	if err != nil {
		return Push{}, err
	}
	if _, err := g.run(ctx, "init", "--quiet"); err != nil {
		return Push{}, err
	}
	tree, err := s.writeTree(ctx, g, dir)
	if err != nil {
		return Push{}, err
	}
	// Again if somebody else pushed between our look and our push.
	for attempt := 1; ; attempt++ {
		push, err := g.bring(ctx, s.gitURL(name), branch, tree, message)
		if err == nil {
			return s.makeShown(ctx, g, name, branch, push)
		}
		if attempt == 3 || !outrun(err) {
			return push, err
		}
	}
}

// makeShown waits until Gitea's API knows the branch as it is in Git. Gitea
// takes a push in first and enters it into its database a moment later; killed
// in between, it would never know of it, nor report it by webhook. A further
// commit, which changes nothing, tells it; that a repository is not empty any
// more it finds out only when somebody opens the repository's page.
func (s *Server) makeShown(ctx context.Context, g git, name forge.Name, branch string, push Push) (Push, error) {
	limit := 10 * time.Second
	for {
		err := s.shown(ctx, name, branch, push.Commit, limit)
		if !errors.Is(err, errNotShown) || limit == shownLimit {
			return push, err
		}
		page := "/" + name.Owner + "/" + name.Repository
		_ = s.call(ctx, http.MethodGet, page, nobody, nil, nil) // what follows shows whether it helped
		commit, err := g.commit(ctx, push.Commit+"^{tree}", "Tell the forge of the commit before this one", push.Commit)
		if err != nil {
			return push, err
		}
		if push, err = g.send(ctx, s.gitURL(name), branch, commit); err != nil {
			return push, err
		}
		limit = shownLimit
	}
}

// shownLimit is how long Gitea may take from a push to its own knowledge of it.
const shownLimit = time.Minute

var errNotShown = errors.New("gitea answers, and does not know of it")

// shown waits until Gitea's API knows the branch at the commit. The error is
// errNotShown if Gitea answered all the while.
func (s *Server) shown(ctx context.Context, name forge.Name, branch, commit string, limit time.Duration) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(limit); ; {
		have, err := s.knownHead(ctx, who, name, branch)
		if err == nil && have == commit {
			return nil
		}
		if err == nil {
			err = errNotShown
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("waited %s until gitea knows %s at %s; it has %q: %w", limit, branch, commit, have, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// knownHead returns the commit that Gitea's database has for a branch, or
// nothing.
func (s *Server) knownHead(ctx context.Context, who credential, name forge.Name, branch string) (string, error) {
	var repo struct{ Empty bool }
	// For the branch of a repository that it takes for empty, Gitea fails.
	if err := s.call(ctx, http.MethodGet, repoPath(name), who, nil, &repo); err != nil || repo.Empty {
		return "", err
	}
	var have struct{ Commit struct{ ID string } }
	err := s.call(ctx, http.MethodGet, repoPath(name)+"/branches/"+branch, who, nil, &have)
	if answered(err, http.StatusNotFound) {
		return "", nil
	}
	return have.Commit.ID, err
}

// outrun reports whether a push was refused for the branch having moved.
func outrun(err error) bool {
	for _, sign := range []string{"fetch first", "non-fast-forward", "cannot lock ref", "stale info"} {
		if strings.Contains(err.Error(), sign) {
			return true
		}
	}
	return false
}

// writeTree stores the directory's files and returns their tree.
func (s *Server) writeTree(ctx context.Context, g git, dir string) (string, error) {
	own, err := s.git(dir)
	if err != nil {
		return "", err
	}
	if _, err := own.run(ctx, "rev-parse", "--is-inside-work-tree"); err != nil {
		// No checkout: what .gitignore files leave.
		if _, err := g.run(ctx, "add", "--all", "--", "."); err != nil {
			return "", err
		}
		return g.line(ctx, "write-tree")
	}
	list, err := own.run(ctx, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
	if err != nil {
		return "", err
	}
	var files strings.Builder
	for _, path := range strings.Split(list, "\x00") {
		if path == "" {
			continue
		}
		// Gone from the working tree, or a repository within it.
		if info, err := os.Lstat(filepath.Join(dir, path)); err != nil || info.IsDir() {
			continue
		}
		files.WriteString(path + "\x00")
	}
	if _, err := g.feed(ctx, files.String(), "update-index", "-z", "--add", "--stdin"); err != nil {
		return "", err
	}
	return g.line(ctx, "write-tree")
}

// bring makes the branch hold the tree, on top of what the branch has.
func (g git) bring(ctx context.Context, url, branch, tree, message string) (Push, error) {
	head, err := g.fetch(ctx, url, branch)
	if err != nil {
		return Push{}, err
	}
	if head == "" {
		return g.pushCommit(ctx, url, branch, tree, message, nil)
	}
	last, err := g.line(ctx, "log", "-1", "--format=%H", "--fixed-strings", "--grep="+worktreeTrailer, head)
	if err != nil {
		return Push{}, err
	}
	for _, known := range []string{head, last} {
		same, err := g.holds(ctx, known, tree)
		if err != nil {
			return Push{}, err
		}
		if same {
			return Push{Commit: head}, nil
		}
	}
	if last == "" || last == head {
		return g.pushCommit(ctx, url, branch, tree, message, []string{head})
	}
	return g.mergeOnto(ctx, url, branch, head, last, tree, message)
}

// holds reports whether a commit's files are those of the tree.
func (g git) holds(ctx context.Context, commit, tree string) (bool, error) {
	if commit == "" {
		return false, nil
	}
	have, err := g.line(ctx, "rev-parse", commit+"^{tree}")
	return have == tree, err
}

// fetch returns the branch's commit, or nothing if there is no such branch.
func (g git) fetch(ctx context.Context, url, branch string) (string, error) {
	out, err := g.run(ctx, "ls-remote", url, "refs/heads/"+branch)
	if err != nil || strings.TrimSpace(out) == "" {
		return "", err
	}
	if _, err := g.run(ctx, "fetch", "--quiet", "--no-tags", url, "refs/heads/"+branch); err != nil {
		return "", err
	}
	return g.line(ctx, "rev-parse", "FETCH_HEAD")
}

// mergeOnto adds to the working tree's line and merges that into the branch.
func (g git) mergeOnto(ctx context.Context, url, branch, head, last, tree, message string) (Push, error) {
	work, err := g.commit(ctx, tree, message+"\n\n"+worktreeTrailer, last)
	if err != nil {
		return Push{}, err
	}
	out, err := g.run(ctx, "merge-tree", "--write-tree", "--name-only", "--no-messages", head, work)
	merged, files, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if err != nil {
		if files == "" {
			return Push{}, err
		}
		return Push{}, &forge.Error{
			Code: forge.Conflict, Op: "merge the working tree into " + branch,
			Err:  fmt.Errorf("both changed %s", strings.Join(strings.Fields(files), ", ")),
			Next: "take the forge's " + branch + " into the working tree, then try again",
		}
	}
	commit, err := g.commit(ctx, merged, message, head, work)
	if err != nil {
		return Push{}, err
	}
	return g.send(ctx, url, branch, commit)
}

func (g git) pushCommit(ctx context.Context, url, branch, tree, message string, parents []string) (Push, error) {
	commit, err := g.commit(ctx, tree, message+"\n\n"+worktreeTrailer, parents...)
	if err != nil {
		return Push{}, err
	}
	return g.send(ctx, url, branch, commit)
}

func (g git) commit(ctx context.Context, tree, message string, parents ...string) (string, error) {
	args := []string{"commit-tree", tree}
	for _, parent := range parents {
		args = append(args, "-p", parent)
	}
	out, err := g.feed(ctx, message+"\n", args...)
	return strings.TrimSpace(out), err
}

func (g git) send(ctx context.Context, url, branch, commit string) (Push, error) {
	err := g.push(ctx, url, commit+":refs/heads/"+branch)
	return Push{Commit: commit, Pushed: err == nil}, err
}

// PushRepository brings the branches and tags of a local repository, bare or
// not, to the server. Those that are there as they are cost one look.
func (s *Server) PushRepository(ctx context.Context, gitDir string, name forge.Name) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("not pushed within 10 minutes"))
	defer cancel()
	g, err := s.git(gitDir)
	if err != nil {
		return err
	}
	err = g.push(ctx, "--force", s.gitURL(name), "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")
	return describe(err, "push %s to %s", gitDir, name)
}

// How long another push may hold the references, and how often they are tried.
const (
	lockedLimit = 15 * time.Second
	lockedPause = 250 * time.Millisecond
)

// push pushes. What a client began that was killed meanwhile goes on at the server, and holds
// the references until it is through: then the same push finds nothing left to do.
func (g git) push(ctx context.Context, args ...string) error {
	deadline := time.Now().Add(lockedLimit)
	for {
		_, err := g.run(ctx, append([]string{"push", "--quiet"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "cannot lock ref") || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(lockedPause):
		}
	}
}
