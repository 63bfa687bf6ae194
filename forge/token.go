package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// TokenSource returns the token for the next request. It is asked each time,
// since tokens that a cluster mounts or an app is issued are replaced while a
// program runs.
type TokenSource func(ctx context.Context) (string, error)

// StaticToken is a token that never changes.
func StaticToken(token string) TokenSource {
	return func(context.Context) (string, error) { return token, nil }
}

// TokenFile is a token in a file that may be replaced, such as a mounted Secret.
func TokenFile(path string) TokenSource {
	return func(context.Context) (string, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read forge token: %w", err)
		}
		token := strings.TrimSpace(string(data))
		if token == "" {
			return "", fmt.Errorf("read forge token: %s is empty", path)
		}
		return token, nil
	}
}

// Authorize returns a transport that sends the source's token with each
// request under the given scheme ("Bearer", "token"). A nil source sends none.
// The token goes to the host that the client was made for and to no other:
// forges redirect downloads to other hosts.
func Authorize(base http.RoundTripper, scheme, host string, source TokenSource) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return authorized{base: base, scheme: scheme, host: host, source: source}
}

type authorized struct {
	base   http.RoundTripper
	scheme string
	host   string
	source TokenSource
}

func (a authorized) RoundTrip(req *http.Request) (*http.Response, error) {
	if a.source == nil || req.URL.Host != a.host {
		return a.base.RoundTrip(req)
	}
	token, err := a.source(req.Context())
	if err != nil {
		return nil, &tokenError{err}
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", a.scheme+" "+token)
	return a.base.RoundTrip(req)
}

type tokenError struct{ err error }

func (e *tokenError) Error() string { return e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

// FromTransport classifies an error that came instead of an answer.
func FromTransport(op string, err error) *Error {
	var token *tokenError
	if errors.As(err, &token) {
		return &Error{Code: Unauthorized, Op: op, Err: token.err, Next: "put a valid token where the program is told to read it"}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: Unavailable, Op: op, Err: err, Next: "give it more time, or check that the forge answers"}
	}
	return &Error{Code: Unavailable, Op: op, Err: err, Next: "check that the forge is up and reachable, then try again"}
}
