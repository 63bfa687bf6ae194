// Package forge is what the delivery machine asks of a Git forge: pull
// requests, comments, commit statuses, deployments, branch protection,
// webhooks and single files, by one interface that the github and gitea
// packages implement.
//
// Branches and commits are not here: Git itself makes them, the same way for
// every forge. Creating repositories is not here either: in production they
// exist before this project comes to them.
//
// Every method may be repeated after a crash: opening what is open is a
// [Conflict] that names what to do, and the others end in the state asked for.
package forge

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Name names a repository on its forge.
type Name struct {
	Owner      string
	Repository string
}

func (n Name) String() string { return n.Owner + "/" + n.Repository }

// ParseURL takes a clone URL apart, such as
// https://github.com/omnivision/omnivision-gitops.git, into the forge's own
// address and the repository's name. Credentials in it are dropped, and shown in
// no error.
func ParseURL(cloneURL string) (root *url.URL, name Name, err error) {
	const example = "give one such as https://github.com/OWNER/REPOSITORY.git"
	shown := userInfo.ReplaceAllString(cloneURL, "//")
	u, err := url.Parse(cloneURL)
	if err != nil {
		if parsing := new(url.Error); errors.As(err, &parsing) { // it would show the address whole
			err = parsing.Err
		}
		return nil, Name{}, fmt.Errorf("parse repository address %q: %w: %s", shown, err, example)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, Name{}, fmt.Errorf("repository address %q is not an http address: %s", shown, example)
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if len(parts) < 2 {
		return nil, Name{}, fmt.Errorf("repository address %q names no owner and repository: %s", shown, example)
	}
	name = Name{Owner: parts[len(parts)-2], Repository: strings.TrimSuffix(parts[len(parts)-1], ".git")}
	if !name.valid() {
		return nil, Name{}, fmt.Errorf("repository address %q: the owner %q or the repository %q is not a name that forges give: %s", shown, name.Owner, name.Repository, example)
	}
	// What is before owner and repository belongs to the forge: it may be
	// served below a path.
	root = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.Join(append([]string{""}, parts[:len(parts)-2]...), "/")}
	return root, name, nil
}

var (
	userInfo = regexp.MustCompile(`//.*@`)
	// plainName is what GitHub and Gitea allow. Names become parts of the
	// paths of their APIs as they are: "..", "?" or "/" would lead elsewhere.
	plainName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

func (n Name) valid() bool {
	for _, part := range []string{n.Owner, n.Repository} {
		if part == "." || part == ".." || !plainName.MatchString(part) {
			return false
		}
	}
	return true
}

// Repository is one repository on a forge.
type Repository interface {
	Name() Name
	PullRequests
	Commits
	Deployments
	Administration
}

// PullRequests proposes changes and takes them in.
type PullRequests interface {
	// OpenPullRequest opens a pull request. If one is open already for the
	// same branches the error is a Conflict; EnsurePullRequest handles it.
	OpenPullRequest(ctx context.Context, p Proposal) (PullRequest, error)
	PullRequest(ctx context.Context, number int64) (PullRequest, error)
	// FindPullRequests returns the newest first. Pull requests from forks are
	// never among them: a fork may give its branch any name.
	FindPullRequests(ctx context.Context, q Query) ([]PullRequest, error)
	UpdatePullRequest(ctx context.Context, number int64, c Change) (PullRequest, error)
	// ClosePullRequest closes one without merging it; a closed one stays closed.
	ClosePullRequest(ctx context.Context, number int64) error
	// MergePullRequest merges and returns the commit on the base branch. One
	// that is merged already is no error. NotReady means that checks or
	// approvals are missing, Conflict that the branches do not merge or that
	// the head is not Merge.HeadSHA.
	MergePullRequest(ctx context.Context, number int64, m Merge) (commit string, err error)
	// Comment writes the comment that the marker names, or changes it: there
	// is one for a marker, however often it is called. Only a comment of our
	// own is ever changed, so nobody can plant one for us to speak through.
	Comment(ctx context.Context, number int64, marker, body string) (Comment, error)
}

// Commits reads commits and says what is known of them.
type Commits interface {
	// Head returns the commit that a branch points at.
	Head(ctx context.Context, branch string) (sha string, err error)
	// ReadFile returns a file's content at a branch, tag or commit.
	ReadFile(ctx context.Context, ref, path string) ([]byte, error)
	// SetStatus sets the status with this context. One that is as asked for is
	// not written again: forges cap the statuses of a commit.
	SetStatus(ctx context.Context, sha string, s Status) error
	// Statuses returns the latest status of each context, sorted by context,
	// check runs included where the forge has them.
	Statuses(ctx context.Context, ref string) ([]Status, error)
}

// Deployments says where a commit runs. A forge without deployments shows them
// as commit statuses.
type Deployments interface {
	ReportDeployment(ctx context.Context, d Deployment) error
	// Deployments returns the latest state in each environment, sorted by
	// environment.
	Deployments(ctx context.Context, sha string) ([]Deployment, error)
}

// Administration sets a repository up.
type Administration interface {
	Protect(ctx context.Context, branch string, p Protection) error
	Protection(ctx context.Context, branch string) (Protection, error)
	// EnsureWebhook makes the one webhook to this URL be as given, its secret
	// included.
	EnsureWebhook(ctx context.Context, w Webhook) (Webhook, error)
	Webhooks(ctx context.Context) ([]Webhook, error)
	DeleteWebhook(ctx context.Context, id int64) error
}

// PullRequestState is where a pull request stands.
type PullRequestState string

// The states of a pull request. All is for queries only.
const (
	Open   PullRequestState = "open"
	Closed PullRequestState = "closed" // without a merge
	Merged PullRequestState = "merged"
	All    PullRequestState = "all"
)

// Proposal is a pull request to open.
type Proposal struct {
	Title string
	Body  string
	Head  string // branch of the same repository
	Base  string
}

// Change is what to change of a pull request; nil leaves a field as it is.
type Change struct {
	Title *string
	Body  *string
}

// Query selects pull requests; the zero value selects the open ones.
type Query struct {
	Head  string // branch; empty is any
	Base  string // branch; empty is any
	State PullRequestState
	Limit int // zero is 30
}

// Wanted reports whether p is what the query asks for.
func (q Query) Wanted(p PullRequest) bool {
	state := q.State == All || q.State == p.State || q.State == "" && p.State == Open
	return state && (q.Head == "" || q.Head == p.Head) && (q.Base == "" || q.Base == p.Base)
}

// Max is the number of pull requests to return.
func (q Query) Max() int {
	if q.Limit <= 0 {
		return 30
	}
	return q.Limit
}

// PullRequest is a proposed change.
type PullRequest struct {
	Number      int64
	URL         string // of its page
	Title       string
	Body        string
	State       PullRequestState
	Head        string // branch
	HeadSHA     string
	Base        string // branch
	MergeCommit string // on the base branch, if merged
	Author      string
	Created     time.Time
	Updated     time.Time
}

// MergeMethod is how commits come onto the base branch.
type MergeMethod string

// The merge methods. The zero value is Squash: one commit, so one revert.
const (
	Squash      MergeMethod = "squash"
	MergeCommit MergeMethod = "merge"
	Rebase      MergeMethod = "rebase"
)

// Merge says how to merge.
type Merge struct {
	Method  MergeMethod
	HeadSHA string // refuse if the head is another commit; empty takes any
	Title   string // of the commit; empty is the forge's default
	Message string
}

// Comment is one comment on a pull request.
type Comment struct {
	ID   int64
	URL  string
	Body string
}

// StatusState is the state of a check.
type StatusState string

// The states of a status.
const (
	Pending StatusState = "pending"
	Success StatusState = "success"
	Failure StatusState = "failure" // the commit is bad
	Errored StatusState = "error"   // the check could not tell
)

// Status is the result of one check on one commit.
type Status struct {
	Context     string // names the check, such as omnivision/plan
	State       StatusState
	Description string // one line; cut to 140 characters, which is GitHub's limit
	URL         string // of the details
}

// Trimmed returns the status with a description that every forge takes.
func (s Status) Trimmed() Status {
	s.Description = oneLine(s.Description, 140)
	return s
}

// DeploymentState is how far a deployment is.
type DeploymentState string

// The states of a deployment.
const (
	Queued     DeploymentState = "queued"
	InProgress DeploymentState = "in_progress"
	Deployed   DeploymentState = "success"
	Failed     DeploymentState = "failure" // the release is bad, and taken back
	Inactive   DeploymentState = "inactive"
)

// Valid reports whether s is one of the states.
func (s DeploymentState) Valid() bool {
	switch s {
	case Queued, InProgress, Deployed, Failed, Inactive:
		return true
	}
	return false
}

// Deployment is a commit in an environment, such as cluster-aws.
type Deployment struct {
	SHA            string
	Environment    string
	State          DeploymentState
	Description    string // one line; cut to 140 characters
	URL            string // of the details
	EnvironmentURL string // where the deployed thing can be seen; not every forge keeps it
}

// Trimmed returns the deployment with a description that every forge takes.
func (d Deployment) Trimmed() Deployment {
	d.Description = oneLine(d.Description, 140)
	return d
}

// Protection is what a branch demands. Forced pushes and deletion are always
// refused on a protected branch.
type Protection struct {
	// RequiredChecks are the contexts that must be successful before a merge.
	RequiredChecks []string
	// UpToDate demands that the head contains the base's newest commit.
	UpToDate bool
	// Approvals is the number of approving reviews needed.
	Approvals int
	// DirectPush names the users who may push without a pull request; empty
	// means that nobody may.
	DirectPush []string
}

// Webhook is where a forge reports events.
type Webhook struct {
	ID     int64
	URL    string
	Secret string   // signs each delivery; never read back
	Events []string // as the forge names them: push, pull_request; empty is push
	// Format is the payload's format where the forge has several: Gitea's
	// "gogs" is the one that Argo CD verifies. Empty is the forge's own.
	Format string
}

// WantedEvents are the events to subscribe to.
func (w Webhook) WantedEvents() []string {
	if len(w.Events) == 0 {
		return []string{"push"}
	}
	return w.Events
}

// oneLine joins the lines of s and cuts it to limit characters.
func oneLine(s string, limit int) string {
	runes := []rune(strings.Join(strings.Fields(s), " "))
	if len(runes) <= limit {
		return string(runes)
	}
	return string(runes[:limit-1]) + "…"
}
