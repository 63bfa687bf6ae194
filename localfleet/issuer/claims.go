package issuer

import (
	"fmt"
	"strconv"
	"strings"
)

// Job is what the forge knows of a job that runs.
type Job struct {
	Owner, Repository         string
	OwnerID, RepositoryID     int64
	Visibility                string // public, internal or private
	Workflow                  string // the name that it gives itself, or its path
	WorkflowPath              string // .github/workflows/conveyor.yaml
	Ref                       string // refs/heads/main
	SHA                       string
	Event                     string // push, pull_request …
	RunID, RunNumber, Attempt int64
	Actor                     string
	ActorID                   int64
	HeadRef, BaseRef          string // of a pull request
}

// claims are those of
// https://docs.github.com/en/actions/reference/security/oidc#oidc-token-claims,
// where every number is text. There are no deployment environments here, so no claim of one.
type claims struct {
	Actor                string `json:"actor"`
	ActorID              string `json:"actor_id"`
	BaseRef              string `json:"base_ref"`
	EventName            string `json:"event_name"`
	HeadRef              string `json:"head_ref"`
	JobWorkflowRef       string `json:"job_workflow_ref"`
	JobWorkflowSHA       string `json:"job_workflow_sha"`
	Ref                  string `json:"ref"`
	RefType              string `json:"ref_type"`
	Repository           string `json:"repository"`
	RepositoryID         string `json:"repository_id"`
	RepositoryOwner      string `json:"repository_owner"`
	RepositoryOwnerID    string `json:"repository_owner_id"`
	RepositoryVisibility string `json:"repository_visibility"`
	RunAttempt           string `json:"run_attempt"`
	RunID                string `json:"run_id"`
	RunNumber            string `json:"run_number"`
	RunnerEnvironment    string `json:"runner_environment"`
	SHA                  string `json:"sha"`
	Workflow             string `json:"workflow"`
	WorkflowRef          string `json:"workflow_ref"`
	WorkflowSHA          string `json:"workflow_sha"`
}

func (j Job) fullName() string { return j.Owner + "/" + j.Repository }

// subject tells a pull request's jobs from a branch's, whatever they run.
func (j Job) subject() string {
	if j.Event == eventPullRequest {
		return "repo:" + j.fullName() + ":pull_request"
	}
	return "repo:" + j.fullName() + ":ref:" + j.Ref
}

func (j Job) refType() string {
	if strings.HasPrefix(j.Ref, "refs/tags/") {
		return "tag"
	}
	return "branch"
}

// claims of the job. A workflow comes from the commit that the job runs for, and calls no other, so the references
// to it are one.
func (j Job) claims() claims {
	text := func(n int64) string { return strconv.FormatInt(n, 10) }
	workflowRef := fmt.Sprintf("%s/%s@%s", j.fullName(), j.WorkflowPath, j.Ref)
	return claims{
		Actor: j.Actor, ActorID: text(j.ActorID), BaseRef: j.BaseRef, HeadRef: j.HeadRef, EventName: j.Event,
		JobWorkflowRef: workflowRef, JobWorkflowSHA: j.SHA, Ref: j.Ref, RefType: j.refType(),
		Repository: j.fullName(), RepositoryID: text(j.RepositoryID), RepositoryOwner: j.Owner, RepositoryOwnerID: text(j.OwnerID),
		RepositoryVisibility: j.Visibility, RunAttempt: text(max(j.Attempt, 1)), RunID: text(j.RunID), RunNumber: text(j.RunNumber),
		RunnerEnvironment: "self-hosted", SHA: j.SHA, Workflow: j.Workflow, WorkflowRef: workflowRef, WorkflowSHA: j.SHA,
	}
}
