// Package gitea runs the local fleet's forge: a real Gitea, set up so that what
// it says is what production's forge would say. Its addresses are production's
// (https://github.com/), whoever asks; inside the fleet that name leads to it.
//
// It holds the fleet's own repositories, pushed from the working tree, and
// upstream's at their tags; it sends signed webhooks and runs workflows. It
// reports to nobody and looks nothing up outside.
//
// Every function may be repeated, and picks up what an earlier call, killed at
// any point, left behind.
package gitea

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
)

// Admin is the fleet's administrator, and the one who may push to a protected
// branch: it stands for the person whose working tree the fleet runs.
const Admin = "omnivision-admin"

// startLimit is how long Gitea may take to be ready: it is up in 2 s on an idle
// machine.
const startLimit = 2 * time.Minute

// Config says how a Gitea is run.
type Config struct {
	Supervisor *process.Supervisor
	Name       string // of the daemon; empty is gitea
	Program    string // Gitea's binary
	Assets     string // what WriteAssets wrote
	DataDir    string // belongs to this Gitea alone
	NetNS      string // name of the network namespace; empty is the machine's own
	Address    string // IP:PORT inside the namespace
	RootURL    string // address that it gives for itself; empty is https://github.com/
	UID, GID   uint32 // Gitea refuses to be root
	CAFile     string // certificate authorities that its webhooks trust; empty are the system's
}

// Server is a Gitea that runs.
type Server struct {
	config Config
	http   *http.Client
}

// Start configures Gitea, starts it unless it runs, and waits until it answers.
func Start(ctx context.Context, c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("start gitea: %w", err)
	}
	s := &Server{
		config: c,
		http: &http.Client{
			Timeout:   30 * time.Second,
			Transport: &http.Transport{DialContext: netns.Dialer(c.NetNS), MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second},
		},
	}
	ini, err := c.prepare()
	if err != nil {
		return nil, fmt.Errorf("configure gitea: %w", err)
	}
	spec := process.Spec{
		Name: c.Name, Path: c.Program, Args: []string{"web", "--config", c.iniPath()},
		Env: c.environment(), Dir: c.workPath(), NetNS: c.NetNS, UID: c.UID, GID: c.GID,
		Inputs: []string{ini},
	}
	if _, err := c.Supervisor.Start(ctx, spec); err != nil {
		return nil, err
	}
	if err := c.Supervisor.Wait(ctx, c.Name, startLimit, s.healthy); err != nil {
		return nil, fmt.Errorf("wait until gitea answers at %s: %w", s.URL()+"api/healthz", err)
	}
	return s, nil
}

// complete fills in the defaults and refuses what cannot work.
func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = "gitea"
	}
	if c.RootURL == "" {
		c.RootURL = "https://github.com/"
	}
	if !strings.HasSuffix(c.RootURL, "/") {
		c.RootURL += "/"
	}
	switch {
	case c.Supervisor == nil:
		return errors.New("no supervisor is given to run it")
	case c.UID == 0:
		return errors.New("it refuses to run as root: give another user id")
	case c.DataDir == "":
		return errors.New("no data directory is given")
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("address %q: give IP:PORT: %w", c.Address, err)
	}
	if _, err := os.Stat(c.Program); err != nil {
		return fmt.Errorf("its program is missing: %w; build or load the engines", err)
	}
	if _, err := os.Stat(filepath.Join(c.Assets, "templates")); err != nil {
		return fmt.Errorf("its assets are missing: %w; build or load the engines", err)
	}
	return nil
}

// URL is Gitea's own address, which is reachable inside its network namespace.
func (s *Server) URL() string { return "http://" + s.config.Address + "/" }

// RootURL is the address that Gitea gives for itself.
func (s *Server) RootURL() string { return s.config.RootURL }

// Transport carries requests to Gitea from any network namespace.
func (s *Server) Transport() http.RoundTripper { return s.http.Transport }

// Stop ends Gitea.
func (s *Server) Stop(ctx context.Context) error {
	return s.config.Supervisor.Stop(ctx, s.config.Name)
}

func (s *Server) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.call(ctx, http.MethodGet, "/api/healthz", nobody, nil, nil)
}
