// Package github drives GitHub, and GitHub Enterprise, by Google's client for
// its REST API.
//
// Checks of GitHub's own kind (check runs, which every Actions job is) are
// among the statuses; a token needs the permission checks:read for them. A
// GitHub App's token comes from [AppToken].
package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	sdk "github.com/google/go-github/v88/github"

	"github.com/omnivision/omnivision/forge"
)

// DefaultURL is the API of github.com.
const DefaultURL = "https://api.github.com/"

// Options say where the forge is and who calls.
type Options struct {
	URL   string // of the API; empty is DefaultURL. For GitHub Enterprise: https://HOST/api/v3/
	Token forge.TokenSource
	// Login is the name under which the token's comments appear, such as
	// github-actions[bot]. If empty the forge is asked, which it answers for
	// personal tokens but not for an app's.
	Login string
	// Transport carries the requests; nil is http.DefaultTransport.
	Transport http.RoundTripper
	// Timeout of one request; zero is 30 seconds.
	Timeout time.Duration
}

// Client talks to one GitHub.
type Client struct {
	api *sdk.Client

	mu    sync.Mutex
	login string
}

// New returns a client. It sends no request.
func New(o Options) (*Client, error) {
	if o.URL == "" {
		o.URL = DefaultURL
	}
	if !strings.HasSuffix(o.URL, "/") {
		o.URL += "/"
	}
	root, err := url.Parse(o.URL)
	if err != nil || root.Host == "" {
		return nil, fmt.Errorf("github address %q: give one such as %s", o.URL, DefaultURL)
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	api, err := sdk.NewClient(
		sdk.WithURLs(&o.URL, &o.URL),
		sdk.WithUserAgent("omnivision"),
		sdk.WithHTTPClient(&http.Client{
			Transport: forge.Authorize(o.Transport, "Bearer", root.Host, o.Token),
			Timeout:   o.Timeout,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("github client for %s: %w", o.URL, err)
	}
	return &Client{api: api, login: o.Login}, nil
}

// Repository returns one repository. It sends no request.
func (c *Client) Repository(name forge.Name) *Repository {
	return &Repository{client: c, name: name}
}

// Repository is one repository on GitHub.
type Repository struct {
	client *Client
	name   forge.Name
}

var _ forge.Repository = (*Repository)(nil)

// Name implements forge.Repository.
func (r *Repository) Name() forge.Name { return r.name }

// whoami returns the login under which the token's comments appear.
func (c *Client) whoami(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login == "" {
		user, _, err := c.api.Users.Get(ctx, "")
		if err != nil {
			return "", err
		}
		c.login = user.GetLogin()
	}
	return c.login, nil
}

// wrap makes err a forge.Error that says what was being done in which repository.
func (r *Repository) wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	var have *forge.Error
	if errors.As(err, &have) {
		return err
	}
	return classify(fmt.Sprintf(format, args...)+" in "+r.name.String(), err)
}

// classify follows https://docs.github.com/rest/using-the-rest-api/troubleshooting-the-rest-api.
func classify(op string, err error) *forge.Error {
	var primary *sdk.RateLimitError
	if errors.As(err, &primary) {
		return &forge.Error{
			Code: forge.RateLimited, Op: op, Err: errors.New(primary.Message),
			RetryAfter: max(time.Second, time.Until(primary.Rate.Reset.Time)),
			Next:       "wait until the limit is reset, or use a GitHub App, whose limit is higher",
		}
	}
	var secondary *sdk.AbuseRateLimitError
	if errors.As(err, &secondary) {
		// GitHub asks for a minute where it names no time.
		wait := time.Minute
		if secondary.RetryAfter != nil && *secondary.RetryAfter > 0 {
			wait = *secondary.RetryAfter
		}
		return &forge.Error{
			Code: forge.RateLimited, Op: op, Err: errors.New(secondary.Message), RetryAfter: wait,
			Next: "wait as long as GitHub asks for",
		}
	}
	var answer *sdk.ErrorResponse
	if !errors.As(err, &answer) || answer.Response == nil {
		return forge.FromTransport(op, err)
	}
	e := forge.FromHTTP(op, answer.Response.StatusCode, 0, errors.New(said(answer)))
	if answer.Response.StatusCode == http.StatusUnprocessableEntity {
		switch {
		case alreadyExists(answer):
			e.Code, e.Next = forge.Conflict, "use the one that exists"
		case strings.HasPrefix(answer.Message, "No commit found"):
			e.Code, e.Next = forge.NotFound, "push the commit first"
		}
	}
	return e
}

// said puts GitHub's message and its details into one line.
func said(answer *sdk.ErrorResponse) string {
	text := []string{answer.Message}
	for _, detail := range answer.Errors {
		if detail.Message != "" {
			text = append(text, detail.Message)
		} else {
			text = append(text, detail.Error())
		}
	}
	return fmt.Sprintf("%d: %s", answer.Response.StatusCode, strings.Join(text, ", "))
}

// alreadyExists is how GitHub answers a second pull request for the same
// branches: with the code "custom" and a message.
func alreadyExists(answer *sdk.ErrorResponse) bool {
	for _, detail := range answer.Errors {
		if detail.Code == "already_exists" || strings.Contains(detail.Message, "already exists") {
			return true
		}
	}
	return false
}
