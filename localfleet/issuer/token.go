package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/mail"
)

// Jobs knows which jobs run.
type Jobs interface {
	// Running returns the facts of a job, or an error that wraps ErrNotRunning.
	Running(ctx context.Context, id JobID) (Job, error)
}

// Errors that mean that a job gets no token, rather than that the forge could not be asked.
var (
	ErrNotRunning   = errors.New("the job does not run")
	ErrNotPermitted = errors.New("the job may have no identity token")
)

// Actions lends jobs their identity.
type Actions struct {
	*Issuer
	Jobs Jobs
	// Secret is Gitea's general signing secret, which signs what jobs are lent.
	Secret func() ([]byte, error)
	Log    *slog.Logger
}

// Handler serves discovery, and GET /token?audience=… to jobs.
func (a Actions) Handler() http.Handler {
	mux := http.NewServeMux()
	a.register(mux)
	mux.HandleFunc("GET "+a.path+"/token", answer(a.Log, a.token))
	return mux
}

func (a Actions) token(r *http.Request) (string, error) {
	presented, err := bearer(r)
	if err != nil {
		return "", refusal{http.StatusUnauthorized, err}
	}
	secret, err := a.Secret()
	if err != nil {
		return "", refusal{http.StatusInternalServerError, err}
	}
	id, err := parseRuntimeToken(presented, secret, a.now())
	if err != nil {
		return "", refusal{http.StatusUnauthorized, err}
	}
	job, err := a.Jobs.Running(r.Context(), id)
	switch {
	case errors.Is(err, ErrNotRunning), errors.Is(err, ErrNotPermitted):
		return "", refusal{http.StatusForbidden, err}
	case err != nil:
		return "", refusal{http.StatusBadGateway, err}
	}
	audience := r.URL.Query().Get("audience")
	if audience == "" {
		audience = "https://github.com/" + job.Owner // GitHub's default
	}
	token, err := a.sign(audience, job.subject(), jobLifetime, job.claims())
	if err == nil {
		a.Log.Info("lent a job its identity", "subject", job.subject(), "workflow", job.WorkflowPath, "commit", job.SHA, "run", id.Run, "job", id.Job, "audience", audience)
	}
	return token, err
}

// People gives whoever can reach it a token of any person.
type People struct {
	*Issuer
	Log *slog.Logger
}

// SocketHandler serves GET /token?audience=…&email=… and, with a [Job] in its body, POST
// /job?audience=…; it belongs behind a socket that only root may open.
func (p People) SocketHandler(actions Actions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /token", answer(p.Log, p.token))
	mux.HandleFunc("POST /job", answer(p.Log, actions.asJob))
	return mux
}

// asJob gives a token of a job that does not run: the fleet signs its first images in the
// name of the workflow that would have built them.
func (a Actions) asJob(r *http.Request) (string, error) {
	audience := r.URL.Query().Get("audience")
	if audience == "" {
		return "", refuse(http.StatusBadRequest, "no audience: for Fulcio it is sigstore")
	}
	var job Job
	decoder := json.NewDecoder(io.LimitReader(r.Body, 64<<10))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&job); err != nil {
		return "", refuse(http.StatusBadRequest, "reading the job: %w", err)
	}
	if job.Owner == "" || job.Repository == "" || job.WorkflowPath == "" || job.Ref == "" {
		return "", refuse(http.StatusBadRequest, "the job lacks its repository, workflow or ref")
	}
	token, err := a.sign(audience, job.subject(), jobLifetime, job.claims())
	if err == nil {
		a.Log.Info("gave the fleet a workflow's identity", "subject", job.subject(), "workflow", job.WorkflowPath, "commit", job.SHA, "audience", audience)
	}
	return token, err
}

func (p People) token(r *http.Request) (string, error) {
	query := r.URL.Query()
	audience, email := query.Get("audience"), query.Get("email")
	parsed, err := mail.ParseAddress(email)
	if err != nil || parsed.Address != email {
		return "", refuse(http.StatusBadRequest, "%q is no plain email address", email)
	}
	if audience == "" {
		return "", refuse(http.StatusBadRequest, "no audience: for Fulcio it is sigstore")
	}
	token, err := p.sign(audience, email, personLifetime, struct {
		Email    string `json:"email"`
		Verified bool   `json:"email_verified"`
	}{email, true})
	if err == nil {
		p.Log.Info("gave a person a token", "email", email, "audience", audience)
	}
	return token, err
}

// answer writes a token as GitHub does, and every error in one place.
func answer(log *slog.Logger, token func(*http.Request) (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		value, err := token(r)
		if err == nil {
			write(w, http.StatusOK, map[string]any{"value": value})
			return
		}
		status := http.StatusInternalServerError
		var refused refusal
		if errors.As(err, &refused) {
			status = refused.status
		}
		log.Warn("no token", "status", status, "reason", err)
		write(w, status, map[string]string{"message": err.Error()})
	}
}
