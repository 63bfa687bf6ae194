package github

import (
	"context"
	"errors"

	sdk "github.com/google/go-github/v88/github"

	"github.com/omnivision/omnivision/forge"
)

// Protect implements forge.Administration. It uses branch protection, not
// rulesets: a required check by name is then seen by every client.
func (r *Repository) Protect(ctx context.Context, branch string, p forge.Protection) error {
	request := &sdk.ProtectionRequest{
		EnforceAdmins: true,
		RequiredPullRequestReviews: &sdk.PullRequestReviewsEnforcementRequest{
			DismissStaleReviews: true, RequiredApprovingReviewCount: p.Approvals,
		},
		AllowForcePushes: sdk.Ptr(false), AllowDeletions: sdk.Ptr(false),
	}
	if len(p.RequiredChecks) > 0 || p.UpToDate {
		checks := make([]*sdk.RequiredStatusCheck, 0, len(p.RequiredChecks))
		for _, context := range p.RequiredChecks {
			checks = append(checks, &sdk.RequiredStatusCheck{Context: context})
		}
		request.RequiredStatusChecks = &sdk.RequiredStatusChecks{Strict: p.UpToDate, Checks: &checks}
	}
	if len(p.DirectPush) > 0 {
		request.RequiredPullRequestReviews.BypassPullRequestAllowancesRequest = &sdk.BypassPullRequestAllowancesRequest{
			Users: p.DirectPush, Teams: []string{}, Apps: []string{},
		}
	}
	_, _, err := r.client.api.Repositories.UpdateBranchProtection(ctx, r.name.Owner, r.name.Repository, branch, request)
	return r.wrap(err, "protect %s", branch)
}

// Protection implements forge.Administration.
func (r *Repository) Protection(ctx context.Context, branch string) (forge.Protection, error) {
	have, _, err := r.client.api.Repositories.GetBranchProtection(ctx, r.name.Owner, r.name.Repository, branch)
	if errors.Is(err, sdk.ErrBranchNotProtected) {
		return forge.Protection{}, &forge.Error{
			Code: forge.NotFound, Op: "get protection of " + branch + " in " + r.name.String(), Err: err, Next: "protect the branch",
		}
	}
	if err != nil {
		return forge.Protection{}, r.wrap(err, "get protection of %s", branch)
	}
	var p forge.Protection
	if checks := have.GetRequiredStatusChecks(); checks != nil {
		p.UpToDate = checks.Strict
		if checks.Checks != nil {
			for _, check := range *checks.Checks {
				p.RequiredChecks = append(p.RequiredChecks, check.Context)
			}
		}
	}
	if reviews := have.GetRequiredPullRequestReviews(); reviews != nil {
		p.Approvals = reviews.RequiredApprovingReviewCount
		if bypass := reviews.GetBypassPullRequestAllowances(); bypass != nil {
			for _, user := range bypass.Users {
				p.DirectPush = append(p.DirectPush, user.GetLogin())
			}
		}
	}
	return p, nil
}

// EnsureWebhook implements forge.Administration. GitHub does not return the
// secret, so a hook that exists is always written again.
func (r *Repository) EnsureWebhook(ctx context.Context, w forge.Webhook) (forge.Webhook, error) {
	hook := &sdk.Hook{
		Name: sdk.Ptr("web"), Active: sdk.Ptr(true), Events: w.WantedEvents(),
		Config: &sdk.HookConfig{URL: &w.URL, ContentType: sdk.Ptr("json"), InsecureSSL: sdk.Ptr("0"), Secret: optional(w.Secret)},
	}
	have, err := r.Webhooks(ctx)
	if err != nil {
		return forge.Webhook{}, err
	}
	for _, h := range have {
		if h.URL == w.URL {
			changed, _, err := r.client.api.Repositories.EditHook(ctx, r.name.Owner, r.name.Repository, h.ID, hook)
			return webhook(changed), r.wrap(err, "change webhook to %s", w.URL)
		}
	}
	created, _, err := r.client.api.Repositories.CreateHook(ctx, r.name.Owner, r.name.Repository, hook)
	return webhook(created), r.wrap(err, "create webhook to %s", w.URL)
}

func webhook(h *sdk.Hook) forge.Webhook {
	return forge.Webhook{ID: h.GetID(), URL: h.GetConfig().GetURL(), Events: h.GetEvents()}
}

// Webhooks implements forge.Administration.
func (r *Repository) Webhooks(ctx context.Context) ([]forge.Webhook, error) {
	// GitHub allows 20 hooks for each event.
	hooks, _, err := r.client.api.Repositories.ListHooks(ctx, r.name.Owner, r.name.Repository, &sdk.ListOptions{PerPage: pageSize})
	if err != nil {
		return nil, r.wrap(err, "list webhooks")
	}
	list := make([]forge.Webhook, 0, len(hooks))
	for _, h := range hooks {
		list = append(list, webhook(h))
	}
	return list, nil
}

// DeleteWebhook implements forge.Administration.
func (r *Repository) DeleteWebhook(ctx context.Context, id int64) error {
	_, err := r.client.api.Repositories.DeleteHook(ctx, r.name.Owner, r.name.Repository, id)
	if err = r.wrap(err, "delete webhook %d", id); errors.Is(err, forge.NotFound) {
		return nil
	}
	return err
}
