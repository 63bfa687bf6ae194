// Package gitea drives a Gitea forge by its official client.
//
// Gitea has no deployments: they are commit statuses whose context begins with
// deployment/. Its required checks are patterns; the names given to Protect are
// quoted, so that they match themselves and nothing else.
package gitea

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	sdk "code.gitea.io/sdk/gitea"

	"github.com/omnivision/omnivision/forge"
)

// Options say where the forge is and who calls.
type Options struct {
	URL   string // of the forge, such as https://github.com/
	Token forge.TokenSource
	// Login is the name of the token's user. If empty the forge is asked,
	// which needs a token with the scope read:user.
	Login string
	// Transport carries the requests; nil is http.DefaultTransport.
	Transport http.RoundTripper
	// Timeout of one request; zero is 30 seconds.
	Timeout time.Duration
}

// Client talks to one Gitea.
type Client struct {
	root *url.URL
	http *http.Client

	mu    sync.Mutex
	login string
}

// New returns a client. It sends no request.
func New(o Options) (*Client, error) {
	root, err := url.Parse(o.URL)
	if err != nil || root.Host == "" {
		return nil, fmt.Errorf("gitea address %q: give one such as https://git.example.com/", o.URL)
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	transport := forge.Authorize(o.Transport, "token", root.Host, o.Token)
	return &Client{
		root:  root,
		http:  &http.Client{Transport: failing{transport}, Timeout: o.Timeout},
		login: o.Login,
	}, nil
}

// Repository returns one repository. It sends no request.
func (c *Client) Repository(name forge.Name) *Repository {
	return &Repository{client: c, name: name}
}

// Repository is one repository on a Gitea.
type Repository struct {
	client *Client
	name   forge.Name
}

var _ forge.Repository = (*Repository)(nil)

// Name implements forge.Repository.
func (r *Repository) Name() forge.Name { return r.name }

// api returns the official client for one call: it keeps its context in itself.
func (c *Client) api(ctx context.Context) *sdk.Client {
	client, err := sdk.NewClient(c.root.String(), sdk.SetContext(ctx), sdk.SetHTTPClient(c.http), sdk.SetGiteaVersion(""))
	if err != nil { // only a version check can fail, and there is none
		panic("gitea client without version check: " + err.Error())
	}
	return client
}

// whoami returns the token's user.
func (c *Client) whoami(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login == "" {
		user, _, err := c.api(ctx).GetMyUserInfo()
		if err != nil {
			return "", err
		}
		c.login = user.UserName
	}
	return c.login, nil
}

// refusal is an answer that is no success.
type refusal struct {
	status     int
	message    string
	retryAfter time.Duration
}

func (r *refusal) Error() string {
	if r.message == "" {
		return fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	}
	return fmt.Sprintf("%d: %s", r.status, r.message)
}

// failing turns answers that are no success into errors: the official client
// drops their message in some calls, and their headers in all.
type failing struct{ base http.RoundTripper }

func (f failing) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := f.base.RoundTrip(req)
	if err != nil || resp.StatusCode < 400 {
		return resp, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or not, it is over
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	return nil, &refusal{status: resp.StatusCode, message: message(body), retryAfter: retryAfter(resp.Header)}
}

func message(body []byte) string {
	var answer struct {
		Message string   `json:"message"`
		Errors  []string `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return strings.TrimSpace(string(body[:min(len(body), 200)]))
	}
	if text := strings.Join(append([]string{answer.Message}, answer.Errors...), ", "); text != "" {
		return strings.TrimSuffix(text, ", ")
	}
	return ""
}

// retryAfter reads https://www.rfc-editor.org/rfc/rfc9110#field.retry-after,
// which proxies before a Gitea send.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// wrap makes err a forge.Error that says what was being done in which repository.
func (r *Repository) wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	op := fmt.Sprintf(format, args...) + " in " + r.name.String()
	var have *forge.Error
	if errors.As(err, &have) {
		return err
	}
	var no *refusal
	if !errors.As(err, &no) {
		return forge.FromTransport(op, err)
	}
	e := forge.FromHTTP(op, no.status, no.retryAfter, no)
	switch {
	case no.status == http.StatusMethodNotAllowed && strings.Contains(no.message, "not allowed to merge"):
		e.Code, e.Next = forge.Unauthorized, "let the token's user merge in the branch's protection"
	case no.status == http.StatusLocked:
		e.Code, e.Next = forge.Unauthorized, "the repository is archived: unarchive it"
	}
	return e
}

// notIfEmpty makes the error of a read NotFound when the repository has no
// commit: Gitea answers some of those by an error of its own.
func (r *Repository) notIfEmpty(ctx context.Context, err error) error {
	if !errors.Is(err, forge.Unavailable) {
		return err
	}
	repo, _, repoErr := r.client.api(ctx).GetRepo(r.name.Owner, r.name.Repository)
	var e *forge.Error
	if repoErr == nil && repo.Empty && errors.As(err, &e) {
		e.Code, e.Err, e.Next = forge.NotFound, errors.New("the repository is empty"), "push a commit to it first"
	}
	return err
}

// do sends a request that the official client has no method for.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.root.String(), "/")+"/api/v1"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end below
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// path returns the API's path of something in the repository.
func (r *Repository) path(parts ...string) string {
	escaped := []string{"", "repos", url.PathEscape(r.name.Owner), url.PathEscape(r.name.Repository)}
	for _, part := range parts {
		escaped = append(escaped, url.PathEscape(part))
	}
	return strings.Join(escaped, "/")
}
