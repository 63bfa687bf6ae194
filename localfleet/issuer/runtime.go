package issuer

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// JobID names a job of a run.
type JobID struct{ Run, Job int64 }

// runtimeClaims are those of a job's ACTIONS_RUNTIME_TOKEN in Gitea 1.26, services/actions/auth.go.
type runtimeClaims struct {
	jwt.Claims
	Scope string `json:"scp"`
	RunID int64
	JobID int64
}

// bearer returns the token that a request carries.
func bearer(r *http.Request) (string, error) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", errors.New("no token: give the job's ACTIONS_RUNTIME_TOKEN as Authorization: Bearer …")
	}
	return token, nil
}

// parseRuntimeToken says which job a token was lent to. The secret also signs tokens for other ends (packages,
// downloads): the scope tells them apart.
func parseRuntimeToken(token string, secret []byte, now time.Time) (JobID, error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return JobID{}, fmt.Errorf("the runtime token is none: %w", err)
	}
	var c runtimeClaims
	if err := parsed.Claims(secret, &c); err != nil {
		return JobID{}, fmt.Errorf("the runtime token was not made by this forge: %w", err)
	}
	if c.Expiry == nil {
		return JobID{}, errors.New("the runtime token has no end")
	}
	if err := c.ValidateWithLeeway(jwt.Expected{Time: now}, 30*time.Second); err != nil {
		return JobID{}, fmt.Errorf("the runtime token is not valid now: %w", err)
	}
	if c.RunID <= 0 || c.JobID <= 0 || c.Scope != fmt.Sprintf("Actions.Results:%d:%d", c.RunID, c.JobID) {
		return JobID{}, errors.New("the runtime token is not a job's")
	}
	return JobID{Run: c.RunID, Job: c.JobID}, nil
}
