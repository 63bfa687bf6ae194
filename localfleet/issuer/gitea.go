package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Gitea asks Gitea's API, as it is in 1.26, which jobs run.
type Gitea struct {
	// URL is the API's address without /api/v1.
	URL string
	// Token is an administrator's: a job's repository is not known before it is asked for.
	Token     func() (string, error)
	Transport http.RoundTripper // nil is the default
}

const (
	forgeTimeout = 15 * time.Second
	pageSize     = 50
	maxPages     = 20 // a fleet of one machine runs a handful of jobs
)

// Events that GitHub names otherwise than Gitea.
const (
	eventPullRequest       = "pull_request"
	eventPullRequestTarget = "pull_request_target"
)

type apiUser struct {
	ID    int64  `json:"id"`
	Login string `json:"login"`
}

type apiJob struct {
	ID      int64  `json:"id"`
	RunID   int64  `json:"run_id"`
	RunURL  string `json:"run_url"`
	Name    string `json:"name"`
	Attempt int64  `json:"run_attempt"`
	Status  string `json:"status"`
}

type apiRun struct {
	ID         int64   `json:"id"`
	Path       string  `json:"path"` // FILE@REF
	Event      string  `json:"event"`
	Number     int64   `json:"run_number"`
	HeadSHA    string  `json:"head_sha"`
	Status     string  `json:"status"`
	Actor      apiUser `json:"actor"`
	Repository struct {
		ID       int64   `json:"id"`
		Name     string  `json:"name"`
		Owner    apiUser `json:"owner"`
		Private  bool    `json:"private"`
		Internal bool    `json:"internal"`
	} `json:"repository"`
}

// Running implements Jobs.
func (g Gitea) Running(ctx context.Context, id JobID) (Job, error) {
	ctx, cancel := context.WithTimeout(ctx, forgeTimeout)
	defer cancel()
	found, err := g.findRunning(ctx, id)
	if err != nil {
		return Job{}, err
	}
	repository, err := repositoryOf(found)
	if err != nil {
		return Job{}, err
	}
	var run apiRun
	if err := g.get(ctx, fmt.Sprintf("/repos/%s/actions/runs/%d", repository, id.Run), &run); err != nil {
		return Job{}, fmt.Errorf("asking the forge for run %d: %w", id.Run, err)
	}
	job, err := run.job(found)
	if err != nil {
		return Job{}, err
	}
	if err := g.addPullRequest(ctx, &job); err != nil {
		return Job{}, err
	}
	return job, g.addWorkflow(ctx, &job, found.Name)
}

// findRunning looks among the jobs that run: the API has no way to ask for a job without its repository.
func (g Gitea) findRunning(ctx context.Context, id JobID) (apiJob, error) {
	for page := 1; page <= maxPages; page++ {
		var list struct {
			Jobs []apiJob `json:"jobs"`
		}
		if err := g.get(ctx, fmt.Sprintf("/admin/actions/jobs?status=in_progress&limit=%d&page=%d", pageSize, page), &list); err != nil {
			return apiJob{}, fmt.Errorf("asking the forge which jobs run: %w", err)
		}
		for _, job := range list.Jobs {
			if job.ID == id.Job && job.RunID == id.Run && job.Status == "in_progress" {
				return job, nil
			}
		}
		if len(list.Jobs) < pageSize {
			break
		}
	}
	return apiJob{}, fmt.Errorf("%w: the forge has no job %d of run %d in progress", ErrNotRunning, id.Job, id.Run)
}

// repositoryOf takes owner and name out of https://HOST/api/v1/repos/OWNER/NAME/actions/runs/ID.
func repositoryOf(job apiJob) (string, error) {
	_, rest, ok := strings.Cut(job.RunURL, "/api/v1/repos/")
	repository, tail, found := strings.Cut(rest, "/actions/runs/")
	if !ok || !found || tail != strconv.FormatInt(job.RunID, 10) || strings.Count(repository, "/") != 1 {
		return "", fmt.Errorf("the forge gives job %d the run %q, which is no address of one", job.ID, job.RunURL)
	}
	return repository, nil
}

func (r apiRun) job(found apiJob) (Job, error) {
	if r.ID != found.RunID || r.Repository.Name == "" || r.Repository.Owner.Login == "" || len(r.HeadSHA) < 40 {
		return Job{}, fmt.Errorf("the forge's answer for run %d lacks its repository or commit", found.RunID)
	}
	file, ref, ok := strings.Cut(r.Path, "@refs/")
	if !ok || file == "" || strings.Contains(file, "/") {
		return Job{}, fmt.Errorf("the forge says that run %d is of the workflow %q, which is not FILE@REF", r.ID, r.Path)
	}
	j := Job{
		Owner: r.Repository.Owner.Login, OwnerID: r.Repository.Owner.ID, Repository: r.Repository.Name, RepositoryID: r.Repository.ID,
		Visibility: "public", WorkflowPath: file, Ref: "refs/" + ref, SHA: r.HeadSHA,
		RunID: r.ID, RunNumber: r.Number, Attempt: found.Attempt, Actor: r.Actor.Login, ActorID: r.Actor.ID,
	}
	switch {
	case r.Repository.Private:
		j.Visibility = "private"
	case r.Repository.Internal:
		j.Visibility = "internal"
	}
	j.Event = githubEvent(r.Event, j.Ref)
	return j, nil
}

// pullRequestEvents are Gitea's kinds of what is one event with workflows.
var pullRequestEvents = map[string]bool{
	"pull_request": true, "pull_request_sync": true, "pull_request_assign": true, "pull_request_label": true,
	"pull_request_milestone": true, "pull_request_review_request": true,
}

// githubEvent is the event that the job sees in GITHUB_EVENT_NAME. A run for a pull request's target is for the
// branch, any other is for the pull request. What is for a pull request counts as one whatever happened to it.
func githubEvent(event, ref string) string {
	switch {
	case strings.HasPrefix(ref, "refs/pull/"):
		return eventPullRequest
	case pullRequestEvents[event]:
		return eventPullRequestTarget
	default:
		return event
	}
}

// addPullRequest adds the branches. As on GitHub, what comes from a fork has no identity: anybody may write it.
func (g Gitea) addPullRequest(ctx context.Context, job *Job) error {
	rest, ok := strings.CutPrefix(job.Ref, "refs/pull/")
	if !ok {
		return nil
	}
	number, _, _ := strings.Cut(rest, "/")
	if _, err := strconv.ParseUint(number, 10, 63); err != nil {
		return fmt.Errorf("the forge says that the run is for %s, which is no pull request", job.Ref)
	}
	var pull struct {
		Head, Base struct {
			Ref    string `json:"ref"`
			RepoID int64  `json:"repo_id"`
		}
	}
	if err := g.get(ctx, fmt.Sprintf("/repos/%s/pulls/%s", job.fullName(), number), &pull); err != nil {
		return fmt.Errorf("asking the forge for pull request %s: %w", number, err)
	}
	if pull.Base.RepoID != job.RepositoryID || pull.Head.RepoID != job.RepositoryID {
		return fmt.Errorf("%w: pull request %s of %s comes from a fork", ErrNotPermitted, number, job.fullName())
	}
	job.HeadRef, job.BaseRef = pull.Head.Ref, pull.Base.Ref
	return nil
}

// workflowDirs are where Gitea looks for workflows, the first that is there.
var workflowDirs = []string{".gitea/workflows", ".github/workflows"}

// addWorkflow reads the workflow at the job's commit: where it is, how it is called, and whether the job may have a
// token.
func (g Gitea) addWorkflow(ctx context.Context, job *Job, jobName string) error {
	for _, dir := range workflowDirs {
		path := dir + "/" + job.WorkflowPath
		var file struct {
			Content []byte `json:"content"` // base64
		}
		err := g.get(ctx, fmt.Sprintf("/repos/%s/contents/%s?ref=%s", job.fullName(), escape(path), url.QueryEscape(job.SHA)), &file)
		if errors.Is(err, errMissing) {
			continue
		}
		if err != nil {
			return fmt.Errorf("asking the forge for the workflow %s: %w", path, err)
		}
		job.WorkflowPath = path
		return job.applyWorkflow(file.Content, jobName)
	}
	return fmt.Errorf("the forge has no workflow %s at %s of %s", job.WorkflowPath, job.SHA, job.fullName())
}

func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return strings.Join(parts, "/")
}

var errMissing = errors.New("it is not there")

func (g Gitea) get(ctx context.Context, path string, out any) error {
	token, err := g.Token()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(g.URL, "/")+"/api/v1"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "token "+token)
	transport := g.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	switch resp.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(out)
	case http.StatusNotFound:
		return errMissing
	default:
		return fmt.Errorf("the answer is %s", resp.Status)
	}
}
