package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/serve"
)

// maxBody is above the worker's own limit, so that the worker's message about
// it is the one that is seen.
const maxBody = 64 << 10

// generate passes a generation to the worker and the animation back, as it
// comes.
func (s *Server) generate(w http.ResponseWriter, r *http.Request) error {
	body, err := s.body(w, r)
	if err != nil {
		return err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return &api.Problem{
			Type: api.TypeBusy, Title: "Too many generations are under way", Status: http.StatusServiceUnavailable,
			Detail:     fmt.Sprintf("This ui passes on %d at a time. Try again after the number of seconds in Retry-After.", s.config.MaxGenerations),
			RetryAfter: 2 * time.Second,
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.config.GenerationTimeout)
	defer cancel()
	start := time.Now()
	response, err := s.ask(ctx, r, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	s.metrics.answered(response.StatusCode, time.Since(start))
	copyHeaders(w.Header(), response.Header) // a refusal, too, names the worker that refused
	if response.StatusCode != http.StatusOK {
		return problemFrom(response)
	}
	w.WriteHeader(http.StatusOK)
	if err := s.relay(w, response.Body, cancel); err != nil {
		return fmt.Errorf("passing on the animation: %w", err)
	}
	s.metrics.finished(time.Since(start))
	return nil
}

// body returns the JSON for the worker: the caller's own, or a form's turned
// into it.
func (s *Server) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Now().Add(bodyTimeout))
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = connection.SetReadDeadline(time.Time{})
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, api.TooLarge(tooLarge.Limit)
	case err != nil:
		return nil, &api.Problem{
			Type: api.TypeInvalidRequest, Title: "The request body could not be read", Status: http.StatusBadRequest,
			Detail: "The connection ended or stalled before the whole body had arrived. Send it again.", Err: err,
		}
	case isForm(r):
		return fromForm(raw)
	}
	return raw, nil
}

// fromForm keeps numbers that are none as text, so that the worker refuses the
// field by its name.
func fromForm(raw []byte) ([]byte, error) {
	values, err := url.ParseQuery(string(raw))
	if err != nil {
		return nil, &api.Problem{
			Type: api.TypeInvalidRequest, Title: "The form could not be read", Status: http.StatusBadRequest,
			Detail: "Send it as a browser does: application/x-www-form-urlencoded.", Err: err,
		}
	}
	order := map[string]any{}
	for name, all := range values {
		value := strings.TrimSpace(all[0])
		if value == "" && name != "prompt" {
			continue // an empty field of a form is one that was left out
		}
		order[name] = value
		if n, err := strconv.ParseUint(value, 10, 64); err == nil && name != "prompt" && name != "size" {
			order[name] = n
		}
	}
	return json.Marshal(order)
}

func (s *Server) ask(ctx context.Context, r *http.Request, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("asking the worker: %w", err)
	}
	contentType := r.Header.Get("Content-Type")
	if isForm(r) {
		contentType = "application/json"
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", api.ContentType+", "+api.ProblemContentType)
	request.Header.Set(api.HeaderRequestID, serve.RequestID(r.Context()))
	response, err := s.client.Do(request)
	if err != nil {
		s.metrics.unanswered()
		return nil, unavailable(err)
	}
	return response, nil
}

func unavailable(err error) *api.Problem {
	p := &api.Problem{
		Type: api.TypeUnavailable, Title: "No worker of this region answers", Status: http.StatusBadGateway,
		Detail:     "Try again in a few seconds. If it stays so, the region has no ready worker.",
		RetryAfter: 3 * time.Second, Err: err,
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		p.Title, p.Status = "The worker did not answer in time", http.StatusGatewayTimeout
	}
	return p
}

// passed are the headers of the worker that its caller is meant to see.
var passed = []string{
	"Content-Type", "Content-Disposition", "Cache-Control", "X-Accel-Buffering",
	api.HeaderSeed, api.HeaderFrames, api.HeaderModel, api.HeaderDevice,
	api.PrefixWorker + "Region", api.PrefixWorker + "Cluster", api.PrefixWorker + "Version",
	api.PrefixWorker + "Commit", api.PrefixWorker + "Digest",
}

func copyHeaders(to, from http.Header) {
	for _, name := range passed {
		to.Del(name) // what the worker does not say must not be said for it
		if v := from.Get(name); v != "" {
			to.Set(name, v)
		}
	}
}

// problemFrom passes the worker's own problem on. Whatever else answers in the
// worker's stead, such as a proxy, is a bad gateway.
func problemFrom(response *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	p := &api.Problem{}
	if err == nil && kind == api.ProblemContentType {
		err = json.Unmarshal(raw, p)
	}
	if err != nil || p.Title == "" || response.StatusCode < 400 {
		return unavailable(fmt.Errorf("it answered %s with %q", response.Status, kind))
	}
	p.Status = response.StatusCode
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds >= 0 {
		p.RetryAfter = time.Duration(min(seconds, 3600)) * time.Second
	}
	return p
}

// relay copies each part as soon as it comes. A worker that goes silent, and a
// caller that stops reading, each end it.
func (s *Server) relay(w http.ResponseWriter, from io.Reader, cancel func()) error {
	connection := http.NewResponseController(w)
	defer func() { _ = connection.SetWriteDeadline(time.Time{}) }()
	stall := time.AfterFunc(s.config.StallTimeout, cancel)
	defer stall.Stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		stall.Stop()
		if n > 0 {
			_ = connection.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := w.Write(buf[:n]); err != nil {
				return callerGone(err)
			}
			if err := connection.Flush(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
				return callerGone(err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &api.Problem{Type: api.TypeUnavailable, Title: "The worker broke off", Status: http.StatusBadGateway, Err: err}
		}
		stall.Reset(s.config.StallTimeout)
	}
}

func callerGone(err error) error {
	return &api.Problem{Type: api.TypeClientGone, Title: "The caller stopped reading", Status: api.StatusClientClosedRequest, Err: err}
}

func isForm(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/x-www-form-urlencoded"
}

func acceptsHTML(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}
