package api

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ProblemContentType is the media type of RFC 9457.
const ProblemContentType = "application/problem+json"

// The types of problem that a caller may want to tell apart. They are names,
// not addresses: nothing is served there (RFC 9457, section 3.1.1, allows it).
const (
	TypeInvalidRequest = "urn:omnivision:problem:invalid-request"
	TypeBusy           = "urn:omnivision:problem:busy"
	TypeUnavailable    = "urn:omnivision:problem:worker-unavailable"
	TypeInternal       = "urn:omnivision:problem:internal"
	TypeClientGone     = "urn:omnivision:problem:client-gone"
)

// StatusClientClosedRequest is what logs and metrics say when the caller left;
// it never travels, since nobody is there to read it.
const StatusClientClosedRequest = 499

// Problem is an error for the caller, as RFC 9457 has it.
type Problem struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail,omitempty"` // what to do next
	RequestID string       `json:"request_id,omitempty"`
	Errors    []FieldError `json:"errors,omitempty"`

	// RetryAfter becomes the Retry-After header, in whole seconds.
	RetryAfter time.Duration `json:"-"`
	// Err is the cause. It goes to the log and never to the caller.
	Err error `json:"-"`
}

// FieldError names one field of the request and says what it must be.
type FieldError struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Title)
	for _, e := range p.Errors {
		fmt.Fprintf(&b, "; %s %s", e.Field, e.Detail)
	}
	if p.Err != nil {
		fmt.Fprintf(&b, ": %v", p.Err)
	}
	return b.String()
}

func (p *Problem) Unwrap() error { return p.Err }

// Invalid is the answer to a request with bad fields.
func Invalid(fields ...FieldError) *Problem {
	sentences := make([]string, len(fields))
	for i, f := range fields {
		sentences[i] = f.Field + " " + f.Detail
	}
	return &Problem{
		Type: TypeInvalidRequest, Title: "The request is not a valid generation", Status: http.StatusBadRequest,
		Detail: strings.Join(sentences, "; ") + ".", Errors: fields,
	}
}

// TooLarge is the answer to a body beyond the limit.
func TooLarge(limit int64) *Problem {
	return &Problem{
		Type: TypeInvalidRequest, Title: "The request body is too large", Status: http.StatusRequestEntityTooLarge,
		Detail: fmt.Sprintf("Send at most %d bytes.", limit),
	}
}
