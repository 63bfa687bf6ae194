package gitops

import (
	"context"
	"fmt"
	"io/fs"
	"strings"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/steward"
)

// withdrawnNote begins the text of a pull request that a steward closed.
const withdrawnNote = "Withdrawn: "

// withdrawn tells a pull request that a program closed from one that a person did.
func withdrawn(body string) bool {
	return strings.HasPrefix(body, withdrawnNote) || strings.HasPrefix(body, propose.DuplicateNote)
}

// Do implements steward.Repository.
func (r *Repository) Do(ctx context.Context, action steward.Action) error {
	switch a := action.(type) {
	case steward.Propose:
		return r.propose(ctx, a)
	case steward.Withdraw:
		return r.withdraw(ctx, a)
	case steward.Merge:
		_, err := r.Forge.MergePullRequest(ctx, a.Pull.Number, forge.Merge{HeadSHA: a.Pull.Head, Title: fmt.Sprintf("%s (#%d)", a.Pull.Title, a.Pull.Number), Message: a.Pull.Body})
		return err
	case steward.Comment:
		_, err := r.Forge.Comment(ctx, a.Pull.Number, a.Marker, a.Body)
		return err
	case steward.Tell:
		return r.tell(ctx, a)
	case steward.TellDone:
		return r.tellDone(ctx, a)
	}
	return fmt.Errorf("%s: a GitOps repository cannot do this", action)
}

func (r *Repository) propose(ctx context.Context, a steward.Propose) error {
	app, err := r.seen.fleet.App(a.App)
	if err != nil {
		return err
	}
	_, err = r.proposer().ProposeFiles(ctx, propose.Files{
		Branch: a.Branch, Base: a.Base, Title: a.Title, Body: a.Body, Time: a.Time,
		Edit: func(tree fs.FS) (map[string][]byte, error) { return edit(tree, app, a.Set, a.Entry) },
	})
	return err
}

// withdraw writes the reason first, for people as a comment and for stewards into the text: a
// run that is killed before it closes the pull request leaves it open, and not closed without
// a reason.
func (r *Repository) withdraw(ctx context.Context, a steward.Withdraw) error {
	pr, err := r.Forge.PullRequest(ctx, a.Pull.Number)
	if err != nil || pr.State != forge.Open {
		return err
	}
	if _, err := r.Forge.Comment(ctx, pr.Number, "withdrawn", a.Reason); err != nil {
		return err
	}
	if !withdrawn(pr.Body) {
		body := withdrawnNote + a.Reason + "\n\n" + pr.Body
		if _, err := r.Forge.UpdatePullRequest(ctx, pr.Number, forge.Change{Body: &body}); err != nil {
			return err
		}
	}
	return r.Forge.ClosePullRequest(ctx, pr.Number)
}

// tell writes the mark in the GitOps repository last: what was told before it is told again
// after a kill, and nothing is left out.
func (r *Repository) tell(ctx context.Context, a steward.Tell) error {
	status := a.Report.Status(a.App, a.Cluster, a.URL)
	if r.Source != nil && a.Source != "" {
		cluster, err := r.seen.fleet.Cluster(a.Cluster)
		if err != nil {
			return err
		}
		if err := r.Source.ReportDeployment(ctx, a.Deployment(cluster.Addresses.UI)); err != nil {
			return err
		}
		if err := r.Source.SetStatus(ctx, a.Source, status); err != nil {
			return err
		}
		if a.Report.State == steward.StateAborted {
			overall := forge.Status{Context: steward.DoneContext(a.App), State: forge.Failure, Description: "Taken back in " + a.Cluster + ": " + a.Report.Text, URL: a.URL}
			if err := r.Source.SetStatus(ctx, a.Source, overall); err != nil {
				return err
			}
		}
	}
	return r.Forge.SetStatus(ctx, a.Commit, status)
}

func (r *Repository) tellDone(ctx context.Context, a steward.TellDone) error {
	status := forge.Status{Context: steward.DoneContext(a.App), State: forge.Success, Description: "Deployment successful: " + a.Release.Tag + " runs in " + strings.Join(a.Clusters, ", ")}
	if r.Source != nil && a.Source != "" {
		if err := r.Source.SetStatus(ctx, a.Source, status); err != nil {
			return err
		}
	}
	return r.Forge.SetStatus(ctx, a.Commit, status)
}
