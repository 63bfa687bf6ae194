package sigstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
)

// Fulcio and the timestamp authority are asked for what only they can have, so that another program at the port is
// not taken for them.

// FulcioReady asks for the certificates that Fulcio vouches with.
func (s Server) FulcioReady(ctx context.Context) error {
	s = s.complete()
	body, err := s.get(ctx, s.Listen.Fulcio, "/api/v2/trustBundle")
	if err != nil {
		return err
	}
	var bundle struct {
		Chains []struct {
			Certificates []string `json:"certificates"`
		} `json:"chains"`
	}
	if err := json.Unmarshal(body, &bundle); err != nil {
		return fmt.Errorf("%s is not Fulcio: %w", s.Listen.Fulcio, err)
	}
	for _, chain := range bundle.Chains {
		return s.isChain(fulcioChain, []byte(strings.Join(chain.Certificates, "\n")))
	}
	return errors.New("no certificate comes from Fulcio")
}

// RekorReady asks whether Rekor serves, and looks at the head of the log, which this version writes to its folder and
// does not serve.
func (s Server) RekorReady(ctx context.Context) error {
	s = s.complete()
	if _, err := s.get(ctx, s.Listen.Rekor, "/healthz"); err != nil {
		return err
	}
	head, err := os.ReadFile(filepath.Join(s.logDir(), "checkpoint"))
	if err != nil {
		return fmt.Errorf("reading the head of the log: %w", err)
	}
	if origin, _, _ := strings.Cut(string(head), "\n"); origin != s.Hosts.Rekor {
		return fmt.Errorf("the log in %s is that of %q, not of %s: a log cannot be renamed", s.logDir(), origin, s.Hosts.Rekor)
	}
	return nil
}

// TimestampReady asks for the certificates of the timestamp authority.
func (s Server) TimestampReady(ctx context.Context) error {
	s = s.complete()
	body, err := s.get(ctx, s.Listen.Timestamp, "/api/v1/timestamp/certchain")
	if err != nil {
		return err
	}
	return s.isChain(timestampChain, body)
}

func (s Server) isChain(name string, body []byte) error {
	want, err := readChain(s.keyFile(name))
	if err != nil {
		return err
	}
	have, err := parseChain(body)
	if err != nil {
		return fmt.Errorf("reading the certificates that the server answers with: %w", err)
	}
	for i := range want {
		if !have[i].Equal(want[i]) {
			return fmt.Errorf("the server vouches with other keys than those of %s: is another program listening there?", s.keyFile(name))
		}
	}
	return nil
}

func (s Server) get(ctx context.Context, address, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: netns.Dialer(s.NetNS), DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s to %s", address, resp.Status, path)
	}
	return body, err
}
