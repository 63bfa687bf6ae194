package gitea

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// credential is who sends a request.
type credential struct {
	token    string
	user     string
	password string
}

var nobody credential

func (c credential) apply(req *http.Request) {
	switch {
	case c.token != "":
		req.Header.Set("Authorization", "token "+c.token)
	case c.user != "":
		req.SetBasicAuth(c.user, c.password)
	}
}

// answerError is an answer that is no success.
type answerError struct {
	Status  int
	Message string
	request string
}

func (e *answerError) Error() string {
	return fmt.Sprintf("%s: %d %s", e.request, e.Status, e.Message)
}

// answered reports whether err is an answer with one of the statuses.
func answered(err error, statuses ...int) bool {
	var answer *answerError
	if !errors.As(err, &answer) {
		return false
	}
	for _, status := range statuses {
		if answer.Status == status {
			return true
		}
	}
	return false
}

// call sends one request of Gitea's API; path begins with /api/.
func (s *Server) call(ctx context.Context, method, path string, who credential, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(s.URL(), "/")+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	who.apply(req)
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end below
	data, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		return &answerError{Status: resp.StatusCode, Message: explain(data), request: method + " " + path}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func explain(body []byte) string {
	var answer struct{ Message string }
	if json.Unmarshal(body, &answer) == nil && answer.Message != "" {
		return answer.Message
	}
	return strings.TrimSpace(string(body[:min(len(body), 200)]))
}
