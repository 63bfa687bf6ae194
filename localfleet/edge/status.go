package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/omnivision/omnivision/localfleet/edge/forward"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/edge/loadbalancer"
)

// Substitutes are what the edge stands in for, as `status` lists it.
var Substitutes = []string{
	"names: the production hosts resolve to the edge inside the fleet, under the fleet's own authority",
	"registries: one CNCF distribution registry holds the repositories of every registry host, readable without credentials",
	loadbalancer.Substitute,
}

// Status is what the edge does at this moment.
type Status struct {
	// Ready is true when every listener is open. A cluster or a server behind the edge that is not up yet
	// does not count: the edge is what they wait for, not the other way round.
	Ready bool `json:"ready"`
	// Waiting names what is not open yet, and why.
	Waiting []string  `json:"waiting,omitempty"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// ConfigDigest is that of the file that is in force; ConfigError is why a later one is not.
	ConfigDigest string           `json:"configDigest"`
	ConfigError  string           `json:"configError,omitempty"`
	Front        []ListenerStatus `json:"front"`
	Routes       []RouteStatus    `json:"routes"`
	Forwards     []forward.Status `json:"forwards"`
	Clusters     []ClusterStatus  `json:"clusters"`
	Substitutes  []string         `json:"substitutes"`
}

// ListenerStatus is one of the front's listeners.
type ListenerStatus struct {
	Listen    string `json:"listen"`
	NetNS     string `json:"netns,omitempty"`
	Listening bool   `json:"listening"`
	Error     string `json:"error,omitempty"`
}

// RouteStatus is where a production name leads.
type RouteStatus struct {
	Host   string     `json:"host"`
	Kind   front.Kind `json:"kind"`
	Target string     `json:"target"`
}

// ClusterStatus is how far the edge knows a cluster.
type ClusterStatus struct {
	Name          string                    `json:"name"`
	Connected     bool                      `json:"connected"`
	Error         string                    `json:"error,omitempty"`
	LoadBalancers []loadbalancer.Assignment `json:"loadBalancers,omitempty"`
}

// controlHandler answers on the control socket: GET /readyz, GET /status, POST /reload.
func (s *server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		st := s.status()
		if !st.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		writeJSON(w, map[string]any{"ready": st.Ready, "waiting": st.Waiting})
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.status()) })
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if err := s.reload(); err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			writeJSON(w, map[string]string{"error": err.Error()})
			return
		}
		writeJSON(w, map[string]string{})
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client is gone: nobody to tell
}

// ReadStatus asks the edge whose state is in stateDir.
func ReadStatus(ctx context.Context, stateDir string) (Status, error) {
	var st Status
	code, body, err := control(ctx, stateDir, http.MethodGet, "/status")
	if err != nil {
		return Status{}, err
	}
	if code != http.StatusOK {
		return Status{}, fmt.Errorf("the edge's status: HTTP %d: %s", code, bytes.TrimSpace(body))
	}
	if err := json.Unmarshal(body, &st); err != nil {
		return Status{}, fmt.Errorf("the edge's status: %w", err)
	}
	return st, nil
}

// Ready returns nil when every listener of the edge is open, and else says which are not.
func Ready(ctx context.Context, stateDir string) error {
	code, body, err := control(ctx, stateDir, http.MethodGet, "/readyz")
	if err != nil {
		return err
	}
	if code == http.StatusOK {
		return nil
	}
	var answer struct{ Waiting []string }
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("the edge is not ready: HTTP %d", code)
	}
	return fmt.Errorf("the edge is not ready: %q", answer.Waiting)
}

// Reload makes the edge read its configuration file again, as SIGHUP does, and returns when it is in force.
func Reload(ctx context.Context, stateDir string) error {
	code, body, err := control(ctx, stateDir, http.MethodPost, "/reload")
	if err != nil {
		return err
	}
	if code == http.StatusOK {
		return nil
	}
	var answer struct{ Error string }
	if err := json.Unmarshal(body, &answer); err == nil && answer.Error != "" {
		return errors.New(answer.Error)
	}
	return fmt.Errorf("reloading the edge: HTTP %d", code)
}

func control(ctx context.Context, stateDir, method, path string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socketPath(stateDir))
		},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://edge"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, nil, fmt.Errorf("asking the edge (%s): %w; is it running?", socketPath(stateDir), err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the edge's answer: %w", err)
	}
	return resp.StatusCode, body, nil
}

// noProxy ignores the environment's proxy.
func noProxy(*http.Request) (*url.URL, error) { return nil, nil }
