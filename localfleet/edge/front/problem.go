package front

import (
	"encoding/json"
	"errors"
	"net/http"
)

// problem is an error with what a client is told. Its body has the shape of the registry API's errors,
// which registry clients print and people can read.
type problem struct {
	status  int
	code    string
	message string
}

func (p *problem) Error() string { return p.message }

func writeError(w http.ResponseWriter, r *http.Request, err error) {
	var p *problem
	if !errors.As(err, &p) {
		p = &problem{http.StatusInternalServerError, "UNKNOWN", err.Error()}
	}
	body, err := json.Marshal(map[string]any{"errors": []any{map[string]any{"code": p.code, "message": p.message}}})
	if err != nil {
		http.Error(w, p.message, p.status)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n')) // the client is gone: nobody to tell
	}
}
