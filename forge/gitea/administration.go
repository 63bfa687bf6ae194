package gitea

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	sdk "code.gitea.io/sdk/gitea"

	"github.com/omnivision/omnivision/forge"
)

// Protect implements forge.Administration.
func (r *Repository) Protect(ctx context.Context, branch string, p forge.Protection) error {
	_, _, err := r.client.api(ctx).GetBranchProtection(r.name.Owner, r.name.Repository, branch)
	if err = r.wrap(err, "get protection of %s", branch); errors.Is(err, forge.NotFound) {
		return r.createProtection(ctx, branch, p)
	}
	if err != nil {
		return err
	}
	return r.editProtection(ctx, branch, p)
}

func (r *Repository) createProtection(ctx context.Context, branch string, p forge.Protection) error {
	_, _, err := r.client.api(ctx).CreateBranchProtection(r.name.Owner, r.name.Repository, sdk.CreateBranchProtectionOption{
		RuleName:                branch,
		EnablePush:              len(p.DirectPush) > 0,
		EnablePushWhitelist:     len(p.DirectPush) > 0,
		PushWhitelistUsernames:  p.DirectPush,
		EnableStatusCheck:       len(p.RequiredChecks) > 0,
		StatusCheckContexts:     quoted(p.RequiredChecks),
		RequiredApprovals:       int64(p.Approvals),
		BlockOnOutdatedBranch:   p.UpToDate,
		BlockOnRejectedReviews:  true,
		DismissStaleApprovals:   true,
		BlockAdminMergeOverride: true,
	})
	return r.wrap(err, "protect %s", branch)
}

func (r *Repository) editProtection(ctx context.Context, branch string, p forge.Protection) error {
	push, checks, approvals, yes := len(p.DirectPush) > 0, len(p.RequiredChecks) > 0, int64(p.Approvals), true
	_, _, err := r.client.api(ctx).EditBranchProtection(r.name.Owner, r.name.Repository, branch, sdk.EditBranchProtectionOption{
		EnablePush:              &push,
		EnablePushWhitelist:     &push,
		PushWhitelistUsernames:  p.DirectPush,
		EnableStatusCheck:       &checks,
		StatusCheckContexts:     quoted(p.RequiredChecks),
		RequiredApprovals:       &approvals,
		BlockOnOutdatedBranch:   &p.UpToDate,
		BlockOnRejectedReviews:  &yes,
		DismissStaleApprovals:   &yes,
		BlockAdminMergeOverride: &yes,
	})
	return r.wrap(err, "protect %s", branch)
}

// Protection implements forge.Administration.
func (r *Repository) Protection(ctx context.Context, branch string) (forge.Protection, error) {
	bp, _, err := r.client.api(ctx).GetBranchProtection(r.name.Owner, r.name.Repository, branch)
	if err != nil {
		return forge.Protection{}, r.wrap(err, "get protection of %s", branch)
	}
	p := forge.Protection{UpToDate: bp.BlockOnOutdatedBranch, Approvals: int(bp.RequiredApprovals)}
	if bp.EnableStatusCheck {
		p.RequiredChecks = unquoted(bp.StatusCheckContexts)
	}
	if bp.EnablePush && bp.EnablePushWhitelist {
		p.DirectPush = bp.PushWhitelistUsernames
	}
	return p, nil
}

// special are the characters of Gitea's patterns.
const special = `\*?[{`

// quoted makes patterns that match the names alone: a job's name may hold
// brackets, and must not become a pattern that more checks fulfil.
func quoted(names []string) []string {
	patterns := make([]string, 0, len(names))
	for _, name := range names {
		var b strings.Builder
		for _, c := range name {
			if strings.ContainsRune(special, c) {
				b.WriteByte('\\')
			}
			b.WriteRune(c)
		}
		patterns = append(patterns, b.String())
	}
	return patterns
}

func unquoted(patterns []string) []string {
	names := make([]string, 0, len(patterns))
	for _, pattern := range patterns {
		var b strings.Builder
		escaped := false
		for _, c := range pattern {
			if c == '\\' && !escaped {
				escaped = true
				continue
			}
			escaped = false
			b.WriteRune(c)
		}
		names = append(names, b.String())
	}
	return names
}

// hook is Gitea's webhook with its name, which the official client leaves out.
type hook struct {
	ID     int64             `json:"id,omitempty"`
	Type   string            `json:"type"`
	Name   string            `json:"name"`
	Config map[string]string `json:"config"`
	Events []string          `json:"events"`
	Active bool              `json:"active"`
}

// EnsureWebhook implements forge.Administration. Gitea neither returns a hook's
// secret nor changes it, so the hook's name carries a fingerprint of it, and a
// hook with another secret is replaced: the new one first, so that no push
// goes unreported.
func (r *Repository) EnsureWebhook(ctx context.Context, w forge.Webhook) (forge.Webhook, error) {
	want := hook{
		Type: w.Format, Name: hookName(w), Active: true, Events: slices.Sorted(slices.Values(w.WantedEvents())),
		Config: map[string]string{"url": w.URL, "content_type": "json", "secret": w.Secret},
	}
	if want.Type == "" {
		want.Type = "gitea"
	}
	hooks, err := r.hooks(ctx)
	if err != nil {
		return forge.Webhook{}, err
	}
	var keep *hook
	var stale []int64
	for i, h := range hooks {
		switch {
		case h.Config["url"] != w.URL:
		case keep == nil && h.same(want):
			keep = &hooks[i]
		default:
			stale = append(stale, h.ID)
		}
	}
	if keep == nil {
		keep = &hook{}
		if err := r.client.do(ctx, "POST", r.path("hooks"), want, keep); err != nil {
			return forge.Webhook{}, r.wrap(err, "create webhook to %s", w.URL)
		}
	}
	for _, id := range stale {
		if err := r.DeleteWebhook(ctx, id); err != nil {
			return forge.Webhook{}, err
		}
	}
	return keep.webhook(), nil
}

func (h hook) same(want hook) bool {
	return h.Type == want.Type && h.Name == want.Name && h.Active &&
		slices.Equal(slices.Sorted(slices.Values(h.Events)), want.Events)
}

func (h hook) webhook() forge.Webhook {
	w := forge.Webhook{ID: h.ID, URL: h.Config["url"], Events: h.Events, Format: h.Type}
	if w.Format == "gitea" {
		w.Format = ""
	}
	return w
}

func hookName(w forge.Webhook) string {
	mac := hmac.New(sha256.New, []byte(w.Secret))
	mac.Write([]byte("omnivision webhook " + w.URL))
	return "omnivision " + hex.EncodeToString(mac.Sum(nil))[:12]
}

// Webhooks implements forge.Administration.
func (r *Repository) Webhooks(ctx context.Context) ([]forge.Webhook, error) {
	hooks, err := r.hooks(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]forge.Webhook, 0, len(hooks))
	for _, h := range hooks {
		list = append(list, h.webhook())
	}
	return list, nil
}

func (r *Repository) hooks(ctx context.Context) ([]hook, error) {
	var hooks []hook
	err := r.client.do(ctx, "GET", r.path("hooks")+"?limit=50", nil, &hooks)
	return hooks, r.wrap(err, "list webhooks")
}

// DeleteWebhook implements forge.Administration.
func (r *Repository) DeleteWebhook(ctx context.Context, id int64) error {
	_, err := r.client.api(ctx).DeleteRepoHook(r.name.Owner, r.name.Repository, id)
	if err = r.wrap(err, "delete webhook %d", id); errors.Is(err, forge.NotFound) {
		return nil
	}
	return err
}
