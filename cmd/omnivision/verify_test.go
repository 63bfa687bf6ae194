package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/conveyor/verify"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keyPair writes a key and its public part, and returns their files.
func keyPair(t *testing.T) (private, public string) {
	t.Helper()
	key, pub := signtest.Key(t)
	dir := t.TempDir()
	private, public = filepath.Join(dir, "key.pem"), filepath.Join(dir, "key.pub")
	must(t, os.WriteFile(private, key, 0o600))
	must(t, os.WriteFile(public, pub, 0o600))
	return private, public
}

// signedImage pushes an index of two platforms to a registry and signs it as the
// conveyor does. It returns the repository.
func signedImage(t *testing.T, key string) name.Repository {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(server.Close)
	repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/omnivision-worker", name.Insecure)
	must(t, err)
	index, err := random.Index(20, 1, 2)
	must(t, err)
	must(t, remote.WriteIndex(repository.Tag("0.1.0-57"), index))
	digest, err := index.Digest()
	must(t, err)
	manifest, err := index.IndexManifest()
	must(t, err)
	request := sign.Request{
		Repositories: []name.Repository{repository}, Digest: digest.String(), Version: "0.1.0-57",
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "cmd/worker/Dockerfile"},
	}
	begin := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	for _, m := range manifest.Manifests {
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: "linux/amd64", Digest: m.Digest.String(), SBOM: json.RawMessage(`{"bomFormat":"CycloneDX","components":[{},{}]}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: begin, Scanned: begin, Result: json.RawMessage(`{"SchemaVersion":2,"Results":[{"Target":"worker","Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","PkgName":"x","Severity":"LOW"}]}]}`)},
		})
	}
	raw, err := os.ReadFile(key)
	must(t, err)
	signer, err := sign.WithKey(raw)
	must(t, err)
	_, err = sign.Publish(t.Context(), signer, request, func(string) {})
	must(t, err)
	return repository
}

// command runs omnivision and returns what it printed and its exit code.
func command(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	var coded codedError
	var exited exitedError
	switch {
	case err == nil:
		return out.String(), 0, nil
	case errors.As(err, &exited):
		return out.String(), exited.code, err
	case errors.As(err, &coded):
		return out.String(), coded.code, err
	}
	return out.String(), exitFailed, err
}

func TestVerifySaysWhatIsKnownOfASignedImage(t *testing.T) {
	private, public := keyPair(t)
	image := signedImage(t, private).Tag("0.1.0-57").String()
	out, code, err := command(t, "verify", "--key", public, image)
	if code != 0 {
		t.Fatalf("exit code %d: %v\n%s", code, err, out)
	}
	for _, want := range []string{"signed by", "key sha256:", "no witness", "0.1.0-57", strings.Repeat("ab", 20), "trivy", "0 critical, 0 high, 0 medium, 1 low", "2 components"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	out, _, err = command(t, "verify", "--key", public, "--output", "json", image)
	must(t, err)
	var answer verified
	must(t, json.Unmarshal([]byte(out), &answer))
	if !answer.Trusted || answer.Version != "0.1.0-57" || len(answer.Platforms) == 0 || !answer.Platforms[0].Trusted || answer.Findings != nil || answer.Platforms[0].Findings[scan.Low] != 1 {
		t.Errorf("as JSON it is %+v", answer)
	}
}

// A scan that is not understood is not a clean one.
func TestVerifySaysThatAScanCannotBeRead(t *testing.T) {
	predicate := json.RawMessage(`{"scanner":{"result":{"SchemaVersion":3}}}`)
	found := verified{}
	err := found.addFindings([]verify.Statement{{PredicateType: verify.Scan, Predicate: predicate}})
	if err == nil || !strings.Contains(err.Error(), "what its scan found cannot be told") || found.Findings != nil {
		t.Errorf("found %v, %v", found.Findings, err)
	}
	// One that found nothing is told from one that is not there.
	err = found.addFindings([]verify.Statement{{PredicateType: verify.Scan, Predicate: json.RawMessage(`{"scanner":{"result":{"SchemaVersion":2}}}`)}})
	must(t, err)
	if shown, err := json.Marshal(found); err != nil || !strings.Contains(string(shown), `"findings":{}`) {
		t.Errorf("a clean scan is %s, %v", shown, err)
	}
}

func TestVerifySaysWhatEachClusterWouldSay(t *testing.T) {
	private, public := keyPair(t)
	repository := signedImage(t, private)
	tree := gitopsTree(t)
	edit(t, filepath.Join(tree, "fleet.yaml"), "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision", strings.TrimSuffix(repository.String(), "/omnivision-worker"))
	image := repository.Tag("0.1.0-57").String()
	out, code, err := command(t, "verify", "--key", public, "--tree", tree, image)
	if code != 0 {
		t.Fatalf("exit code %d: %v\n%s", code, err, out)
	}
	for _, want := range []string{
		"by its policies when a Pod starts", "cluster-aws  would refuse: Git names 0.1.0, sha256:1111", "cluster-aws  would refuse: only a key was looked for",
		"cluster-gcp  would refuse: " + repository.String() + " holds no app of this cluster",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	out, _, err = command(t, "verify", "--key", public, "--tree", tree, "--output", "json", image)
	must(t, err)
	var answer verified
	must(t, json.Unmarshal([]byte(out), &answer))
	if len(answer.Clusters) != 2 || answer.Clusters[0].Cluster != "cluster-aws" || answer.Clusters[0].Admit || len(answer.Clusters[0].Reasons) != 2 {
		t.Errorf("as JSON the clusters are %+v", answer.Clusters)
	}
	// Whom to trust is the tree's to say, and only what to verify with is asked for.
	if _, code, err := command(t, "verify", "--tree", tree, "--trusted-root", "nowhere.json", image); code != exitFailed || !strings.Contains(err.Error(), "nowhere.json") {
		t.Errorf("exit code %d: %v", code, err)
	}
	if _, code, err := command(t, "verify", "--tree", t.TempDir(), "--key", public, image); code == 0 || !strings.Contains(err.Error(), "fleet.yaml") {
		t.Errorf("exit code %d: %v", code, err)
	}
}

func TestVerifyRefusesWhatSomebodyElseSigned(t *testing.T) {
	private, _ := keyPair(t)
	_, stranger := keyPair(t)
	image := signedImage(t, private).Tag("0.1.0-57").String()
	out, code, err := command(t, "verify", "--key", stranger, image)
	if code != exitUnhealthy || err == nil || !strings.Contains(err.Error(), "not to be trusted") {
		t.Errorf("exit code %d: %v", code, err)
	}
	for _, want := range []string{"MISSING", "no trusted signature", "no trusted scan", "refused"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
}

func TestVerifyRefusesASignatureOfAnotherRepository(t *testing.T) {
	private, public := keyPair(t)
	from := signedImage(t, private)
	to, err := name.NewRepository(from.RegistryStr()+"/omnivision/copied", name.Insecure)
	must(t, err)
	index, err := remote.Index(from.Tag("0.1.0-57"))
	must(t, err)
	must(t, remote.WriteIndex(to.Tag("0.1.0-57"), index))
	copyReferrers(t, from, to, index)
	out, code, _ := command(t, "verify", "--key", public, to.Tag("0.1.0-57").String())
	if code != exitUnhealthy || !strings.Contains(out, "not for this one") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

// copyReferrers copies what is attached to an index, as somebody would who wants a copy
// to look signed.
func copyReferrers(t *testing.T, from, to name.Repository, index interface{ RawManifest() ([]byte, error) }) {
	t.Helper()
	raw, err := index.RawManifest()
	must(t, err)
	desc, err := remote.Get(from.Tag("0.1.0-57"))
	must(t, err)
	if !bytes.Equal(raw, desc.Manifest) {
		t.Fatal("the copy is another index")
	}
	attached, err := remote.Referrers(from.Digest(desc.Digest.String()))
	must(t, err)
	manifest, err := attached.IndexManifest()
	must(t, err)
	if len(manifest.Manifests) == 0 {
		t.Fatal("nothing is attached")
	}
	for _, m := range manifest.Manifests {
		artifact, err := remote.Image(from.Digest(m.Digest.String()))
		must(t, err)
		must(t, remote.Write(to.Digest(m.Digest.String()), artifact))
	}
}

func TestVerifyMustKnowWhomToTrust(t *testing.T) {
	_, public := keyPair(t)
	for name, args := range map[string][]string{
		"nobody":                  {"verify", "registry.example/a@sha256:" + strings.Repeat("1", 64)},
		"a root without identity": {"verify", "--trusted-root", "root.json", "registry.example/a:1"},
		"an unknown output":       {"verify", "--key", public, "--output", "yaml", "registry.example/a:1"},
		"no image":                {"verify", "--key", public, "not an image"},
	} {
		if _, code, err := command(t, args...); code != exitUsage {
			t.Errorf("%s: exit code %d: %v", name, code, err)
		}
	}
}

func TestTokenOfARunningJobIsAskedForSigstore(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer job":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Query().Get("audience") != audience || r.URL.Query().Get("api-version") != "2":
			w.WriteHeader(http.StatusBadRequest)
		default:
			_, _ = io.WriteString(w, `{"value":"a.b.c"}`)
		}
	}))
	defer server.Close()
	if token, err := actionsToken(t.Context(), server.URL+"?api-version=2", "job", audience); err != nil || token != "a.b.c" {
		t.Errorf("token %q, %v", token, err)
	}
	if _, err := actionsToken(t.Context(), server.URL+"?api-version=2", "another", audience); err == nil || !strings.Contains(err.Error(), "id-token: write") {
		t.Errorf("refused: %v", err)
	}
	if _, err := actionsToken(t.Context(), "", "", audience); err == nil || !strings.Contains(err.Error(), "--identity-token") {
		t.Errorf("outside of a job: %v", err)
	}
}

// Gitea's runner sets no ACTIONS_ID_TOKEN_REQUEST_TOKEN.
func TestJobProvesItselfByWhatItsRunnerLends(t *testing.T) {
	for name, test := range map[string]struct{ request, runtime, want string }{
		"GitHub":  {"request", "runtime", "request"},
		"Gitea":   {"", "runtime", "runtime"},
		"neither": {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", test.request)
			t.Setenv("ACTIONS_RUNTIME_TOKEN", test.runtime)
			if got := jobCredential(); got != test.want {
				t.Errorf("it is %q, want %q", got, test.want)
			}
		})
	}
}

func TestTrustComesFromTheEnvironmentUnlessAFlagSaysOtherwise(t *testing.T) {
	t.Setenv(trustedRootVariable, "env-root.json")
	t.Setenv(signingConfigVariable, "env-config.json")
	t.Setenv(identityTokenVariable, "env-token")
	var flags trustFlags
	cmd := &cobra.Command{}
	flags.add(cmd)
	must(t, cmd.ParseFlags([]string{"--signing-config", "config.json"}))
	if flags.trustedRoot != "env-root.json" || flags.signingConfig != "config.json" || flags.tokenFile != "env-token" {
		t.Errorf("the flags are %+v", flags)
	}
}

func TestHalfOfASigstoreIsRefused(t *testing.T) {
	for _, flags := range []trustFlags{{trustedRoot: "root.json"}, {signingConfig: "config.json"}} {
		var coded codedError
		if _, err := flags.signer(t.Context()); !errors.As(err, &coded) || coded.code != exitUsage {
			t.Errorf("%+v: %v", flags, err)
		}
	}
}

func TestPublicSigstoreIsTheDefaultAndHasADeadline(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	t.Setenv("HOME", t.TempDir())
	if _, err := (&trustFlags{}).signer(ctx); err == nil || !strings.Contains(err.Error(), "public Sigstore") || !strings.Contains(err.Error(), "--trusted-root") {
		t.Errorf("with no time left: %v", err)
	}
}
