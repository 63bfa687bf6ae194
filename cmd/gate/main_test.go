package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/fleet"
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

// deployed is the gate's Deployment as clusters get it.
func deployed(t *testing.T) corev1.PodTemplateSpec {
	t.Helper()
	objects, err := fleet.RenderSource(os.DirFS("../../omnivision-gitops"), fleet.Source{Path: "components/gate/manifests"}, "omnivision-system")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			var d appsv1.Deployment
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
				t.Fatal(err)
			}
			return d.Spec.Template
		}
	}
	t.Fatal("the tree has no Deployment of the gate")
	return corev1.PodTemplateSpec{}
}

func optionsOf(t *testing.T, args []string) options {
	t.Helper()
	o, err := parse(args, func(k string) string { return map[string]string{"POD_NAMESPACE": "omnivision-system"}[k] }, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestDefaultsAreThoseOfTheManifests(t *testing.T) {
	pod := deployed(t).Spec
	args := pod.Containers[0].Args
	got, byDefault := optionsOf(t, args), optionsOf(t, nil)
	if got != byDefault || len(args) < 5 {
		t.Errorf("deployed:   %+v\nby default: %+v", got, byDefault)
	}
	if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; got.drainDelay+got.drainTimeout+3*time.Second > grace {
		t.Errorf("the drain of %s and %s does not fit into the grace period of %s", got.drainDelay, got.drainTimeout, grace)
	}
}

// Both containers share the port of the webhooks, and each has its own of probes and metrics; in all else they are equal.
func TestTwinsDifferInNoMoreThanTheirOwnPort(t *testing.T) {
	containers := deployed(t).Spec.Containers
	if len(containers) != 2 {
		t.Fatalf("the Pod has %d containers", len(containers))
	}
	gate, twin := containers[0], containers[1]
	one, other := optionsOf(t, gate.Args), optionsOf(t, twin.Args)
	if one.listen != other.listen || one.metricsListen == other.metricsListen {
		t.Errorf("one listens on %s and %s, the other one on %s and %s", one.listen, one.metricsListen, other.listen, other.metricsListen)
	}
	own := func(c corev1.Container) corev1.ContainerPort { return c.Ports[len(c.Ports)-1] }
	for _, c := range []struct {
		container corev1.Container
		o         options
	}{{gate, one}, {twin, other}} {
		port := own(c.container)
		if got := fmt.Sprintf(":%d", port.ContainerPort); got != c.o.metricsListen || !strings.HasPrefix(port.Name, "metrics") {
			t.Errorf("%s declares %s as %q and listens on %s", c.container.Name, got, port.Name, c.o.metricsListen)
		}
		for _, probe := range []*corev1.Probe{c.container.StartupProbe, c.container.ReadinessProbe, c.container.LivenessProbe} {
			if probe.HTTPGet.Port.StrVal != port.Name {
				t.Errorf("a probe of %s asks %s", c.container.Name, probe.HTTPGet.Port.String())
			}
		}
	}
	// Under the other one's name and port the twin is the same container.
	other.metricsListen = one.metricsListen
	twin.Name, twin.Args, twin.Ports = gate.Name, gate.Args, gate.Ports
	for _, probe := range []*corev1.Probe{twin.StartupProbe, twin.ReadinessProbe, twin.LivenessProbe} {
		probe.HTTPGet.Port.StrVal = own(gate).Name
	}
	if one != other || !equality.Semantic.DeepEqual(gate, twin) {
		t.Errorf("one is  %+v\nthe other %+v", gate, twin)
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
