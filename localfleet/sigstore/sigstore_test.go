package sigstore

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/process"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// engine finds a program. Where the engines' folder is named, as `make test` does, it must be there.
func engine(t testing.TB, name string) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if named || os.Getenv("CI") != "" {
			t.Fatalf("%s is not in OMNIVISION_ENGINES: %v", name, err)
		}
		t.Skipf("%s is not built: run 'make engines'", name)
	}
	return path
}

// started is a Sigstore that runs on ports of its own.
func started(t *testing.T, change func(*Server)) (Server, *process.Supervisor) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sigstore")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	s := Server{
		Programs: Programs{Fulcio: engine(t, "fulcio"), Rekor: engine(t, "rekor-server"), Timestamp: engine(t, "timestamp-server")},
		Dir:      filepath.Join(dir, "sigstore"),
		Listen: Addresses{
			Fulcio: freeport.Address(t), Rekor: freeport.Address(t), Timestamp: freeport.Address(t), RekorGRPC: freeport.Address(t), FulcioGRPC: freeport.Address(t),
			FulcioMetrics: freeport.Port(t), RekorMetrics: freeport.Port(t),
		},
	}
	if change != nil {
		change(&s)
	}
	sup := &process.Supervisor{Dir: filepath.Join(dir, "daemons")}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		check(t, s.Stop(ctx, sup))
		if t.Failed() {
			for _, name := range []string{Fulcio, Rekor, Timestamp} {
				t.Logf("%s:\n%s", name, sup.LogTail(name, 20))
			}
		}
	})
	check(t, s.Start(t.Context(), sup))
	return s, sup
}

func TestPreparingAgainChangesNothing(t *testing.T) {
	s := Server{Dir: filepath.Join(t.TempDir(), "sigstore"), Programs: Programs{Fulcio: "/bin/true", Rekor: "/bin/true", Timestamp: "/bin/true"}}
	first, err := s.Prepare()
	check(t, err)
	read := func() string {
		var all []byte
		for _, path := range []string{s.TrustedRootFile(), s.SigningConfigFile(), s.fulcioConfigFile()} {
			data, err := os.ReadFile(path)
			check(t, err)
			all = append(all, data...)
		}
		return string(all)
	}
	before := read()
	second, err := s.Prepare()
	check(t, err)
	if !reflect.DeepEqual(first, second) {
		t.Errorf("the servers would be started anew:\n%+v\n%+v", first, second)
	}
	if before != read() {
		t.Error("the files for clients differ")
	}
	for _, name := range []string{fulcioKey, rekorKey, timestampKey} {
		if info, err := os.Stat(s.keyFile(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

func TestFilesForClientsNameProduction(t *testing.T) {
	s := Server{Dir: filepath.Join(t.TempDir(), "sigstore"), Programs: Programs{Fulcio: "/bin/true", Rekor: "/bin/true", Timestamp: "/bin/true"}}
	_, err := s.Prepare()
	check(t, err)
	config, err := root.NewSigningConfigFromPath(s.SigningConfigFile())
	check(t, err)
	for what, tc := range map[string]struct {
		have []root.Service
		url  string
	}{
		"Fulcio":    {config.FulcioCertificateAuthorityURLs(), "https://fulcio.sigstore.dev"},
		"Rekor":     {config.RekorLogURLs(), "https://log2025-1.rekor.sigstore.dev"},
		"timestamp": {config.TimestampAuthorityURLs(), "https://timestamp.sigstore.dev/api/v1/timestamp"},
		"people":    {config.OIDCProviderURLs(), "https://oauth2.sigstore.dev/auth"},
	} {
		if len(tc.have) != 1 || tc.have[0].URL != tc.url || !tc.have[0].ValidAtTime(time.Now()) {
			t.Errorf("%s: %+v", what, tc.have)
		}
	}
	trusted, err := root.NewTrustedRootFromPath(s.TrustedRootFile())
	check(t, err)
	if len(trusted.FulcioCertificateAuthorities()) != 1 || len(trusted.RekorLogs()) != 1 || len(trusted.TimestampingAuthorities()) != 1 || len(trusted.CTLogs()) != 0 {
		t.Error("the trusted root is not of one of each")
	}
}

// A kill while the keys are made leaves a folder that has not its name yet.
func TestHalfMadeKeysAreMadeAnew(t *testing.T) {
	s := Server{Dir: filepath.Join(t.TempDir(), "sigstore"), Programs: Programs{Fulcio: "/bin/true", Rekor: "/bin/true", Timestamp: "/bin/true"}}
	check(t, os.MkdirAll(s.keysDir()+".new", 0o700))
	check(t, os.WriteFile(filepath.Join(s.keysDir()+".new", fulcioKey), []byte("half"), 0o600))
	_, err := s.Prepare()
	check(t, err)
	if _, err := os.Stat(s.keysDir() + ".new"); !os.IsNotExist(err) {
		t.Errorf("the half is still there: %v", err)
	}
}

func TestPrepareNamesWhatIsWrong(t *testing.T) {
	programs := Programs{Fulcio: "/bin/true", Rekor: "/bin/true", Timestamp: "/bin/true"}
	for name, tc := range map[string]struct {
		server Server
		want   string
	}{
		"relative folder": {Server{Dir: "x", Programs: programs}, "absolute path"},
		"no program":      {Server{Dir: t.TempDir()}, "build or load the engines"},
		"host name":       {Server{Dir: t.TempDir(), Programs: programs, Listen: Addresses{Rekor: "localhost:1"}}, "literal IP"},
		"URL as host":     {Server{Dir: t.TempDir(), Programs: programs, Hosts: Hosts{Rekor: "https://x"}}, "without scheme"},
		"unknown issuer":  {Server{Dir: t.TempDir(), Programs: programs, Issuers: []Issuer{{URL: "https://x", Kind: "dogs"}}}, "dogs"},
	} {
		if _, err := tc.server.Prepare(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func TestReadyIsNotFooledByAnotherServer(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	address := strings.TrimPrefix(other.URL, "http://")
	s := Server{Dir: t.TempDir(), Listen: Addresses{Fulcio: address, Rekor: address, Timestamp: address}}
	for name, ready := range map[string]func(context.Context) error{Fulcio: s.FulcioReady, Rekor: s.RekorReady, Timestamp: s.TimestampReady} {
		if ready(t.Context()) == nil {
			t.Errorf("%s is taken for ready", name)
		}
	}
}
