package issuer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
)

// Name is the daemon's name at its supervisor.
const Name = "issuer"

const readyTimeout = 20 * time.Second

// Daemon is the process that runs the issuers.
type Daemon struct {
	// Program calls Run with the path of a configuration file, which is its last argument behind Args.
	Program string
	Args    []string
	// NetNS is the network namespace that it listens in; empty is the machine's own.
	NetNS  string
	Config Config
}

func (d Daemon) configFile() string { return filepath.Join(d.Config.StateDir, "config.json") }

// Start writes the configuration, starts the issuers unless they run with it already, and waits until they answer.
func (d Daemon) Start(ctx context.Context, sup *process.Supervisor) error {
	d.Config = d.Config.complete()
	if err := d.Config.validate(); err != nil {
		return fmt.Errorf("configuring the issuers: %w", err)
	}
	data, err := json.MarshalIndent(d.Config, "", "  ")
	if err != nil {
		return fmt.Errorf("configuring the issuers: %w", err)
	}
	if err := os.MkdirAll(d.Config.StateDir, 0o700); err != nil {
		return fmt.Errorf("configuring the issuers: %w", err)
	}
	if err := replace(d.configFile(), data); err != nil {
		return fmt.Errorf("configuring the issuers: %w", err)
	}
	spec := process.Spec{
		Name: Name, Path: d.Program, Args: append(append([]string{}, d.Args...), d.configFile()), NetNS: d.NetNS,
		Inputs: []string{string(data)}, StopGrace: 3 * time.Second,
	}
	if _, err := sup.Start(ctx, spec); err != nil {
		return fmt.Errorf("starting the issuers: %w", err)
	}
	return sup.Wait(ctx, Name, readyTimeout, d.Ready)
}

// Ready asks both issuers for what they say of themselves.
func (d Daemon) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c := d.Config.complete()
	for listen, issuer := range map[string]string{c.Actions.Listen: c.Actions.URL, c.People.Listen: c.People.URL} {
		if err := d.speaks(ctx, listen, issuer); err != nil {
			return err
		}
	}
	_, err := os.Stat(c.People.Socket)
	return err
}

func (d Daemon) speaks(ctx context.Context, listen, issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+u.Path+"/.well-known/openid-configuration", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: netns.Dialer(d.NetNS), DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var said struct{ Issuer string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&said); err != nil || said.Issuer != issuer {
		return fmt.Errorf("%s answers %s and is not the issuer %s: is another program listening there?", listen, resp.Status, issuer)
	}
	return nil
}
