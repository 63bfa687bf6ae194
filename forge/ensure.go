package forge

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// EnsurePullRequest makes one open pull request for the proposal's branches be
// as proposed: it opens one, or corrects title and text of the one that is
// open. It reports whether it opened one.
func EnsurePullRequest(ctx context.Context, r PullRequests, p Proposal) (PullRequest, bool, error) {
	// Two rounds: if another run opens one between our look and our attempt,
	// the second look finds it.
	for range 2 {
		found, err := r.FindPullRequests(ctx, Query{Head: p.Head, Base: p.Base, State: Open, Limit: 1})
		if err != nil {
			return PullRequest{}, false, err
		}
		if len(found) > 0 {
			pr, err := correct(ctx, r, found[0], p)
			return pr, false, err
		}
		pr, err := r.OpenPullRequest(ctx, p)
		if err == nil {
			return pr, true, nil
		}
		if !errors.Is(err, Conflict) {
			return PullRequest{}, false, err
		}
	}
	return PullRequest{}, false, &Error{
		Code: Conflict, Op: fmt.Sprintf("ensure pull request from %s to %s", p.Head, p.Base),
		Err:  errors.New("the forge says that one is open and lists none"),
		Next: "look at the repository's pull requests from this branch, forks included",
	}
}

func correct(ctx context.Context, r PullRequests, have PullRequest, want Proposal) (PullRequest, error) {
	var c Change
	if have.Title != want.Title {
		c.Title = &want.Title
	}
	// Forges turn line ends into CRLF when a person edits the text.
	if strings.ReplaceAll(have.Body, "\r\n", "\n") != want.Body {
		c.Body = &want.Body
	}
	if c == (Change{}) {
		return have, nil
	}
	return r.UpdatePullRequest(ctx, have.Number, c)
}

// Mark puts the marker before a comment's text, where a reader does not see it.
func Mark(marker, body string) string {
	return markerLine(marker) + "\n" + body
}

// Marked reports whether a comment's text begins with the marker.
func Marked(marker, text string) bool {
	return strings.HasPrefix(strings.ReplaceAll(text, "\r\n", "\n"), markerLine(marker)+"\n")
}

func markerLine(marker string) string {
	// "--" would end the HTML comment.
	return "<!-- omnivision:" + strings.ReplaceAll(marker, "--", "-\u200b-") + " -->"
}
