package issuer

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is what the issuers' process serves. It holds the names of files with secrets, and no secret.
type Config struct {
	// StateDir holds the key.
	StateDir string        `json:"stateDir"`
	Actions  ActionsConfig `json:"actions"`
	People   PeopleConfig  `json:"people"`
}

// ActionsConfig is the substitute for GitHub's issuer.
type ActionsConfig struct {
	// URL is the issuer's name; empty is production's.
	URL string `json:"url,omitempty"`
	// Listen is a literal IP and port, where the front leads the URL's host to.
	Listen string `json:"listen"`
	// ForgeURL is Gitea's own address.
	ForgeURL string `json:"forgeURL"`
	// ForgeTokenFile holds the token of an administrator, RuntimeSecretFile what the forge signs its jobs' tokens
	// with (JWT_SECRET_URI).
	ForgeTokenFile    string `json:"forgeTokenFile"`
	RuntimeSecretFile string `json:"runtimeSecretFile"`
}

// PeopleConfig is the substitute for Sigstore's own issuer.
type PeopleConfig struct {
	URL    string `json:"url,omitempty"`
	Listen string `json:"listen"`
	// Socket is a path that only root may open.
	Socket string `json:"socket"`
}

func (c Config) complete() Config {
	if c.Actions.URL == "" {
		c.Actions.URL = ActionsURL
	}
	if c.People.URL == "" {
		c.People.URL = PeopleURL
	}
	return c
}

func (c Config) validate() error {
	for name, address := range map[string]string{"actions.listen": c.Actions.Listen, "people.listen": c.People.Listen} {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return fmt.Errorf("%s is %q: want a literal IP and port", name, address)
		}
	}
	if u, err := url.Parse(c.Actions.ForgeURL); err != nil || u.Host == "" {
		return fmt.Errorf("actions.forgeURL is %q: want the forge's address", c.Actions.ForgeURL)
	}
	for name, path := range map[string]string{
		"stateDir": c.StateDir, "people.socket": c.People.Socket,
		"actions.forgeTokenFile": c.Actions.ForgeTokenFile, "actions.runtimeSecretFile": c.Actions.RuntimeSecretFile,
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s is %q: want an absolute path", name, path)
		}
	}
	return nil
}

// ReadConfig reads and validates a configuration file.
func ReadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading the issuers' configuration: %w", err)
	}
	config, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("reading the issuers' configuration %s: %w", path, err)
	}
	return config, nil
}

func parseConfig(data []byte) (Config, error) {
	var config Config
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		return Config{}, err
	}
	config = config.complete()
	return config, config.validate()
}

// Run serves the issuers of a configuration file until ctx is done.
func Run(ctx context.Context, configPath string) error {
	config, err := ReadConfig(configPath)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	key, err := LoadOrCreateKey(config.StateDir)
	if err != nil {
		return err
	}
	actions, err := config.actions(key, log)
	if err != nil {
		return err
	}
	people, err := New(config.People.URL, key)
	if err != nil {
		return err
	}
	socket, err := listenSocket(ctx, config.People.Socket)
	if err != nil {
		return err
	}
	defer socket.Close() //nolint:errcheck // closed by its server before
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return listenAndServe(ctx, config.Actions.Listen, actions.Handler()) })
	group.Go(func() error { return listenAndServe(ctx, config.People.Listen, people.Handler()) })
	group.Go(func() error { return serve(ctx, socket, People{people, log}.SocketHandler(actions)) })
	return group.Wait()
}

func (c Config) actions(key *Key, log *slog.Logger) (Actions, error) {
	issuer, err := New(c.Actions.URL, key)
	if err != nil {
		return Actions{}, err
	}
	forge := Gitea{URL: c.Actions.ForgeURL, Token: func() (string, error) { return readSecret(c.Actions.ForgeTokenFile) }}
	secret := func() ([]byte, error) { return readRuntimeSecret(c.Actions.RuntimeSecretFile) }
	return Actions{Issuer: issuer, Jobs: forge, Secret: secret, Log: log}, nil
}

// Secrets are read each time: the forge may get another one while this runs.
func readSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a secret of the forge: %w", err)
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" {
		return "", fmt.Errorf("the forge's secret %s is empty", path)
	}
	return secret, nil
}

// readRuntimeSecret decodes as Gitea does (modules/generate).
func readRuntimeSecret(path string) ([]byte, error) {
	text, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	secret, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(secret) != 32 {
		return nil, fmt.Errorf("the forge's secret %s is not 32 bytes in base64url", path)
	}
	return secret, nil
}

// listenSocket makes a socket that only its owner can open. What a kill left in its place is removed.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the people's socket: %w", err)
	}
	// Made where nobody knows it and given its name once it is closed to others.
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("making the people's socket: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", temporary)
	if err != nil {
		return nil, fmt.Errorf("making the people's socket: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it has another name by then
	if err := errors.Join(os.Chmod(temporary, 0o600), os.Rename(temporary, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("making the people's socket: %w", err), listener.Close())
	}
	return listener, nil
}

func listenAndServe(ctx context.Context, address string, handler http.Handler) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serving an issuer: %w", err)
	}
	return serve(ctx, listener, handler)
}

func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10,
	}
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx) // what is still under way then is cut off by the process' end
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving an issuer at %s: %w", listener.Addr(), err)
	}
	return nil
}

// PersonToken asks the socket for a token of a person.
func PersonToken(ctx context.Context, socket, audience, email string) (string, error) {
	query := url.Values{"audience": {audience}, "email": {email}}
	return askSocket(ctx, socket, http.MethodGet, "/token?"+query.Encode(), nil)
}

// JobToken asks the socket for a token of a workflow's job that does not run.
func JobToken(ctx context.Context, socket, audience string, job Job) (string, error) {
	body, err := json.Marshal(job)
	if err != nil {
		return "", err
	}
	return askSocket(ctx, socket, http.MethodPost, "/job?"+url.Values{"audience": {audience}}.Encode(), bytes.NewReader(body))
}

func askSocket(ctx context.Context, socket, method, path string, body io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://issuer"+path, body)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("asking the fleet's issuer for a token: %w; is the fleet up, and are you root?", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var answer struct{ Value, Message string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
		return "", fmt.Errorf("reading the answer of the fleet's issuer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("asking the fleet's issuer for a token: %s: %s", resp.Status, answer.Message)
	}
	return answer.Value, nil
}
