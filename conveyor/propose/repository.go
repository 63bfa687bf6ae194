package propose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing/fstest" // the one in-memory fs.FS of the standard library
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/internal/git"
	"github.com/omnivision/omnivision/plan/revision"
)

// Remote is the GitOps repository as Git reaches it.
type Remote struct {
	URL   string
	Token forge.TokenSource // nil sends none
	// CAFile holds further certificate authorities to trust; empty is the system's alone.
	CAFile string
	// Name and Email are those of the commits; empty is the conveyor's.
	Name, Email string
}

// repository is a scratch copy of the remote.
type repository struct {
	git    git.Git
	remote Remote
}

// Where the scratch copy keeps the remote's branches.
const (
	baseRef = "refs/base"
	headRef = "refs/head"
	madeRef = "refs/made" // and the commit that is to be pushed
)

// ReleaseTrailer ends the message of each commit that a release made, RevertTrailer that of
// one that takes an image back.
const (
	ReleaseTrailer = "OmniVision-Release"
	RevertTrailer  = "OmniVision-Revert"
)

func (r Remote) open(ctx context.Context) (*repository, error) {
	dir, err := os.MkdirTemp("", "omnivision-propose-")
	if err != nil {
		return nil, fmt.Errorf("making a scratch repository: %w", err)
	}
	settings, err := r.Settings(ctx)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	settings = append(settings, git.Setting{Key: "gc.auto", Value: "0"})
	repo := &repository{git: git.Clean(dir, git.Settings(settings...)...), remote: r}
	if _, err := repo.git.Run(ctx, "init", "--quiet", "--bare"); err != nil {
		return nil, errors.Join(err, repo.close())
	}
	return repo, nil
}

// Settings are what Git needs to reach the remote. They hold the token.
func (r Remote) Settings(ctx context.Context) ([]git.Setting, error) {
	settings := []git.Setting{
		{Key: "safe.directory", Value: "*"},
		{Key: "http.followRedirects", Value: "false"}, // another host is not to see the token
	}
	if r.CAFile != "" {
		settings = append(settings, git.Setting{Key: "http.sslCAInfo", Value: r.CAFile})
	}
	if r.Token != nil {
		token, err := r.Token(ctx)
		if err != nil {
			return nil, fmt.Errorf("getting the token for %s: %w", r.URL, err)
		}
		settings = append(settings, git.Credential(r.URL, token))
	}
	return settings, nil
}

// identity is whose commits they are.
func (r Remote) identity() (name, email string) {
	if r.Name == "" || r.Email == "" {
		return "OmniVision conveyor", "conveyor@omnivision.invalid"
	}
	// Neither ends the line, or the address.
	clean := strings.NewReplacer("\n", " ", "<", "", ">", "", "\x00", "")
	return clean.Replace(r.Name), clean.Replace(r.Email)
}

func (r *repository) close() error { return os.RemoveAll(r.git.Dir) }

// heads asks the remote where its two branches are. A branch that is not there is empty.
func (r *repository) heads(ctx context.Context, base, branch string) (baseSHA, headSHA string, err error) {
	out, err := r.git.Run(ctx, "ls-remote", "--refs", r.remote.URL, "refs/heads/"+base, "refs/heads/"+branch)
	if err != nil {
		return "", "", r.classify("asking for the branches", err)
	}
	for line := range strings.Lines(out) {
		switch sha, ref, _ := strings.Cut(strings.TrimSpace(line), "\t"); ref {
		case "refs/heads/" + base:
			baseSHA = sha
		case "refs/heads/" + branch:
			headSHA = sha
		}
	}
	if baseSHA == "" {
		return "", "", fmt.Errorf("%s has no branch %s: name the one that the clusters follow", r.remote.URL, base)
	}
	return baseSHA, headSHA, nil
}

// fetch brings both branches here, the base with its history.
func (r *repository) fetch(ctx context.Context, base, branch string) (baseSHA, headSHA string, err error) {
	// A pattern may match nothing, where a name must be there.
	_, err = r.git.Run(ctx, "fetch", "--quiet", "--no-tags", "--prune", r.remote.URL,
		"+refs/heads/"+base+":"+baseRef, "+refs/heads/"+branch+"*:"+headRef+"*")
	if git.Said(err, "couldn't find remote ref") {
		return "", "", fmt.Errorf("%s has no branch %s: name the one that the clusters follow", r.remote.URL, base)
	}
	if err != nil {
		return "", "", r.classify("fetching "+base, err)
	}
	out, err := r.git.Run(ctx, "for-each-ref", "--format=%(objectname) %(refname)", baseRef, headRef)
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(out) {
		switch sha, ref, _ := strings.Cut(strings.TrimSpace(line), " "); ref {
		case baseRef:
			baseSHA = sha
		case headRef:
			headSHA = sha
		}
	}
	return baseSHA, headSHA, nil
}

// tree reads files of a commit.
func (r *repository) tree(ctx context.Context, commit string) fs.FS {
	return commitFiles{ctx: ctx, git: r.git, commit: commit}
}

// whole reads a commit with its directories.
func (r *repository) whole(ctx context.Context, commit string) (fs.FS, error) {
	opened, err := revision.Open(ctx, r.git.Dir)
	if err != nil {
		return nil, err
	}
	return opened.Tree(ctx, commit, commit)
}

type commitFiles struct {
	ctx    context.Context //nolint:containedctx // fs.FS has no place for it
	git    git.Git
	commit string
}

func (c commitFiles) Open(name string) (fs.File, error) {
	data, err := c.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return fstest.MapFS{name: {Data: data, Mode: 0o644}}.Open(name)
}

func (c commitFiles) ReadFile(name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	out, err := c.git.Run(c.ctx, "cat-file", "blob", c.commit+":"+name)
	if git.Said(err, "does not exist", "Not a valid object name") {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return []byte(out), nil
}

// commit makes the one commit of the branch, and proves that it changes the release
// files and nothing else.
func (r *repository) commit(ctx context.Context, v *view, message string, at time.Time) (string, error) {
	paths := slices.Sorted(maps.Keys(v.files))
	modes, err := r.modes(ctx, v.base, paths)
	if err != nil {
		return "", err
	}
	marks := filepath.Join(r.git.Dir, "release.marks")
	if _, err := r.git.Feed(ctx, stream(v, message, at, paths, modes, r.remote), "fast-import", "--quiet", "--force", "--export-marks="+marks); err != nil {
		return "", fmt.Errorf("committing the release: %w", err)
	}
	data, err := os.ReadFile(marks)
	if err != nil {
		return "", fmt.Errorf("committing the release: %w", err)
	}
	commit := strings.TrimPrefix(strings.TrimSpace(string(data)), ":1 ")
	return commit, r.onlyReleases(ctx, v, commit)
}

// trees reads the base and what the release makes of it. The commit that brings the
// second one about is a draft: it has its files, and not yet its text.
func (r *repository) trees(ctx context.Context, v *view, request Request, base, head string) (before, after *revision.Tree, err error) {
	draft, err := r.commit(ctx, v, request.message(v), request.Time)
	if err != nil {
		return nil, nil, err
	}
	opened, err := revision.Open(ctx, r.git.Dir)
	if err != nil {
		return nil, nil, err
	}
	if before, err = opened.Tree(ctx, v.base, base); err != nil {
		return nil, nil, err
	}
	if after, err = opened.Tree(ctx, draft, head); err != nil {
		return nil, nil, err
	}
	after.Commit = "" // the draft's, which nobody will ever see
	return before, after, nil
}

// stream is the commit in the words of git fast-import. A fixed date makes the same
// proposal the same commit, so that a repeated run pushes nothing.
func stream(v *view, message string, at time.Time, paths []string, modes map[string]string, as Remote) string {
	var b strings.Builder
	name, email := as.identity()
	fmt.Fprintf(&b, "commit %s\nmark :1\ncommitter %s <%s> %d +0000\ndata %d\n%s\nfrom %s\n", madeRef, name, email, at.Unix(), len(message), message, v.base)
	for _, path := range paths {
		fmt.Fprintf(&b, "M %s inline %s\ndata %d\n%s\n", modes[path], path, len(v.files[path]), v.files[path])
	}
	return b.String()
}

// modes are those that the files have; what is no regular file is refused, and what is
// not there yet becomes one.
func (r *repository) modes(ctx context.Context, base string, paths []string) (map[string]string, error) {
	out, err := r.git.Run(ctx, append([]string{"ls-tree", "-z", base, "--"}, paths...)...)
	if err != nil {
		return nil, err
	}
	modes := map[string]string{}
	for _, path := range paths {
		modes[path] = "100644"
	}
	for _, entry := range strings.Split(strings.TrimSuffix(out, "\x00"), "\x00") {
		what, path, listed := strings.Cut(entry, "\t")
		if !listed {
			continue
		}
		mode, _, _ := strings.Cut(what, " ")
		if mode != "100644" && mode != "100755" {
			return nil, fmt.Errorf("%s is no regular file (mode %s)", path, mode)
		}
		modes[path] = mode
	}
	return modes, nil
}

func (r *repository) onlyReleases(ctx context.Context, v *view, commit string) error {
	out, err := r.git.Run(ctx, "diff-tree", "-r", "-z", "--name-only", "--no-commit-id", v.base, commit)
	if err != nil {
		return err
	}
	for _, path := range strings.Split(strings.TrimSuffix(out, "\x00"), "\x00") {
		if _, ok := v.files[path]; !ok {
			return fmt.Errorf("the commit would also change %q: nothing was pushed", path)
		}
	}
	return nil
}

// message returns title and body of a commit's message.
func (r *repository) message(ctx context.Context, commit string) (title, body string, err error) {
	out, err := r.git.Run(ctx, "show", "--no-patch", "--format=%B", commit)
	if err != nil {
		return "", "", err
	}
	title, body, _ = strings.Cut(strings.TrimSpace(out), "\n")
	return title, strings.TrimSpace(body), nil
}

// notTakenBack reports ErrTakenBack of a release that the base had, unless it is asked for again.
func (r *repository) notTakenBack(ctx context.Context, v *view, request Request) error {
	if request.Again {
		return nil
	}
	back, err := r.takenBack(ctx, v, request.Release.Digest)
	if err == nil && back != "" {
		err = fmt.Errorf("%w: by commit %s; ask for it again to propose it anyway", ErrTakenBack, back)
	}
	return err
}

// takenBack returns the commit that took an image out of a release file of the wave, if
// the base had it once.
func (r *repository) takenBack(ctx context.Context, v *view, digest string) (string, error) {
	var without []string
	for _, place := range v.target.Places {
		if v.released[place.Name].Digest != digest {
			without = append(without, place.File)
		}
	}
	return r.git.Line(ctx, append([]string{"log", "-1", "--format=%H", "-S" + digest, v.base, "--"}, without...)...)
}

// ours reports ErrForeign if pushing over the branch would destroy what a person pushed
// to it: a commit on top of the release's that no release made. Merges of the base, which
// forges offer to make, are no loss.
func (r *repository) ours(ctx context.Context, v *view) error {
	if v.head == "" || v.latest.State == forge.Merged && v.latest.HeadSHA == v.head {
		return nil
	}
	out, err := r.git.Run(ctx, "log", "--first-parent", "--no-merges", "--max-count=1",
		"--format=%H %(trailers:key="+ReleaseTrailer+",key="+RevertTrailer+",valueonly,separator=%x2C)", v.head, "^"+v.base)
	if err != nil {
		return err
	}
	commit, release, _ := strings.Cut(strings.TrimSpace(out), " ")
	if commit != "" && release == "" {
		return fmt.Errorf("%w: %s on %s was made by no release; merge or delete the branch", ErrForeign, short(commit), v.branch)
	}
	return nil // it is a release's, or has nothing that the base has not
}

// push moves the branch, provided that it is where it was.
func (r *repository) push(ctx context.Context, branch, from, to string) error {
	ref := "refs/heads/" + branch
	_, err := r.git.Run(ctx, "push", "--quiet", "--force-with-lease="+ref+":"+from, r.remote.URL, to+":"+ref)
	return r.classify("pushing "+branch, err)
}

// classify says whether to look again, to try again, or to give up.
func (r *repository) classify(op string, err error) error {
	return Classify(op+" at "+r.remote.URL, err)
}

// Classify makes a forge's error of what Git said about its remote. What is not recognised
// is final: Git's messages are for people.
func Classify(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case git.Said(err, "stale info", "fetch first", "non-fast-forward", "cannot lock ref", "failed to update ref", "couldn't find remote ref", "reference already exists"):
		return fmt.Errorf("%s: %w: %w", op, errMoved, err)
	case git.Said(err, "Authentication failed", "could not read Username", "returned error: 401", "returned error: 403"):
		return &forge.Error{Code: forge.Unauthorized, Op: op, Err: err, Next: "give a token that may read and write the contents of this repository"}
	case git.Said(err, "returned error: 429"):
		return &forge.Error{Code: forge.RateLimited, Op: op, Err: err, Next: "wait as long as the forge asks for"}
	case git.Said(err, "returned error: 5", "Could not resolve host", "Failed to connect", "Couldn't connect", "Connection refused", "Connection reset", "Connection timed out", "Empty reply", "early EOF", "unexpected disconnect", "the remote end hung up"):
		return &forge.Error{Code: forge.Unavailable, Op: op, Err: err, Next: "check that the forge is up and reachable, then try again"}
	}
	return fmt.Errorf("%s: %w", op, err)
}
