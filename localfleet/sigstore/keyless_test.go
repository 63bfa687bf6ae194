package sigstore

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/issuer"
	"github.com/omnivision/omnivision/localfleet/process"
)

var runtimeSecret = []byte("0123456789abcdef0123456789abcdef")

var job = issuer.Job{
	Owner: "omnivision", OwnerID: 3, Repository: "omnivision", RepositoryID: 5, Visibility: "public",
	Workflow: "conveyor", WorkflowPath: ".github/workflows/conveyor.yaml", Ref: "refs/heads/main",
	SHA: strings.Repeat("ab", 20), Event: "push", RunID: 7, RunNumber: 2, Attempt: 1, Actor: "ada", ActorID: 4,
}

const workflow = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"

// running is a forge on which the job runs as long as it is true.
type running bool

func (r *running) Running(context.Context, issuer.JobID) (issuer.Job, error) {
	if !*r {
		return issuer.Job{}, issuer.ErrNotRunning
	}
	return job, nil
}

// fleet is a Sigstore with its issuers, behind a front that answers for the production names.
type fleet struct {
	Server
	sup     *process.Supervisor
	front   *httptest.Server
	running running
	actions issuer.Actions
	people  issuer.People
	client  http.RoundTripper
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{running: true}
	key, err := issuer.LoadOrCreateKey(t.TempDir())
	check(t, err)
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	actions, err := issuer.New(issuer.ActionsURL, key)
	check(t, err)
	people, err := issuer.New(issuer.PeopleURL, key)
	check(t, err)
	f.actions = issuer.Actions{Issuer: actions, Jobs: &f.running, Secret: func() ([]byte, error) { return runtimeSecret, nil }, Log: quiet}
	f.people = issuer.People{Issuer: people, Log: quiet}
	authority, err := ca.LoadOrCreate(t.TempDir(), "sigstore.dev", "githubusercontent.com")
	check(t, err)
	f.startFront(t, authority)
	proxy := f.startProxy(t)
	f.Server, f.sup = started(t, func(s *Server) {
		s.CAFile, s.Env = authority.CertFile(), []string{"HTTPS_PROXY=" + proxy}
	})
	f.useFront(t, authority)
	return f
}

// startFront serves the production names over TLS, as the fleet's front does.
func (f *fleet) startFront(t *testing.T, authority *ca.Authority) {
	t.Helper()
	f.front = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Host {
		case "token.actions.githubusercontent.com":
			f.actions.Handler().ServeHTTP(w, r)
		case "oauth2.sigstore.dev":
			f.people.Handler().ServeHTTP(w, r)
		default:
			httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: f.Backends()[r.Host]}).ServeHTTP(w, r)
		}
	}))
	cert, err := authority.TLSCertificate(ca.Request{DNSNames: []string{
		"fulcio.sigstore.dev", "log2025-1.rekor.sigstore.dev", "timestamp.sigstore.dev", "oauth2.sigstore.dev", "token.actions.githubusercontent.com",
	}})
	check(t, err)
	f.front.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	f.front.StartTLS()
	t.Cleanup(f.front.Close)
}

// startProxy leads every name to the front, for Fulcio: in the fleet, names resolve to the front by themselves.
func (f *fleet) startProxy(t *testing.T) string {
	t.Helper()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, err := net.Dial("tcp", f.front.Listener.Addr().String())
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "only CONNECT", http.StatusBadGateway)
			return
		}
		from, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
		go func(r *bufio.ReadWriter) { _, _ = io.Copy(to, r); _ = to.Close() }(buffered)
		_, _ = io.Copy(from, to)
		_ = from.Close()
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL
}

// useFront leads this process' requests for names to the front. Rekor's client takes no transport, so it is the
// default one that changes.
func (f *fleet) useFront(t *testing.T, authority *ca.Authority) {
	t.Helper()
	before := http.DefaultTransport
	t.Cleanup(func() { http.DefaultTransport = before })
	transport := before.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: authority.Pool(), MinVersion: tls.VersionTLS12}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host) == nil {
			address = f.front.Listener.Addr().String()
		}
		var dialer net.Dialer
		return dialer.DialContext(ctx, network, address)
	}
	http.DefaultTransport, f.client = transport, transport
	t.Cleanup(transport.CloseIdleConnections)
}

// token is what a job is lent that presents a runtime token signed with secret.
func (f *fleet) token(t *testing.T, audience string, secret []byte) (int, string) {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: secret}, nil)
	check(t, err)
	presented, err := jwt.Signed(signer).Claims(map[string]any{"exp": time.Now().Add(time.Hour).Unix(), "scp": "Actions.Results:7:9", "RunID": 7, "JobID": 9}).Serialize()
	check(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, issuer.ActionsURL+"/token?audience="+audience, nil)
	check(t, err)
	req.Header.Set("Authorization", "Bearer "+presented)
	resp, err := f.client.RoundTrip(req)
	check(t, err)
	defer resp.Body.Close()
	var answer struct{ Value, Message string }
	check(t, json.NewDecoder(resp.Body).Decode(&answer))
	return resp.StatusCode, answer.Value + answer.Message
}

func (f *fleet) signer(t *testing.T, token string) (*sign.Signer, error) {
	t.Helper()
	config, err := root.NewSigningConfigFromPath(f.SigningConfigFile())
	check(t, err)
	return sign.Keyless(t.Context(), sign.Services{Config: config, Root: f.root(t), Transport: f.client}, token)
}

func (f *fleet) root(t *testing.T) *root.TrustedRoot {
	t.Helper()
	trusted, err := root.NewTrustedRootFromPath(f.TrustedRootFile())
	check(t, err)
	return trusted
}

func (f *fleet) policy(t *testing.T) verify.Policy {
	return verify.Policy{Root: f.root(t), Identity: verify.Identity{Subject: workflow, Issuer: issuer.ActionsURL}}
}

// release is an image of two platforms in a registry.
func release(t *testing.T, api bool) sign.Request {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(api)))
	t.Cleanup(server.Close)
	repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/omnivision-worker", name.Insecure)
	check(t, err)
	index, err := random.Index(20, 1, 2)
	check(t, err)
	check(t, remote.WriteIndex(repository.Tag("0.1.0-57"), index))
	digest, err := index.Digest()
	check(t, err)
	manifest, err := index.IndexManifest()
	check(t, err)
	when := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	request := sign.Request{
		Digest: digest.String(), Version: "0.1.0-57", Repositories: []name.Repository{repository},
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: job.SHA, Dockerfile: "cmd/worker/Dockerfile"},
	}
	for i, m := range manifest.Manifests {
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: []string{"linux/amd64", "linux/arm64"}[i], Digest: m.Digest.String(),
			SBOM: json.RawMessage(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[]}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: when, Scanned: when, Result: json.RawMessage(`{"SchemaVersion":2}`)},
		})
	}
	return request
}

func nothing(string) {}

// publish signs a release as the running job.
func (f *fleet) publish(t *testing.T, request sign.Request) {
	t.Helper()
	status, token := f.token(t, "sigstore", runtimeSecret)
	if status != http.StatusOK {
		t.Fatalf("no token: %d %s", status, token)
	}
	signer, err := f.signer(t, token)
	check(t, err)
	result, err := sign.Publish(t.Context(), signer, request, nothing)
	check(t, err)
	if want := f.policy(t).Identity; result.Signer != want {
		t.Errorf("the signer is %s, not %s", result.Signer, want)
	}
}

func (f *fleet) verifies(t *testing.T, request sign.Request) {
	t.Helper()
	for _, digest := range []string{request.Digest, request.Platforms[0].Digest, request.Platforms[1].Digest} {
		believed, refused, err := f.policy(t).Image(t.Context(), request.Repositories[0].Digest(digest))
		check(t, err)
		want := 4 // signature, provenance, SBOM, scan
		if digest == request.Digest {
			want = 2
		}
		if len(believed) != want || len(refused) != 0 {
			t.Errorf("of %s are %d believed, not %d; refused: %v", digest, len(believed), want, refused)
		}
	}
}

func TestJobSignsWithItsOwnIdentity(t *testing.T) {
	f := newFleet(t)
	request := release(t, true)
	begin := time.Now()
	f.publish(t, request)
	t.Logf("signing and verifying 10 statements took %s", time.Since(begin).Round(time.Millisecond))
	f.verifies(t, request)
	raw, err := referrers.Bundles(t.Context(), request.Repositories[0].Digest(request.Digest))
	check(t, err)
	for _, one := range raw {
		var b bundle.Bundle
		check(t, b.UnmarshalJSON(one))
		content, err := b.VerificationContent()
		check(t, err)
		summary, err := certificate.SummarizeCertificate(content.Certificate())
		check(t, err)
		for what, pair := range map[string][2]string{
			"workflow":   {summary.SubjectAlternativeName, workflow},
			"issuer":     {summary.Issuer, issuer.ActionsURL},
			"ref":        {summary.SourceRepositoryRef, job.Ref},
			"commit":     {summary.SourceRepositoryDigest, job.SHA},
			"repository": {summary.SourceRepositoryURI, "https://github.com/omnivision/omnivision"},
			"event":      {summary.BuildTrigger, "push"},
			"run":        {summary.RunInvocationURI, "https://github.com/omnivision/omnivision/actions/runs/7/attempts/1"},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s is %q in the certificate, not %q", what, pair[0], pair[1])
			}
		}
	}
}

func TestWhoCannotSign(t *testing.T) {
	f := newFleet(t)
	if status, message := f.token(t, "sigstore", []byte("another secret of thirty-two byte")); status != http.StatusUnauthorized || !strings.Contains(message, "not made by this forge") {
		t.Errorf("a forged runtime token: %d %s", status, message)
	}
	_, good := f.token(t, "sigstore", runtimeSecret)
	_, err := f.signer(t, good)
	check(t, err) // so it is not for another reason that the others fail
	_, other := f.token(t, "sts.amazonaws.com", runtimeSecret)
	if _, err := f.signer(t, other); err == nil {
		t.Error("Fulcio takes a token that is for another")
	}
	f.running = false
	if status, message := f.token(t, "sigstore", runtimeSecret); status != http.StatusForbidden || !strings.Contains(message, "does not run") {
		t.Errorf("a job that has ended: %d %s", status, message)
	}
	// Another who serves the same claims under a key of his own.
	stranger, err := issuer.LoadOrCreateKey(t.TempDir())
	check(t, err)
	forged, err := issuer.New(issuer.ActionsURL, stranger)
	check(t, err)
	known := f.actions.Issuer
	f.running, f.actions.Issuer = true, forged
	_, token := f.token(t, "sigstore", runtimeSecret)
	f.actions.Issuer = known
	if _, err := f.signer(t, token); err == nil {
		t.Error("Fulcio takes a token that is signed by another key")
	}
}

func TestPersonSignsByMailAddress(t *testing.T) {
	f := newFleet(t)
	recorder := httptest.NewRecorder()
	f.people.SocketHandler(f.actions).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/token?audience=sigstore&email=ada@example.com", nil))
	var answer struct{ Value string }
	check(t, json.Unmarshal(recorder.Body.Bytes(), &answer))
	signer, err := f.signer(t, answer.Value)
	check(t, err)
	if want := (verify.Identity{Subject: "ada@example.com", Issuer: issuer.PeopleURL}); signer.Identity() != want {
		t.Errorf("the signer is %s", signer.Identity())
	}
}

func TestSignaturesOutliveARestartAndAKill(t *testing.T) {
	f := newFleet(t)
	before := release(t, true)
	f.publish(t, before)
	for name, end := range map[string]func() error{
		"restart": func() error { return f.Stop(t.Context(), f.sup) },
		"kill": func() error {
			return errors.Join(f.sup.Kill(t.Context(), Fulcio), f.sup.Kill(t.Context(), Rekor), f.sup.Kill(t.Context(), Timestamp))
		},
	} {
		check(t, end())
		check(t, f.Start(t.Context(), f.sup))
		f.verifies(t, before)
		after := release(t, false)
		f.publish(t, after)
		f.verifies(t, after)
		t.Log(name + " survived")
	}
}

// What upstream's own program says of what the conveyor signed.
func TestCosignVerifiesWhatTheConveyorSigned(t *testing.T) {
	cosign := engine(t, "cosign")
	f := newFleet(t)
	for store, api := range map[string]bool{"referrers API": true, "fallback tag": false} {
		t.Run(store, func(t *testing.T) {
			request := release(t, api)
			f.publish(t, request)
			run := func(image, identity string, args ...string) (string, error) {
				// The fleet has no log of certificates.
				args = append(args, "--insecure-ignore-sct", "--trusted-root", f.TrustedRootFile(), "--certificate-identity", identity, "--certificate-oidc-issuer", issuer.ActionsURL, image)
				cmd := exec.CommandContext(t.Context(), cosign, args...)
				cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=/nonexistent", "TUF_ROOT=" + filepath.Join(t.TempDir(), "tuf")}
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			for _, digest := range []string{request.Digest, request.Platforms[0].Digest, request.Platforms[1].Digest} {
				image := request.Repositories[0].Digest(digest).String()
				kinds := map[string][]string{
					"signature": {"verify"}, "of this repository": {"verify", "-a", "repository=" + request.Repositories[0].String(), "-a", "version=0.1.0-57"},
					"provenance": {"verify-attestation", "--type", "slsaprovenance1"},
				}
				if digest != request.Digest {
					kinds["SBOM"] = []string{"verify-attestation", "--type", "cyclonedx"}
					kinds["scan"] = []string{"verify-attestation", "--type", "vuln"}
				}
				for kind, args := range kinds {
					if out, err := run(image, workflow, args...); err != nil {
						t.Errorf("%s of %s: %v\n%s", kind, image, err, out)
					}
				}
				if out, err := run(image, strings.Replace(workflow, "main", "topic", 1), "verify"); err == nil {
					t.Errorf("another identity verifies:\n%s", out)
				}
			}
		})
	}
}
