package github

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	sdk "github.com/google/go-github/v88/github"

	"github.com/omnivision/omnivision/forge"
)

// Head implements forge.Commits.
func (r *Repository) Head(ctx context.Context, branch string) (string, error) {
	ref, _, err := r.client.api.Git.GetRef(ctx, r.name.Owner, r.name.Repository, "heads/"+branch)
	if err != nil {
		return "", r.wrap(err, "get branch %s", branch)
	}
	return ref.GetObject().GetSHA(), nil
}

// ReadFile implements forge.Commits.
func (r *Repository) ReadFile(ctx context.Context, ref, path string) ([]byte, error) {
	at := &sdk.RepositoryContentGetOptions{Ref: ref}
	file, _, _, err := r.client.api.Repositories.GetContents(ctx, r.name.Owner, r.name.Repository, path, at)
	if err != nil {
		return nil, r.wrap(err, "read %s at %s", path, ref)
	}
	if file == nil || file.GetType() != "file" {
		return nil, &forge.Error{
			Code: forge.Invalid, Op: "read " + path + " at " + ref + " in " + r.name.String(),
			Err: errors.New("it is no file"), Next: "name a file",
		}
	}
	// Files over 1 MB come without content:
	// https://docs.github.com/rest/repos/contents#size-limits
	if file.GetEncoding() == "none" {
		reader, _, err := r.client.api.Repositories.DownloadContents(ctx, r.name.Owner, r.name.Repository, path, at)
		if err != nil {
			return nil, r.wrap(err, "download %s at %s", path, ref)
		}
		defer reader.Close() //nolint:errcheck // read to its end
		data, err := io.ReadAll(reader)
		return data, r.wrap(err, "download %s at %s", path, ref)
	}
	content, err := file.GetContent()
	return []byte(content), r.wrap(err, "read %s at %s", path, ref)
}

// SetStatus implements forge.Commits.
func (r *Repository) SetStatus(ctx context.Context, sha string, s forge.Status) error {
	s = s.Trimmed()
	have, err := r.commitStatuses(ctx, sha)
	if err != nil {
		return err
	}
	if slices.Contains(have, s) {
		return nil
	}
	_, _, err = r.client.api.Repositories.CreateStatus(ctx, r.name.Owner, r.name.Repository, sha, sdk.RepoStatus{
		State: sdk.Ptr(string(s.State)), TargetURL: optional(s.URL), Description: optional(s.Description), Context: &s.Context,
	})
	return r.wrap(err, "set status %s of %s", s.Context, sha)
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Statuses implements forge.Commits.
func (r *Repository) Statuses(ctx context.Context, ref string) ([]forge.Status, error) {
	statuses, err := r.commitStatuses(ctx, ref)
	if err != nil {
		return nil, err
	}
	runs, err := r.checkRuns(ctx, ref)
	if err != nil {
		return nil, err
	}
	statuses = append(statuses, runs...)
	slices.SortStableFunc(statuses, func(a, b forge.Status) int { return strings.Compare(a.Context, b.Context) })
	return statuses, nil
}

// commitStatuses returns the latest of each context, as GitHub's combined
// status has them.
func (r *Repository) commitStatuses(ctx context.Context, ref string) ([]forge.Status, error) {
	options := &sdk.ListOptions{PerPage: pageSize}
	var statuses []forge.Status
	for range maxPages {
		combined, resp, err := r.client.api.Repositories.GetCombinedStatus(ctx, r.name.Owner, r.name.Repository, ref, options)
		if err != nil {
			return nil, r.wrap(err, "list statuses of %s", ref)
		}
		for _, s := range combined.Statuses {
			statuses = append(statuses, forge.Status{
				Context: s.GetContext(), State: forge.StatusState(s.GetState()), Description: s.GetDescription(), URL: s.GetTargetURL(),
			})
		}
		if resp.NextPage == 0 {
			break
		}
		options.Page = resp.NextPage
	}
	return statuses, nil
}

func (r *Repository) checkRuns(ctx context.Context, ref string) ([]forge.Status, error) {
	options := &sdk.ListCheckRunsOptions{Filter: sdk.Ptr("latest"), ListOptions: sdk.ListOptions{PerPage: pageSize}}
	var statuses []forge.Status
	for range maxPages {
		runs, resp, err := r.client.api.Checks.ListCheckRunsForRef(ctx, r.name.Owner, r.name.Repository, ref, options)
		if err != nil {
			return nil, r.wrap(err, "list check runs of %s", ref)
		}
		for _, run := range runs.CheckRuns {
			statuses = append(statuses, forge.Status{
				Context: run.GetName(), State: checkState(run), Description: run.GetOutput().GetTitle(), URL: run.GetHTMLURL(),
			})
		}
		if resp.NextPage == 0 {
			break
		}
		options.Page = resp.NextPage
	}
	return statuses, nil
}

// checkState follows what GitHub's required checks accept: success, neutral
// and skipped.
func checkState(run *sdk.CheckRun) forge.StatusState {
	if run.GetStatus() != "completed" {
		return forge.Pending
	}
	switch run.GetConclusion() {
	case "success", "neutral", "skipped":
		return forge.Success
	case "cancelled", "timed_out", "stale", "startup_failure", "action_required":
		return forge.Errored
	}
	return forge.Failure
}
