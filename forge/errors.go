package forge

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code classifies an error. It is an error itself, so that
// errors.Is(err, forge.NotFound) asks for it.
type Code string

// The codes. A caller retries on NotReady, RateLimited and Unavailable.
const (
	NotFound     Code = "not found"
	Conflict     Code = "conflict"     // the object exists, or another state than expected
	NotReady     Code = "not ready"    // checks or approvals are missing
	RateLimited  Code = "rate limited" // see Error.RetryAfter
	Unauthorized Code = "unauthorized" // no or a wrong token, or one without the right
	Invalid      Code = "invalid"      // the forge refuses what was asked for
	Unavailable  Code = "unavailable"  // the forge cannot be reached, or fails
)

func (c Code) Error() string { return string(c) }

// Error is the one error type of the forge's drivers.
type Error struct {
	Code Code
	Op   string // what was being done, to what: open pull request omnivision/omnivision-gitops release/x
	// RetryAfter is how long to wait after RateLimited; zero if the forge did
	// not say.
	RetryAfter time.Duration
	Next       string // what to do about it
	Err        error  // what the forge said
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Op, e.Code)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (again in %s)", e.RetryAfter.Round(time.Second))
	}
	if e.Next != "" {
		fmt.Fprintf(&b, "; %s", e.Next)
	}
	return b.String()
}

// Unwrap returns what the forge said.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, forge.NotFound) and its like work.
func (e *Error) Is(target error) bool {
	code, ok := target.(Code)
	return ok && code == e.Code
}

// RetryAfter returns how long the forge asked to wait, if err says so.
func RetryAfter(err error) (time.Duration, bool) {
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		return e.RetryAfter, true
	}
	return 0, false
}

// FromHTTP classifies an HTTP status that a forge answered with. The next step
// is the one that holds for every forge; a driver may set a better one.
func FromHTTP(op string, status int, retryAfter time.Duration, err error) *Error {
	e := &Error{Op: op, Err: err, RetryAfter: retryAfter}
	switch {
	case status == 401:
		e.Code, e.Next = Unauthorized, "give a token that the forge knows and that has not expired"
	case status == 403:
		e.Code, e.Next = Unauthorized, "give the token the right to do this, on this repository"
	case status == 404 || status == 410:
		e.Code, e.Next = NotFound, "check the name; a forge also answers so when the token may not see the object"
	case status == 405:
		e.Code, e.Next = NotReady, "wait for the required checks and approvals, then try again"
	case status == 409 || status == 412:
		e.Code, e.Next = Conflict, "read the current state and try again"
	case status == 429:
		e.Code, e.Next = RateLimited, "wait as long as the forge asks for"
	case status >= 400 && status < 500:
		e.Code, e.Next = Invalid, "correct the request as the forge's answer says"
	default:
		e.Code, e.Next = Unavailable, "check that the forge is up and reachable, then try again"
	}
	return e
}
