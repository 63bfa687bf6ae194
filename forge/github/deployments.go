package github

import (
	"context"
	"slices"
	"strings"

	sdk "github.com/google/go-github/v88/github"

	"github.com/omnivision/omnivision/forge"
)

// ReportDeployment implements forge.Deployments.
func (r *Repository) ReportDeployment(ctx context.Context, d forge.Deployment) error {
	d = d.Trimmed()
	deployment, err := r.ensureDeployment(ctx, d)
	if err != nil {
		return err
	}
	have, err := r.deploymentStatus(ctx, deployment)
	if err != nil {
		return err
	}
	if have != nil && *have == d {
		return nil
	}
	_, _, err = r.client.api.Repositories.CreateDeploymentStatus(ctx, r.name.Owner, r.name.Repository, deployment.GetID(), &sdk.DeploymentStatusRequest{
		State: sdk.Ptr(string(d.State)), Description: optional(d.Description), LogURL: optional(d.URL), EnvironmentURL: optional(d.EnvironmentURL),
		// GitHub then marks the environment's earlier deployments inactive.
		AutoInactive: sdk.Ptr(true),
	})
	return r.wrap(err, "report %s in %s", d.State, d.Environment)
}

func (r *Repository) ensureDeployment(ctx context.Context, d forge.Deployment) (*sdk.Deployment, error) {
	list, _, err := r.client.api.Repositories.ListDeployments(ctx, r.name.Owner, r.name.Repository, &sdk.DeploymentsListOptions{
		SHA: d.SHA, Environment: d.Environment, ListOptions: sdk.ListOptions{PerPage: 1},
	})
	if err != nil {
		return nil, r.wrap(err, "list deployments of %s", d.SHA)
	}
	if len(list) > 0 {
		return list[0], nil
	}
	deployment, _, err := r.client.api.Repositories.CreateDeployment(ctx, r.name.Owner, r.name.Repository, &sdk.DeploymentRequest{
		Ref: &d.SHA, Environment: &d.Environment, Description: sdk.Ptr("OmniVision delivery"),
		// It is deployed already: GitHub must neither merge the base into the
		// ref nor demand checks first.
		AutoMerge: sdk.Ptr(false), RequiredContexts: &[]string{},
	})
	return deployment, r.wrap(err, "create deployment of %s in %s", d.SHA, d.Environment)
}

// deploymentStatus returns the newest state of a deployment, or nil.
func (r *Repository) deploymentStatus(ctx context.Context, deployment *sdk.Deployment) (*forge.Deployment, error) {
	list, _, err := r.client.api.Repositories.ListDeploymentStatuses(ctx, r.name.Owner, r.name.Repository, deployment.GetID(), &sdk.ListOptions{PerPage: 1})
	if err != nil {
		return nil, r.wrap(err, "list states of deployment %d", deployment.GetID())
	}
	if len(list) == 0 {
		return nil, nil
	}
	return &forge.Deployment{
		SHA: deployment.GetSHA(), Environment: deployment.GetEnvironment(), State: forge.DeploymentState(list[0].GetState()),
		Description: list[0].GetDescription(), URL: list[0].GetLogURL(), EnvironmentURL: list[0].GetEnvironmentURL(),
	}, nil
}

// Deployments implements forge.Deployments.
func (r *Repository) Deployments(ctx context.Context, sha string) ([]forge.Deployment, error) {
	list, _, err := r.client.api.Repositories.ListDeployments(ctx, r.name.Owner, r.name.Repository, &sdk.DeploymentsListOptions{
		SHA: sha, ListOptions: sdk.ListOptions{PerPage: pageSize},
	})
	if err != nil {
		return nil, r.wrap(err, "list deployments of %s", sha)
	}
	newest := map[string]forge.Deployment{}
	for _, deployment := range list { // newest first
		if _, seen := newest[deployment.GetEnvironment()]; seen {
			continue
		}
		d, err := r.deploymentStatus(ctx, deployment)
		if err != nil {
			return nil, err
		}
		if d != nil {
			newest[d.Environment] = *d
		}
	}
	deployments := make([]forge.Deployment, 0, len(newest))
	for _, d := range newest {
		deployments = append(deployments, d)
	}
	slices.SortFunc(deployments, func(a, b forge.Deployment) int { return strings.Compare(a.Environment, b.Environment) })
	return deployments, nil
}
