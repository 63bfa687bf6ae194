// Package buildkit runs BuildKit's daemon for the local fleet: the same builds as in
// production, from the same Dockerfiles, pushed to the registries under their own names.
//
// Goal: one daemon whose cache outlives the fleet, and whose builds end with it. Limits: it
// runs as root, as it must to make containers, and whoever may open its socket can build as
// root: the socket is for root and the group of the runner.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/process"
)

// Name is the daemon's name at its supervisor.
const Name = "buildkitd"

const readyTimeout = 30 * time.Second

// Server is one daemon.
type Server struct {
	Binary string // path of buildkitd
	Dir    string // of its state, cache included
	Run    string // directory of its configuration and socket
	// NetNS and MountNS are where it and its builds run; they reach what is reached there.
	NetNS   string
	MountNS int
	GID     uint32 // group that may use the socket
	Cgroup  string // of the containers, below the supervisor's root
	// CacheBytes is what is kept for later builds.
	CacheBytes int64
}

// Socket is the file that the daemon listens on.
func (s Server) Socket() string { return filepath.Join(s.Run, "buildkitd.sock") }

// Address is the socket as clients name it.
func (s Server) Address() string { return "unix://" + s.Socket() }

// Start starts the daemon unless it runs with the same configuration, and waits until it
// listens.
func (s Server) Start(ctx context.Context, sup *process.Supervisor) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("starting BuildKit: %w", err)
	}
	for _, dir := range []string{s.Dir, s.Run} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("starting BuildKit: %w", err)
		}
	}
	config := s.config()
	file := filepath.Join(s.Run, "buildkitd.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return fmt.Errorf("starting BuildKit: %w", err)
	}
	_, err := sup.Start(ctx, process.Spec{
		Name: Name, Path: s.Binary, Args: []string{"--config", file}, NetNS: s.NetNS, MountNS: s.MountNS,
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.Run, "OTEL_SDK_DISABLED=true"},
		Inputs: []string{config}, StopGrace: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	return sup.Wait(ctx, Name, readyTimeout, func(ctx context.Context) error {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", s.Socket())
		if err != nil {
			return fmt.Errorf("waiting for its socket: %w", err)
		}
		return conn.Close()
	})
}

func (s Server) validate() error {
	for _, path := range []string{s.Dir, s.Run} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "\"\\\n") {
			return fmt.Errorf("folder %q: want an absolute path without quotes", path)
		}
	}
	if info, err := os.Stat(s.Binary); err != nil || info.IsDir() {
		return errors.Join(fmt.Errorf("its program %s is missing: build or load the engines", s.Binary), err)
	}
	return nil
}

// config is what https://github.com/moby/buildkit/blob/v0.34.2/docs/buildkitd.toml.md
// describes. Builds have the daemon's own network: there is no other to give them.
func (s Server) config() string {
	return fmt.Sprintf(`root = %q

[grpc]
  address = [%q]
  uid = 0
  gid = %d

[worker.oci]
  enabled = true
  networkMode = "host"
  defaultCgroupParent = %q
  gc = true
  maxUsedSpace = "%dB"

[worker.containerd]
  enabled = false
`, s.Dir, s.Address(), s.GID, s.Cgroup, s.CacheBytes)
}
