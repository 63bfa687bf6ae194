package gitea

import (
	"context"
	"strings"

	"github.com/omnivision/omnivision/forge"
)

// deploymentContext begins the context of a status that stands for a deployment.
const deploymentContext = "deployment/"

func isDeployment(s forge.Status) bool { return strings.HasPrefix(s.Context, deploymentContext) }

// ReportDeployment implements forge.Deployments. The description begins with
// the deployment's state, since a commit status knows fewer.
func (r *Repository) ReportDeployment(ctx context.Context, d forge.Deployment) error {
	url := d.URL
	if url == "" {
		url = d.EnvironmentURL
	}
	return r.SetStatus(ctx, d.SHA, forge.Status{
		Context: deploymentContext + d.Environment, State: statusOf(d.State),
		Description: strings.TrimSpace(string(d.State) + ": " + d.Description), URL: url,
	})
}

// statusOf maps so that the commit's overall state is right: what replaced a
// deployment did not make its commit bad.
func statusOf(s forge.DeploymentState) forge.StatusState {
	switch s {
	case forge.Deployed, forge.Inactive:
		return forge.Success
	case forge.Failed:
		return forge.Failure
	}
	return forge.Pending
}

// Deployments implements forge.Deployments.
func (r *Repository) Deployments(ctx context.Context, sha string) ([]forge.Deployment, error) {
	statuses, err := r.latest(ctx, sha)
	if err != nil {
		return nil, err
	}
	var deployments []forge.Deployment
	for _, s := range statuses {
		if !isDeployment(s) {
			continue
		}
		word, description, _ := strings.Cut(s.Description, ":")
		state := forge.DeploymentState(word)
		if !state.Valid() { // somebody else wrote it
			continue
		}
		deployments = append(deployments, forge.Deployment{
			SHA: sha, Environment: strings.TrimPrefix(s.Context, deploymentContext), State: state,
			Description: strings.TrimSpace(description), URL: s.URL,
		})
	}
	return deployments, nil
}
