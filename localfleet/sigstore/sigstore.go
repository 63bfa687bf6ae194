// Package sigstore runs the local fleet's own Sigstore: Fulcio, which certifies who signs; Rekor, the log of
// what was signed; and a timestamp authority, which witnesses when. They are the real servers under their
// production names, which lead to them by the fleet's front; so what signs and verifies does as in production.
//
// Goal: keys, log and root that survive a kill at any moment, and the two files that clients need of them,
// trusted_root.json and signing_config.json. Limits: keys are files, there is one instance of each server and
// no log of certificates, so a verifier that is given this root must not demand a certificate's timestamp.
// Whoever can read the folder can sign as anybody; it is a substitute, and trusted by nothing but the fleet.
package sigstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/localfleet/issuer"
	"github.com/omnivision/omnivision/localfleet/process"
)

// Names of the daemons at their supervisor.
const (
	Fulcio    = "sigstore/fulcio"
	Rekor     = "sigstore/rekor"
	Timestamp = "sigstore/timestamp"
)

const readyTimeout = 30 * time.Second

// Server is one Sigstore.
type Server struct {
	Programs Programs
	// Dir holds keys, configuration and, below log, the transparency log.
	Dir string
	// NetNS is the network namespace that the servers listen in; empty is the machine's own. The
	// timestamp authority takes port 2112 there for its metrics, whatever it is told.
	NetNS string
	// MountNS is the process whose mount namespace Fulcio joins, so that the issuers' names lead to
	// the fleet; 0 is the machine's own.
	MountNS int
	// UID and GID are who the servers run as, and who Dir belongs to.
	UID, GID uint32
	// Hosts are the names that the servers are reached by; empty ones are production's.
	Hosts Hosts
	// Listen is where the front reaches them.
	Listen Addresses
	// Issuers are whose tokens Fulcio takes; empty are DefaultIssuers.
	Issuers []Issuer
	// CAFile holds the certificate authorities that Fulcio trusts when it asks an issuer for its keys;
	// empty are the system's.
	CAFile string
	// Env is added to Fulcio's environment.
	Env []string
}

// Programs are the paths of the servers' programs.
type Programs struct{ Fulcio, Rekor, Timestamp string }

// Hosts are host names. Rekor signs its own into every checkpoint, and verifiers compare it with the host name
// of its URL.
type Hosts struct{ Fulcio, Rekor, Timestamp string }

// Addresses are literal IPs and ports. Empty ones are on the loopback.
type Addresses struct {
	Fulcio, Rekor, Timestamp string
	// FulcioGRPC and RekorGRPC are where the halves of each meet.
	FulcioGRPC, RekorGRPC string
	// FulcioMetrics and RekorMetrics are ports.
	FulcioMetrics, RekorMetrics uint16
}

// Kinds of issuers.
const (
	Workflows = "workflows" // tokens of GitHub Actions' shape
	People    = "people"    // tokens with an email address
)

// Issuer is an OIDC issuer.
type Issuer struct {
	URL  string
	Kind string
}

// DefaultIssuers are the two of the public Sigstore that the fleet has substitutes for.
var DefaultIssuers = []Issuer{
	{URL: issuer.ActionsURL, Kind: Workflows},
	{URL: issuer.PeopleURL, Kind: People},
}

func orElse[T comparable](value *T, standard T) {
	var zero T
	if *value == zero {
		*value = standard
	}
}

// complete fills in what is left empty.
func (s Server) complete() Server {
	orElse(&s.Hosts.Fulcio, "fulcio.sigstore.dev")
	orElse(&s.Hosts.Rekor, "log2025-1.rekor.sigstore.dev")
	orElse(&s.Hosts.Timestamp, "timestamp.sigstore.dev")
	orElse(&s.Listen.Fulcio, "127.0.0.1:5551")
	orElse(&s.Listen.Rekor, "127.0.0.1:5552")
	orElse(&s.Listen.Timestamp, "127.0.0.1:5553")
	orElse(&s.Listen.RekorGRPC, "127.0.0.1:5554")
	orElse(&s.Listen.FulcioGRPC, "127.0.0.1:5555")
	orElse(&s.Listen.FulcioMetrics, 5556)
	orElse(&s.Listen.RekorMetrics, 5557)
	if len(s.Issuers) == 0 {
		s.Issuers = DefaultIssuers
	}
	return s
}

// TrustedRootFile is the trusted root: what a verifier needs.
func (s Server) TrustedRootFile() string { return filepath.Join(s.Dir, "trusted_root.json") }

// SigningConfigFile says where the services are: what a signer needs besides.
func (s Server) SigningConfigFile() string { return filepath.Join(s.Dir, "signing_config.json") }

// Backends are the addresses that the front leads each host name to.
func (s Server) Backends() map[string]string {
	s = s.complete()
	return map[string]string{s.Hosts.Fulcio: s.Listen.Fulcio, s.Hosts.Rekor: s.Listen.Rekor, s.Hosts.Timestamp: s.Listen.Timestamp}
}

// Start makes the keys and configuration that are missing, starts the servers that do not run with them already,
// and waits until they answer with these keys.
func (s Server) Start(ctx context.Context, sup *process.Supervisor) error {
	specs, err := s.Prepare()
	if err != nil {
		return err
	}
	for _, spec := range specs {
		if _, err := sup.Start(ctx, spec); err != nil {
			return fmt.Errorf("starting %s: %w", spec.Name, err)
		}
	}
	ready := map[string]func(context.Context) error{Fulcio: s.FulcioReady, Rekor: s.RekorReady, Timestamp: s.TimestampReady}
	group, ctx := errgroup.WithContext(ctx)
	for name, check := range ready {
		group.Go(func() error { return sup.Wait(ctx, name, readyTimeout, check) })
	}
	return group.Wait()
}

// Stop ends the servers.
func (s Server) Stop(ctx context.Context, sup *process.Supervisor) error {
	return errors.Join(sup.Stop(ctx, Fulcio), sup.Stop(ctx, Rekor), sup.Stop(ctx, Timestamp))
}

// Prepare writes keys, configuration and the clients' files, and returns what the servers are started with.
func (s Server) Prepare() ([]process.Spec, error) {
	s = s.complete()
	if err := s.validate(); err != nil {
		return nil, err
	}
	for _, dir := range []string{s.Dir, s.logDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("creating Sigstore's folder: %w", err)
		}
		if err := s.owner().Give(dir); err != nil {
			return nil, err
		}
	}
	keys, err := s.ensureKeys()
	if err != nil {
		return nil, err
	}
	config, err := s.fulcioConfig()
	if err != nil {
		return nil, err
	}
	if err := s.owner().Replace(s.fulcioConfigFile(), config, 0o644); err != nil {
		return nil, err
	}
	if err := s.writeTrust(keys); err != nil {
		return nil, err
	}
	inputs := []string{keys.fingerprint()}
	return []process.Spec{s.fulcioSpec(append(inputs, string(config))), s.rekorSpec(inputs), s.timestampSpec(inputs)}, nil
}

func (s Server) logDir() string           { return filepath.Join(s.Dir, "log") }
func (s Server) fulcioConfigFile() string { return filepath.Join(s.Dir, "fulcio.yaml") }

func (s Server) environment() []string { return []string{"HOME=" + s.Dir, "LANG=C.UTF-8"} }

func (s Server) spec(name, program string, args, inputs []string) process.Spec {
	return process.Spec{
		Name: name, Path: program, Args: args, Env: s.environment(), NetNS: s.NetNS, UID: s.UID, GID: s.GID,
		Inputs: inputs, StopGrace: 5 * time.Second,
	}
}

// fulcioSpec: the password is a flag that Fulcio insists on; the key is not encrypted, since a password beside it
// would protect nothing. The legacy socket has no file, which a kill would leave in the way.
func (s Server) fulcioSpec(inputs []string) process.Spec {
	host, port := split(s.Listen.Fulcio)
	grpcHost, grpcPort := split(s.Listen.FulcioGRPC)
	spec := s.spec(Fulcio, s.Programs.Fulcio, []string{
		"serve", "--host=" + host, "--port=" + port, "--grpc-host=" + grpcHost, "--grpc-port=" + grpcPort,
		"--legacy-unix-domain-socket=@omnivision-fulcio-" + grpcPort,
		fmt.Sprintf("--metrics-port=%d", s.Listen.FulcioMetrics), "--config-path=" + s.fulcioConfigFile(),
		"--ca=fileca", "--fileca-cert=" + s.keyFile(fulcioChain), "--fileca-key=" + s.keyFile(fulcioKey), "--fileca-key-passwd=none", "--fileca-watch=false",
		"--ct-log-url=", "--log_type=prod",
	}, inputs)
	spec.MountNS = s.MountNS
	if s.CAFile != "" {
		spec.Env = append(spec.Env, "SSL_CERT_FILE="+s.CAFile)
	}
	spec.Env = append(spec.Env, s.Env...)
	return spec
}

// rekorSpec: a signer waits until its entry is in a published checkpoint, so these come often.
func (s Server) rekorSpec(inputs []string) process.Spec {
	host, port := split(s.Listen.Rekor)
	grpcHost, grpcPort := split(s.Listen.RekorGRPC)
	return s.spec(Rekor, s.Programs.Rekor, []string{
		"serve", "--hostname=" + s.Hosts.Rekor, "--http-address=" + host, "--http-port=" + port,
		"--grpc-address=" + grpcHost, "--grpc-port=" + grpcPort, fmt.Sprintf("--http-metrics-port=%d", s.Listen.RekorMetrics),
		"--storage-dir=" + s.logDir(), "--signer-filepath=" + s.keyFile(rekorKey),
		"--batch-max-age=50ms", "--checkpoint-interval=100ms", "--log-level=warn",
	}, inputs)
}

// timestampSpec: its clock is the machine's, which is not compared with others over the internet.
func (s Server) timestampSpec(inputs []string) process.Spec {
	host, port := split(s.Listen.Timestamp)
	return s.spec(Timestamp, s.Programs.Timestamp, []string{
		"serve", "--scheme=http", "--host=" + host, "--port=" + port, "--disable-ntp-monitoring", "--log-type=prod",
		"--timestamp-signer=file", "--file-signer-key-path=" + s.keyFile(timestampKey), "--certificate-chain-path=" + s.keyFile(timestampChain),
	}, inputs)
}

func (s Server) validate() error {
	for _, address := range []string{s.Listen.Fulcio, s.Listen.Rekor, s.Listen.Timestamp, s.Listen.FulcioGRPC, s.Listen.RekorGRPC} {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return fmt.Errorf("address %q of Sigstore: want a literal IP and port", address)
		}
	}
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("the folder %q of Sigstore: want an absolute path", s.Dir)
	}
	for _, host := range []string{s.Hosts.Fulcio, s.Hosts.Rekor, s.Hosts.Timestamp} {
		if strings.ContainsAny(host, "/:") {
			return fmt.Errorf("the host name %q of Sigstore: want a name without scheme and port", host)
		}
	}
	for _, program := range []string{s.Programs.Fulcio, s.Programs.Rekor, s.Programs.Timestamp} {
		info, err := os.Stat(program)
		if err != nil {
			return fmt.Errorf("a program of Sigstore: %w; build or load the engines", err)
		}
		if info.IsDir() || info.Mode()&0o111 == 0 {
			return fmt.Errorf("the program %s of Sigstore is not executable", program)
		}
	}
	return nil
}

// split takes apart an address that validate has checked.
func split(address string) (host, port string) {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return "", ""
	}
	return parsed.Addr().String(), fmt.Sprint(parsed.Port())
}

func (s Server) owner() process.Owner { return process.Owner{UID: s.UID, GID: s.GID} }

func (s Server) writeIfChanged(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return s.owner().Replace(path, data, 0o644)
}
