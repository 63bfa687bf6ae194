package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
)

func none(string) string { return "" }

func TestUsage(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		exit int
		want string
	}{
		"help shows examples": {[]string{"--help"}, nil, exitOK, "gate --namespace=omnivision-system"},
		"no namespace":        {nil, nil, exitUsage, "set --namespace or $POD_NAMESPACE"},
		"an argument":         {[]string{"run"}, map[string]string{"POD_NAMESPACE": "x"}, exitUsage, `unexpected argument "run"`},
		"unknown flag":        {[]string{"--permissive"}, nil, exitUsage, "not defined"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if got := run(t.Context(), c.args, func(k string) string { return c.env[k] }, &stderr, &stderr); got != c.exit || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("exit %d: %s", got, stderr.String())
			}
		})
	}
}

func TestDefaultsAreThoseOfTheManifests(t *testing.T) {
	text, err := os.ReadFile("../../omnivision-gitops/components/gate/manifests/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for line := range strings.Lines(string(text)) {
		if arg, ok := strings.CutPrefix(strings.TrimSpace(line), "- --"); ok {
			args = append(args, "--"+arg)
		}
	}
	env := func(k string) string { return map[string]string{"POD_NAMESPACE": "omnivision-system"}[k] }
	deployed, err := parse(args, env, os.Stderr)
	if err != nil || len(args) < 5 {
		t.Fatalf("%d arguments: %v", len(args), err)
	}
	byDefault, err := parse(nil, env, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if deployed != byDefault {
		t.Errorf("deployed:   %+v\nby default: %+v", deployed, byDefault)
	}
	if grace := 60 * time.Second; deployed.drainDelay+deployed.drainTimeout+3*time.Second > grace || !strings.Contains(string(text), "terminationGracePeriodSeconds: 60") {
		t.Errorf("the drain of %s and %s does not fit into the grace period of %s", deployed.drainDelay, deployed.drainTimeout, grace)
	}
}

// A gate that has not read the policies lets nothing in, and takes no traffic.
func TestGateWithoutPoliciesRefuses(t *testing.T) {
	decides, err := newDeciding(decisions{namespace: "x", admitted: "a", trust: []string{t.TempDir()}}, &rest.Config{Host: "127.0.0.1:1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if v := decides.judge.Judge(t.Context(), gate.Image{Reference: "a"}); v.Allowed || len(v.Denials) == 0 {
		t.Errorf("verdict %+v", v)
	}
	if decides.ready() == nil {
		t.Error("it says that it is ready")
	}
}

func TestTrustedRootsOfSeveralFolders(t *testing.T) {
	full, empty := t.TempDir(), t.TempDir()
	if _, err := trustedRoots([]string{empty, filepath.Join(empty, "missing")}); err == nil {
		t.Error("no trusted root at all is no error")
	}
	if err := os.WriteFile(filepath.Join(full, trustedRootFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if roots, err := trustedRoots([]string{empty, full}); err != nil || len(roots) != 1 || string(roots[0]) != "{}" {
		t.Errorf("roots are %q, %v", roots, err)
	}
}

// The root of the public Sigstore that the tree brings is one that the gate can read.
func TestThePublicTrustedRootIsRead(t *testing.T) {
	roots, err := trustedRoots([]string{"../../omnivision-gitops/components/gate/manifests"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Compile(policy.Sources{TrustedRoots: roots, Namespace: "omnivision-system"}); err != nil {
		t.Error(err)
	}
}

func TestGateEndsWhenAskedAlsoWithoutAnAPIServer(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"a","user":"a"}}],"clusters":[{"name":"a","cluster":{"server":"` + dead.URL + `"}}],"users":[{"name":"a","user":{}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	exit := run(ctx, []string{"--kubeconfig=" + kubeconfig, "--namespace=x", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--drain-delay=0"}, none, &out, &out)
	if exit != exitOK {
		t.Errorf("exit %d", exit)
	}
	drained := false
	for line := range strings.Lines(out.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("%q is not JSON: %v", line, err)
		}
		drained = drained || entry[slog.MessageKey] == "drained"
	}
	if !drained {
		t.Errorf("it did not drain:\n%s", out.String())
	}
}
