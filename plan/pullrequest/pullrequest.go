// Package pullrequest puts a plan where people decide about it: into one comment of the
// pull request, which each run changes in place, and into the commit status that a
// protected branch waits for.
package pullrequest

import (
	"context"
	"fmt"
	"strings"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/report"
)

// StatusContext is the check that a protected branch of the GitOps repository demands.
const StatusContext = "omnivision/plan"

const (
	marker = "plan"
	// limit leaves room for the line that the forge's marker takes.
	limit = report.CommentLimit - 100
)

// Forge is what is asked of the GitOps repository.
type Forge interface {
	PullRequest(ctx context.Context, number int64) (forge.PullRequest, error)
	Comment(ctx context.Context, number int64, marker, body string) (forge.Comment, error)
	SetStatus(ctx context.Context, sha string, s forge.Status) error
}

// Target is a pull request at the commit that was planned.
type Target struct {
	Number int64
	Head   string // commit
}

// Plan publishes a plan. One that cannot be rendered whole fails the check.
func Plan(ctx context.Context, f Forge, t Target, p *plan.Plan) error {
	status := forge.Status{State: forge.Success, Description: report.Headline(p)}
	if failures := p.Failures(); len(failures) > 0 {
		status = forge.Status{State: forge.Failure, Description: "cannot be rendered: " + strings.Join(failures, ", ")}
	}
	return t.publish(ctx, f, report.Markdown(p, limit), status)
}

// Refusal publishes why there is no plan.
func Refusal(ctx context.Context, f Forge, t Target, reason error) error {
	return t.publish(ctx, f, report.Refusal(reason.Error()), forge.Status{State: forge.Failure, Description: "there is no plan: " + reason.Error()})
}

// publish writes the comment first: who sees the status finds what it is about.
func (t Target) publish(ctx context.Context, f Forge, body string, status forge.Status) error {
	pr, err := f.PullRequest(ctx, t.Number)
	if err != nil {
		return fmt.Errorf("publishing the plan: %w", err)
	}
	// A run that comes late must not put an old plan over the new one.
	if pr.HeadSHA == t.Head {
		comment, err := f.Comment(ctx, t.Number, marker, body)
		if err != nil {
			return fmt.Errorf("publishing the plan: %w", err)
		}
		status.URL = comment.URL
	}
	status.Context = StatusContext
	if err := f.SetStatus(ctx, t.Head, status.Trimmed()); err != nil {
		return fmt.Errorf("publishing the plan: %w", err)
	}
	return nil
}
