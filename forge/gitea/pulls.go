package gitea

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	sdk "code.gitea.io/sdk/gitea"

	"github.com/omnivision/omnivision/forge"
)

// pageSize is what Gitea allows by default, and maxPages bounds a search in a
// repository with a long history.
const (
	pageSize = 50
	maxPages = 40
)

// OpenPullRequest implements forge.PullRequests.
func (r *Repository) OpenPullRequest(ctx context.Context, p forge.Proposal) (forge.PullRequest, error) {
	pr, _, err := r.client.api(ctx).CreatePullRequest(r.name.Owner, r.name.Repository, sdk.CreatePullRequestOption{
		Head: p.Head, Base: p.Base, Title: p.Title, Body: p.Body,
	})
	if err != nil {
		return forge.PullRequest{}, r.wrap(err, "open pull request from %s to %s", p.Head, p.Base)
	}
	return pullRequest(pr), nil
}

// PullRequest implements forge.PullRequests.
func (r *Repository) PullRequest(ctx context.Context, number int64) (forge.PullRequest, error) {
	pr, err := r.pull(ctx, number)
	if err != nil {
		return forge.PullRequest{}, err
	}
	return pullRequest(pr), nil
}

func (r *Repository) pull(ctx context.Context, number int64) (*sdk.PullRequest, error) {
	pr, _, err := r.client.api(ctx).GetPullRequest(r.name.Owner, r.name.Repository, number)
	return pr, r.wrap(err, "get pull request %d", number)
}

// FindPullRequests implements forge.PullRequests.
func (r *Repository) FindPullRequests(ctx context.Context, q forge.Query) ([]forge.PullRequest, error) {
	var found []forge.PullRequest
	for page := 1; page <= maxPages; page++ {
		prs, _, err := r.client.api(ctx).ListRepoPullRequests(r.name.Owner, r.name.Repository, sdk.ListPullRequestsOptions{
			ListOptions: sdk.ListOptions{Page: page, PageSize: pageSize},
			State:       listState(q.State),
		})
		if err != nil {
			return nil, r.wrap(err, "list pull requests")
		}
		for _, pr := range prs {
			if p := pullRequest(pr); own(pr) && q.Wanted(p) {
				if found = append(found, p); len(found) == q.Max() {
					return found, nil
				}
			}
		}
		if len(prs) < pageSize {
			break
		}
	}
	return found, nil
}

// own reports whether the head is a branch of the repository, not of a fork.
func own(pr *sdk.PullRequest) bool {
	return pr.Head != nil && pr.Base != nil && pr.Head.RepoID == pr.Base.RepoID
}

func listState(s forge.PullRequestState) sdk.StateType {
	switch s {
	case forge.Closed, forge.Merged:
		return sdk.StateClosed
	case forge.All:
		return sdk.StateAll
	}
	return sdk.StateOpen
}

// UpdatePullRequest implements forge.PullRequests.
func (r *Repository) UpdatePullRequest(ctx context.Context, number int64, c forge.Change) (forge.PullRequest, error) {
	option := sdk.EditPullRequestOption{Body: c.Body}
	if c.Title != nil {
		option.Title = *c.Title
	}
	pr, _, err := r.client.api(ctx).EditPullRequest(r.name.Owner, r.name.Repository, number, option)
	if err != nil {
		return forge.PullRequest{}, r.wrap(err, "update pull request %d", number)
	}
	return pullRequest(pr), nil
}

// ClosePullRequest implements forge.PullRequests.
func (r *Repository) ClosePullRequest(ctx context.Context, number int64) error {
	pr, err := r.pull(ctx, number)
	if err != nil {
		return err
	}
	if pr.HasMerged {
		return &forge.Error{
			Code: forge.Conflict, Op: "close pull request in " + r.name.String(),
			Err: errors.New("it is merged"), Next: "revert it by another pull request",
		}
	}
	if pr.State == sdk.StateClosed {
		return nil
	}
	closed := sdk.StateClosed
	_, _, err = r.client.api(ctx).EditPullRequest(r.name.Owner, r.name.Repository, number, sdk.EditPullRequestOption{State: &closed})
	return r.wrap(err, "close pull request %d", number)
}

// checkingLimit is how long Gitea may take to find out whether branches merge.
const checkingLimit = 15 * time.Second

// MergePullRequest implements forge.PullRequests.
func (r *Repository) MergePullRequest(ctx context.Context, number int64, m forge.Merge) (string, error) {
	pr, err := r.pull(ctx, number)
	if err != nil {
		return "", err
	}
	if pr.HasMerged {
		return pullRequest(pr).MergeCommit, nil
	}
	if pr.State == sdk.StateClosed {
		return "", r.conflict("merge pull request", errors.New("it is closed"), "reopen it, or open another one")
	}
	if m.HeadSHA != "" && pullRequest(pr).HeadSHA != m.HeadSHA {
		return "", r.conflict("merge pull request", errors.New("its head is "+pullRequest(pr).HeadSHA+", not "+m.HeadSHA), "look at the new commits and try again")
	}
	if err := r.merge(ctx, number, m); err != nil {
		return "", err
	}
	if pr, err = r.pull(ctx, number); err != nil {
		return "", err
	}
	return pullRequest(pr).MergeCommit, nil
}

// merge repeats while Gitea says to try later: it finds out in the background
// whether branches merge, after each push to either of them. It gives the same
// answer when they do not, so what remains after the limit is a conflict.
func (r *Repository) merge(ctx context.Context, number int64, m forge.Merge) error {
	for deadline := time.Now().Add(checkingLimit); ; {
		_, _, err := r.client.api(ctx).MergePullRequest(r.name.Owner, r.name.Repository, number, sdk.MergePullRequestOption{
			Style: style(m.Method), Title: m.Title, Message: m.Message, HeadCommitId: m.HeadSHA,
		})
		var no *refusal
		if !errors.As(err, &no) || no.status != http.StatusMethodNotAllowed || !strings.Contains(no.message, "try again later") {
			return r.wrap(err, "merge pull request %d", number)
		}
		if time.Now().After(deadline) {
			return r.conflict("merge pull request", errors.New("its branches do not merge, or the forge could not tell within "+checkingLimit.String()), "rebase the branch onto its base and push it")
		}
		select {
		case <-ctx.Done():
			return r.wrap(context.Cause(ctx), "wait until the forge knows whether pull request %d merges", number)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r *Repository) conflict(op string, err error, next string) error {
	return &forge.Error{Code: forge.Conflict, Op: op + " in " + r.name.String(), Err: err, Next: next}
}

func style(m forge.MergeMethod) sdk.MergeStyle {
	switch m {
	case forge.MergeCommit:
		return sdk.MergeStyleMerge
	case forge.Rebase:
		return sdk.MergeStyleRebase
	}
	return sdk.MergeStyleSquash
}

// Comment implements forge.PullRequests.
func (r *Repository) Comment(ctx context.Context, number int64, marker, body string) (forge.Comment, error) {
	login, err := r.client.whoami(ctx)
	if err != nil {
		return forge.Comment{}, r.wrap(err, "ask who we are, to comment on pull request %d", number)
	}
	comments, _, err := r.client.api(ctx).ListIssueComments(r.name.Owner, r.name.Repository, number, sdk.ListIssueCommentOptions{})
	if err != nil {
		return forge.Comment{}, r.wrap(err, "list comments of pull request %d", number)
	}
	text := forge.Mark(marker, body)
	for _, c := range comments {
		if c.Poster == nil || !strings.EqualFold(c.Poster.UserName, login) || !forge.Marked(marker, c.Body) {
			continue
		}
		if c.Body == text {
			return comment(c), nil
		}
		c, _, err = r.client.api(ctx).EditIssueComment(r.name.Owner, r.name.Repository, c.ID, sdk.EditIssueCommentOption{Body: text})
		if err != nil {
			return forge.Comment{}, r.wrap(err, "change comment on pull request %d", number)
		}
		return comment(c), nil
	}
	c, _, err := r.client.api(ctx).CreateIssueComment(r.name.Owner, r.name.Repository, number, sdk.CreateIssueCommentOption{Body: text})
	if err != nil {
		return forge.Comment{}, r.wrap(err, "comment on pull request %d", number)
	}
	return comment(c), nil
}

func comment(c *sdk.Comment) forge.Comment {
	return forge.Comment{ID: c.ID, URL: c.HTMLURL, Body: c.Body}
}

func pullRequest(pr *sdk.PullRequest) forge.PullRequest {
	p := forge.PullRequest{
		Number: pr.Index, URL: pr.HTMLURL, Title: pr.Title, Body: pr.Body, State: forge.Open,
	}
	switch {
	case pr.HasMerged:
		p.State = forge.Merged
	case pr.State == sdk.StateClosed:
		p.State = forge.Closed
	}
	if pr.Head != nil {
		// Ref becomes refs/pull/N/head when the branch is deleted; the name stays.
		p.Head, p.HeadSHA = pr.Head.Name, pr.Head.Sha
	}
	if pr.Base != nil {
		p.Base = pr.Base.Name
	}
	if pr.HasMerged && pr.MergedCommitID != nil {
		p.MergeCommit = *pr.MergedCommitID
	}
	if pr.Poster != nil {
		p.Author = pr.Poster.UserName
	}
	if pr.Created != nil {
		p.Created = *pr.Created
	}
	if pr.Updated != nil {
		p.Updated = *pr.Updated
	}
	return p
}
