package gitea

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/omnivision/omnivision/forge"
	forgegitea "github.com/omnivision/omnivision/forge/gitea"
)

// Kind is what a repository is for.
type Kind int

// The kinds of repositories.
const (
	// Work has pull requests, issues and workflows.
	Work Kind = iota
	// Mirror holds upstream's commits: its workflows are not ours to run, and
	// nobody proposes changes to it.
	Mirror
)

type repository struct {
	HasActions      bool `json:"has_actions"`
	HasPullRequests bool `json:"has_pull_requests"`
	HasIssues       bool `json:"has_issues"`
	HasWiki         bool `json:"has_wiki"`
}

// EnsureRepository makes an empty repository in an organisation that exists.
func (s *Server) EnsureRepository(ctx context.Context, name forge.Name, kind Kind) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	var have repository
	err = s.call(ctx, http.MethodGet, repoPath(name), who, nil, &have)
	if err == nil && s.halfMade(name) {
		if err := s.call(ctx, http.MethodDelete, repoPath(name), who, nil, nil); err != nil {
			return fmt.Errorf("remove half-made repository %s: %w", name, err)
		}
		err = s.call(ctx, http.MethodGet, repoPath(name), who, nil, &have)
	}
	if answered(err, http.StatusNotFound) {
		err = s.createRepository(ctx, who, name, &have)
	}
	if err != nil {
		return fmt.Errorf("ensure repository %s: %w", name, err)
	}
	want := repository{HasActions: kind == Work, HasPullRequests: kind == Work, HasIssues: kind == Work}
	if have == want {
		return nil
	}
	err = s.call(ctx, http.MethodPatch, repoPath(name), who, want, nil)
	return describe(err, "set up repository %s", name)
}

// halfMade reports whether Gitea was killed between the repository's record and
// its files.
func (s *Server) halfMade(name forge.Name) bool {
	path := s.config.repositoryPath(strings.ToLower(name.Owner), strings.ToLower(name.Repository))
	_, err := os.Stat(filepath.Join(path, "HEAD"))
	return errors.Is(err, fs.ErrNotExist)
}

func (s *Server) createRepository(ctx context.Context, who credential, name forge.Name, made *repository) error {
	create := func() error {
		return s.call(ctx, http.MethodPost, "/api/v1/orgs/"+url.PathEscape(name.Owner)+"/repos", who,
			map[string]any{"name": name.Repository, "default_branch": "main", "auto_init": false}, made)
	}
	err := create()
	if err == nil || !strings.Contains(err.Error(), "files already exist") {
		return err
	}
	// Files without a record: Gitea was killed while it removed a repository.
	// It may have removed them with the record that it just failed to make.
	path := "/api/v1/admin/unadopted/" + url.PathEscape(name.Owner) + "/" + url.PathEscape(name.Repository)
	if err := s.call(ctx, http.MethodDelete, path, who, nil, nil); err != nil && !answered(err, http.StatusNotFound) {
		return fmt.Errorf("remove left-over files: %w", err)
	}
	return create()
}

// Forge returns the repository as the machine's other parts see it, with the
// administrator's rights.
func (s *Server) Forge(name forge.Name) (forge.Repository, error) {
	client, err := forgegitea.New(forgegitea.Options{
		URL: s.URL(), Token: forge.TokenFile(s.tokenPath("fleet")), Login: Admin, Transport: s.Transport(),
	})
	if err != nil {
		return nil, err
	}
	return client.Repository(name), nil
}

// ProtectMain demands a pull request for every change of main, with these
// checks successful. Only Admin may push: that is how a working tree arrives.
func (s *Server) ProtectMain(ctx context.Context, name forge.Name, requiredChecks ...string) error {
	repo, err := s.Forge(name)
	if err != nil {
		return err
	}
	return repo.Protect(ctx, "main", forge.Protection{RequiredChecks: requiredChecks, DirectPush: []string{Admin}})
}

// EnsureWebhook reports pushes to an Argo CD: it verifies the kind of signature
// that hooks of the type gogs carry.
func (s *Server) EnsureWebhook(ctx context.Context, name forge.Name, argocdURL, secret string) error {
	repo, err := s.Forge(name)
	if err != nil {
		return err
	}
	_, err = repo.EnsureWebhook(ctx, forge.Webhook{URL: argocdURL, Secret: secret, Events: []string{"push"}, Format: "gogs"})
	return err
}
