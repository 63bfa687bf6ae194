package gitea

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	sdk "code.gitea.io/sdk/gitea"

	"github.com/omnivision/omnivision/forge"
)

// Head implements forge.Commits.
func (r *Repository) Head(ctx context.Context, branch string) (string, error) {
	b, _, err := r.client.api(ctx).GetRepoBranch(r.name.Owner, r.name.Repository, branch)
	if err != nil {
		return "", r.notIfEmpty(ctx, r.wrap(err, "get branch %s", branch))
	}
	if b.Commit == nil {
		return "", r.wrap(errors.New("the forge names no commit"), "get branch %s", branch)
	}
	return b.Commit.ID, nil
}

// ReadFile implements forge.Commits.
func (r *Repository) ReadFile(ctx context.Context, ref, path string) ([]byte, error) {
	op := fmt.Sprintf("read %s at %s", path, ref)
	// The API's contents answer says whether it is a file; the raw one resolves
	// nothing that is not.
	var content sdk.ContentsResponse
	escaped := make([]string, 0, 4)
	for _, part := range strings.Split(path, "/") {
		escaped = append(escaped, url.PathEscape(part))
	}
	err := r.client.do(ctx, "GET", r.path("contents")+"/"+strings.Join(escaped, "/")+"?ref="+url.QueryEscape(ref), nil, &content)
	if err != nil {
		// A folder is answered by a list.
		if strings.Contains(err.Error(), "cannot unmarshal array") {
			return nil, r.notFile(op, "folder")
		}
		return nil, r.notIfEmpty(ctx, r.wrap(err, "%s", op))
	}
	if content.Type != "file" {
		return nil, r.notFile(op, content.Type)
	}
	if content.Encoding != nil && *content.Encoding == "base64" && content.Content != nil {
		data, err := base64.StdEncoding.DecodeString(*content.Content)
		return data, r.wrap(err, "%s", op)
	}
	// Large files come without content.
	data, _, err := r.client.api(ctx).GetFile(r.name.Owner, r.name.Repository, ref, path)
	return data, r.wrap(err, "%s", op)
}

func (r *Repository) notFile(op, kind string) error {
	return &forge.Error{
		Code: forge.Invalid, Op: op + " in " + r.name.String(),
		Err: errors.New("it is a " + kind), Next: "name a file",
	}
}

// SetStatus implements forge.Commits.
func (r *Repository) SetStatus(ctx context.Context, sha string, s forge.Status) error {
	s = s.Trimmed()
	have, err := r.latest(ctx, sha)
	if err != nil {
		return err
	}
	if slices.Contains(have, s) {
		return nil
	}
	_, _, err = r.client.api(ctx).CreateStatus(r.name.Owner, r.name.Repository, sha, sdk.CreateStatusOption{
		State: sdk.StatusState(s.State), TargetURL: s.URL, Description: s.Description, Context: s.Context,
	})
	return r.wrap(err, "set status %s of %s", s.Context, sha)
}

// Statuses implements forge.Commits.
func (r *Repository) Statuses(ctx context.Context, ref string) ([]forge.Status, error) {
	statuses, err := r.latest(ctx, ref)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(statuses, isDeployment), nil
}

// latest returns the newest status of each context, sorted by context.
func (r *Repository) latest(ctx context.Context, ref string) ([]forge.Status, error) {
	newest := map[string]*sdk.Status{}
	for page := 1; page <= maxPages; page++ {
		list, _, err := r.client.api(ctx).ListStatuses(r.name.Owner, r.name.Repository, ref, sdk.ListStatusesOption{
			ListOptions: sdk.ListOptions{Page: page, PageSize: pageSize},
		})
		if err != nil {
			return nil, r.wrap(err, "list statuses of %s", ref)
		}
		for _, s := range list {
			if have := newest[s.Context]; have == nil || have.ID < s.ID {
				newest[s.Context] = s
			}
		}
		if len(list) < pageSize {
			break
		}
	}
	statuses := make([]forge.Status, 0, len(newest))
	for _, s := range newest {
		statuses = append(statuses, forge.Status{Context: s.Context, State: state(s.State), Description: s.Description, URL: r.client.absolute(s.TargetURL)})
	}
	slices.SortFunc(statuses, func(a, b forge.Status) int { return strings.Compare(a.Context, b.Context) })
	return statuses, nil
}

// absolute completes the addresses of Gitea's own jobs, which lack the host.
func (c *Client) absolute(address string) string {
	if !strings.HasPrefix(address, "/") {
		return address
	}
	return c.root.Scheme + "://" + c.root.Host + address
}

// state maps the states that only Gitea has. A skipped job counts as success
// for its protected branches too; a warning does not.
func state(s sdk.StatusState) forge.StatusState {
	switch s {
	case sdk.StatusSuccess, "skipped":
		return forge.Success
	case sdk.StatusPending:
		return forge.Pending
	case sdk.StatusError:
		return forge.Errored
	}
	return forge.Failure
}
