package github

import (
	"context"
	"errors"
	"strings"

	sdk "github.com/google/go-github/v88/github"

	"github.com/omnivision/omnivision/forge"
)

// pageSize is the most that GitHub returns at once, and maxPages bounds a
// search in a repository with a long history.
const (
	pageSize = 100
	maxPages = 20
)

// OpenPullRequest implements forge.PullRequests.
func (r *Repository) OpenPullRequest(ctx context.Context, p forge.Proposal) (forge.PullRequest, error) {
	pr, _, err := r.client.api.PullRequests.Create(ctx, r.name.Owner, r.name.Repository, &sdk.NewPullRequest{
		Title: &p.Title, Body: &p.Body, Head: &p.Head, Base: &p.Base,
	})
	return r.answered(pr, err, "open pull request from %s to %s", p.Head, p.Base)
}

// PullRequest implements forge.PullRequests.
func (r *Repository) PullRequest(ctx context.Context, number int64) (forge.PullRequest, error) {
	pr, _, err := r.client.api.PullRequests.Get(ctx, r.name.Owner, r.name.Repository, int(number))
	return r.answered(pr, err, "get pull request %d", number)
}

// FindPullRequests implements forge.PullRequests.
func (r *Repository) FindPullRequests(ctx context.Context, q forge.Query) ([]forge.PullRequest, error) {
	options := &sdk.PullRequestListOptions{
		State: listState(q.State), Base: q.Base, Sort: "created", Direction: "desc",
		ListOptions: sdk.ListOptions{PerPage: pageSize},
	}
	if q.Head != "" {
		options.Head = r.name.Owner + ":" + q.Head
	}
	var found []forge.PullRequest
	for range maxPages {
		prs, resp, err := r.client.api.PullRequests.List(ctx, r.name.Owner, r.name.Repository, options)
		if err != nil {
			return nil, r.wrap(err, "list pull requests")
		}
		for _, pr := range prs {
			if p := pullRequest(pr); r.own(pr) && q.Wanted(p) {
				if found = append(found, p); len(found) == q.Max() {
					return found, nil
				}
			}
		}
		if resp.NextPage == 0 {
			break
		}
		options.Page = resp.NextPage
	}
	return found, nil
}

// own reports whether the head is a branch of the repository, not of a fork. A
// fork within the same owner passes GitHub's own filter.
func (r *Repository) own(pr *sdk.PullRequest) bool {
	return strings.EqualFold(pr.GetHead().GetRepo().GetFullName(), pr.GetBase().GetRepo().GetFullName())
}

func listState(s forge.PullRequestState) string {
	switch s {
	case forge.Closed, forge.Merged:
		return "closed"
	case forge.All:
		return "all"
	}
	return "open"
}

// UpdatePullRequest implements forge.PullRequests.
func (r *Repository) UpdatePullRequest(ctx context.Context, number int64, c forge.Change) (forge.PullRequest, error) {
	return r.edit(ctx, number, &sdk.PullRequest{Title: c.Title, Body: c.Body}, "update")
}

func (r *Repository) edit(ctx context.Context, number int64, change *sdk.PullRequest, verb string) (forge.PullRequest, error) {
	pr, _, err := r.client.api.PullRequests.Edit(ctx, r.name.Owner, r.name.Repository, int(number), change)
	return r.answered(pr, err, "%s pull request %d", verb, number)
}

// answered returns what GitHub answered; an empty success, which a proxy may
// make, is none.
func (r *Repository) answered(pr *sdk.PullRequest, err error, format string, args ...any) (forge.PullRequest, error) {
	if err == nil && pr.GetNumber() == 0 {
		err = errors.New("the answer holds no pull request")
	}
	if err != nil {
		return forge.PullRequest{}, r.wrap(err, format, args...)
	}
	return pullRequest(pr), nil
}

// ClosePullRequest implements forge.PullRequests.
func (r *Repository) ClosePullRequest(ctx context.Context, number int64) error {
	pr, err := r.PullRequest(ctx, number)
	switch {
	case err != nil:
		return err
	case pr.State == forge.Merged:
		return r.conflict("close pull request", "it is merged", "revert it by another pull request")
	case pr.State == forge.Closed:
		return nil
	}
	_, err = r.edit(ctx, number, &sdk.PullRequest{State: sdk.Ptr("closed")}, "close")
	return err
}

// MergePullRequest implements forge.PullRequests.
func (r *Repository) MergePullRequest(ctx context.Context, number int64, m forge.Merge) (string, error) {
	pr, err := r.PullRequest(ctx, number)
	switch {
	case err != nil:
		return "", err
	case pr.State == forge.Merged:
		return pr.MergeCommit, nil
	case pr.State == forge.Closed:
		return "", r.conflict("merge pull request", "it is closed", "reopen it, or open another one")
	case m.HeadSHA != "" && m.HeadSHA != pr.HeadSHA:
		return "", r.conflict("merge pull request", "its head is "+pr.HeadSHA+", not "+m.HeadSHA, "look at the new commits and try again")
	}
	method := m.Method
	if method == "" {
		method = forge.Squash
	}
	result, _, err := r.client.api.PullRequests.Merge(ctx, r.name.Owner, r.name.Repository, int(number), m.Message, &sdk.PullRequestOptions{
		CommitTitle: m.Title, SHA: m.HeadSHA, MergeMethod: string(method),
	})
	if err != nil {
		return "", r.mergeRefused(err, number)
	}
	return result.GetSHA(), nil
}

// mergeRefused tells the two meanings of GitHub's 405 apart: the branches do
// not merge, or the branch's rules are not fulfilled yet.
func (r *Repository) mergeRefused(err error, number int64) error {
	err = r.wrap(err, "merge pull request %d", number)
	var e *forge.Error
	if errors.As(err, &e) && e.Code == forge.NotReady && strings.Contains(e.Err.Error(), "not mergeable") {
		e.Code, e.Next = forge.Conflict, "rebase the branch onto its base and push it"
	}
	return err
}

func (r *Repository) conflict(op, what, next string) error {
	return &forge.Error{Code: forge.Conflict, Op: op + " in " + r.name.String(), Err: errors.New(what), Next: next}
}

// Comment implements forge.PullRequests.
func (r *Repository) Comment(ctx context.Context, number int64, marker, body string) (forge.Comment, error) {
	login, err := r.client.whoami(ctx)
	if err != nil {
		err = r.wrap(err, "ask who we are, to comment on pull request %d", number)
		var e *forge.Error
		if errors.As(err, &e) && e.Code == forge.Unauthorized {
			e.Next = "set the login under which the token writes, such as github-actions[bot]: GitHub does not tell an app its own name"
		}
		return forge.Comment{}, err
	}
	text := forge.Mark(marker, body)
	have, err := r.ownComment(ctx, number, login, marker)
	if err != nil {
		return forge.Comment{}, err
	}
	switch {
	case have == nil:
		c, _, err := r.client.api.Issues.CreateComment(ctx, r.name.Owner, r.name.Repository, int(number), &sdk.IssueComment{Body: &text})
		return comment(c), r.wrap(err, "comment on pull request %d", number)
	case have.GetBody() == text:
		return comment(have), nil
	}
	c, _, err := r.client.api.Issues.EditComment(ctx, r.name.Owner, r.name.Repository, have.GetID(), &sdk.IssueComment{Body: &text})
	return comment(c), r.wrap(err, "change comment on pull request %d", number)
}

func (r *Repository) ownComment(ctx context.Context, number int64, login, marker string) (*sdk.IssueComment, error) {
	options := &sdk.IssueListCommentsOptions{ListOptions: sdk.ListOptions{PerPage: pageSize}}
	for range maxPages {
		comments, resp, err := r.client.api.Issues.ListComments(ctx, r.name.Owner, r.name.Repository, int(number), options)
		if err != nil {
			return nil, r.wrap(err, "list comments of pull request %d", number)
		}
		for _, c := range comments {
			if strings.EqualFold(c.GetUser().GetLogin(), login) && forge.Marked(marker, c.GetBody()) {
				return c, nil
			}
		}
		if resp.NextPage == 0 {
			break
		}
		options.Page = resp.NextPage
	}
	return nil, nil
}

func comment(c *sdk.IssueComment) forge.Comment {
	return forge.Comment{ID: c.GetID(), URL: c.GetHTMLURL(), Body: c.GetBody()}
}

func pullRequest(pr *sdk.PullRequest) forge.PullRequest {
	p := forge.PullRequest{
		Number: int64(pr.GetNumber()), URL: pr.GetHTMLURL(), Title: pr.GetTitle(), Body: pr.GetBody(), State: forge.Open,
		Head: pr.GetHead().GetRef(), HeadSHA: pr.GetHead().GetSHA(), Base: pr.GetBase().GetRef(),
		Author: pr.GetUser().GetLogin(), Created: pr.GetCreatedAt().Time, Updated: pr.GetUpdatedAt().Time,
	}
	switch {
	case pr.MergedAt != nil: // lists leave out "merged"
		p.State, p.MergeCommit = forge.Merged, pr.GetMergeCommitSHA()
	case pr.GetState() == "closed":
		p.State = forge.Closed
	}
	return p
}
