// Package registry runs the CNCF distribution registry as the local fleet's store of images and charts.
//
// Goal: one real registry that survives a kill at any moment, behind the edge, which gives it the names of
// all production registries. Limits: it listens where only the edge reaches it and authenticates nobody;
// the edge decides who may write.
package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
	"go.yaml.in/yaml/v3"
)

// Name is the daemon's name at its supervisor.
const Name = "registry"

// DefaultAddress is where the registry listens, inside its network namespace.
const DefaultAddress = "127.0.0.1:5000"

const readyTimeout = 20 * time.Second

// Server is one registry.
type Server struct {
	// Binary is the path of the distribution registry's program.
	Binary string
	// Dir holds its configuration and, below data, what it stores.
	Dir string
	// NetNS is the network namespace that it listens in; empty is the machine's own.
	NetNS string
	// Address is a literal IP and port; empty is DefaultAddress.
	Address string
	// UID and GID are who it runs as, and who Dir belongs to.
	UID, GID uint32
}

func (s Server) address() string {
	if s.Address == "" {
		return DefaultAddress
	}
	return s.Address
}

func (s Server) configFile() string { return filepath.Join(s.Dir, "config.yaml") }
func (s Server) secretFile() string { return filepath.Join(s.Dir, "http-secret") }

// DataDir is where the registry keeps its blobs.
func (s Server) DataDir() string { return filepath.Join(s.Dir, "data") }

// Start writes the configuration, starts the registry unless it runs with the same one already, and waits
// until it answers.
func (s Server) Start(ctx context.Context, sup *process.Supervisor) error {
	spec, err := s.Prepare()
	if err != nil {
		return err
	}
	if _, err := sup.Start(ctx, spec); err != nil {
		return fmt.Errorf("starting the registry: %w", err)
	}
	return sup.Wait(ctx, Name, readyTimeout, s.Ready)
}

// Prepare writes the configuration and returns what the registry is started with.
func (s Server) Prepare() (process.Spec, error) {
	if err := s.validate(); err != nil {
		return process.Spec{}, err
	}
	for _, dir := range []string{s.Dir, s.DataDir()} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return process.Spec{}, fmt.Errorf("creating the registry's folder: %w", err)
		}
		if err := s.owner().Give(dir); err != nil {
			return process.Spec{}, err
		}
	}
	secret, err := s.secret()
	if err != nil {
		return process.Spec{}, err
	}
	config, err := s.config(secret)
	if err != nil {
		return process.Spec{}, err
	}
	if err := s.owner().Replace(s.configFile(), config, 0o600); err != nil {
		return process.Spec{}, err
	}
	return process.Spec{
		Name:  Name,
		Path:  s.Binary,
		Args:  []string{"serve", s.configFile()},
		NetNS: s.NetNS,
		UID:   s.UID,
		GID:   s.GID,
		// Without these the registry tries to send its traces to a collector on localhost, for ever.
		Env:       []string{"OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none", "OTEL_SDK_DISABLED=true"},
		Inputs:    []string{string(config)},
		StopGrace: 5 * time.Second,
	}, nil
}

// ForgetTags takes all tags off a repository, named by its production reference without
// one. Images stay, by their digests.
func (s Server) ForgetTags(repository string) error {
	if !filepath.IsLocal(filepath.FromSlash(repository)) {
		return fmt.Errorf("forgetting the tags of %q: it is no repository", repository)
	}
	tags := filepath.Join(s.DataDir(), "docker", "registry", "v2", "repositories", filepath.FromSlash(repository), "_manifests", "tags")
	if err := os.RemoveAll(tags); err != nil {
		return fmt.Errorf("forgetting the tags of %s: %w", repository, err)
	}
	return nil
}

// Shrink empties a registry that holds more than limit bytes. It must not run, and whatever is
// wanted of it must come from elsewhere again.
func (s Server) Shrink(limit int64) error {
	var size int64
	err := filepath.WalkDir(s.DataDir(), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // nothing was ever stored
		return nil
	}
	if err == nil && size > limit {
		err = os.RemoveAll(s.DataDir())
	}
	if err != nil {
		return fmt.Errorf("emptying the registry above %d bytes: %w", limit, err)
	}
	return nil
}

// Ready asks the registry for the API's version.
func (s Server) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	transport := &http.Transport{DialContext: netns.Dialer(s.NetNS), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("asking the registry for its API version: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Docker-Distribution-Api-Version"), "registry/2") {
		return fmt.Errorf("%s answers %s and is not a registry: is another program listening there?", s.address(), resp.Status)
	}
	return nil
}

func (s Server) validate() error {
	if _, err := netip.ParseAddrPort(s.address()); err != nil {
		return fmt.Errorf("registry address %q: want a literal IP and port", s.address())
	}
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("registry folder %q: want an absolute path", s.Dir)
	}
	info, err := os.Stat(s.Binary)
	if err != nil {
		return fmt.Errorf("the registry's program: %w", err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("the registry's program %s is not executable", s.Binary)
	}
	return nil
}

// secret signs the state of uploads under way: with the same one after a restart they go on.
func (s Server) secret() (string, error) {
	data, err := os.ReadFile(s.secretFile())
	if err == nil && len(data) == 64 {
		return string(data), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the registry's secret: %w", err)
	}
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("making the registry's secret: %w", err)
	}
	secret := hex.EncodeToString(raw)
	return secret, s.owner().Replace(s.secretFile(), []byte(secret), 0o600)
}

type dict = map[string]any

// config is what https://distribution.github.io/distribution/about/configuration/ describes.
func (s Server) config(secret string) ([]byte, error) {
	data, err := yaml.Marshal(dict{
		"version": 0.1,
		"log": dict{
			"level":     "warn",
			"formatter": "json",
			"accesslog": dict{"disabled": true}, // the edge keeps one, of bounded size
		},
		// No blob descriptor cache: looking up a local file is cheap, and a cache that outlives a garbage
		// collection claims blobs that are gone.
		"storage": dict{
			"filesystem": dict{"rootdirectory": s.DataDir()},
			"delete":     dict{"enabled": true},
			"maintenance": dict{
				"uploadpurging": dict{"enabled": true, "age": "24h", "interval": "6h", "dryrun": false},
			},
		},
		"http": dict{
			"addr":         s.address(),
			"secret":       secret,
			"relativeurls": true, // it does not know the names it is reached by
			"draintimeout": "3s",
			"headers":      dict{"X-Content-Type-Options": []string{"nosniff"}},
		},
		"catalog": dict{"maxentries": 1000},
		"health": dict{
			"storagedriver": dict{"enabled": true, "interval": "10s", "threshold": 3},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the registry's configuration: %w", err)
	}
	return data, nil
}

func (s Server) owner() process.Owner { return process.Owner{UID: s.UID, GID: s.GID} }
