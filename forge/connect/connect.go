// Package connect finds out which software a forge runs, and connects the
// driver for it: a clone URL and a token are all that a program is configured
// with, wherever the organisation keeps its repositories.
package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/gitea"
	"github.com/omnivision/omnivision/forge/github"
)

// Options say who calls.
type Options struct {
	Token forge.TokenSource
	Login string // under which the token's comments appear; see the drivers
	// Transport carries the requests; nil is http.DefaultTransport.
	Transport http.RoundTripper
}

// Repository connects to the repository with this clone URL, such as
// https://github.com/omnivision/omnivision-gitops.git.
func Repository(ctx context.Context, cloneURL string, o Options) (forge.Repository, error) {
	root, name, err := forge.ParseURL(cloneURL)
	if err != nil {
		return nil, err
	}
	isGitea, err := runsGitea(ctx, root, o.Transport)
	if err != nil {
		return nil, err
	}
	if isGitea {
		client, err := gitea.New(gitea.Options{URL: root.String(), Token: o.Token, Login: o.Login, Transport: o.Transport})
		if err != nil {
			return nil, err
		}
		return client.Repository(name), nil
	}
	client, err := github.New(github.Options{URL: githubAPI(root), Token: o.Token, Login: o.Login, Transport: o.Transport})
	if err != nil {
		return nil, err
	}
	return client.Repository(name), nil
}

// githubAPI is where GitHub and GitHub Enterprise have their API.
func githubAPI(root *url.URL) string {
	if strings.EqualFold(root.Host, "github.com") {
		return github.DefaultURL
	}
	return root.JoinPath("api", "v3").String() + "/"
}

// runsGitea asks for what Gitea and Forgejo answer without a token, and GitHub
// does not have. The token is not sent: the host is not known yet.
func runsGitea(ctx context.Context, root *url.URL, transport http.RoundTripper) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	address := root.JoinPath("api", "v1", "version").String()
	op := "find out what software the forge at " + root.String() + " runs"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return false, forge.FromTransport(op, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as needed
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500 {
		return false, forge.FromHTTP(op, resp.StatusCode, 0, errors.New(resp.Status))
	}
	var answer struct{ Version string }
	err = json.NewDecoder(io.LimitReader(resp.Body, 4<<10)).Decode(&answer)
	return resp.StatusCode == http.StatusOK && err == nil && answer.Version != "", nil
}
