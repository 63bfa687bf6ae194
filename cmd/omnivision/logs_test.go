package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
	"github.com/omnivision/omnivision/logs/loki/lokitest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// lokiProxy is where an API server hands over to a cluster's Loki.
const lokiProxy = "/api/v1/namespaces/logging/services/http:loki:3100/proxy"

// logCluster is a real API server and a real Loki. The API server's own proxy needs an address of a Pod, which a test
// has none of, so something in front of it hands over.
func logCluster(t *testing.T) (server *apiservertest.Server, store *lokitest.Server, address string) {
	t.Helper()
	store, server = lokitest.Start(t, "../.."), apiservertest.Start(t)
	toLoki, err := url.Parse(store.URL)
	must(t, err)
	toAPI, err := url.Parse(server.Config.Host)
	must(t, err)
	api := httputil.NewSingleHostReverseProxy(toAPI)
	api.Transport, err = rest.TransportFor(server.Config)
	must(t, err)
	mux := http.NewServeMux()
	mux.Handle(lokiProxy+"/", http.StripPrefix(lokiProxy, httputil.NewSingleHostReverseProxy(toLoki)))
	mux.Handle("/", api)
	front := httptest.NewServer(mux)
	t.Cleanup(front.Close)
	return server, store, front.URL
}

// push gives Loki a line of a Pod, as a sidecar does.
func push(t *testing.T, store *lokitest.Server, at time.Time, pod, line string) {
	t.Helper()
	stream := map[string]any{"stream": map[string]string{"namespace": "omnivision", "workload": "omnivision-ui", "pod": pod, "container": "ui"},
		"values": [][]string{{fmt.Sprint(at.UnixNano()), line}}}
	body, err := json.Marshal(map[string]any{"streams": []any{stream}})
	must(t, err)
	response, err := http.Post(store.URL+"/loki/api/v1/push", "application/json", bytes.NewReader(body))
	must(t, err)
	response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		t.Fatalf("Loki answered %s to a push", response.Status)
	}
}

// runningPod is one that runs, with a log sidecar or without.
func runningPod(t *testing.T, admin kubernetes.Interface, name string, sidecar bool) {
	t.Helper()
	no, always := false, corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{AutomountServiceAccountToken: &no, Containers: []corev1.Container{{Name: "ui", Image: "ui:1"}}}}
	up := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	status := corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "ui", State: up}}}
	if sidecar {
		pod.Spec.InitContainers = []corev1.Container{{Name: inject.ContainerName, Image: "fluent-bit:1", RestartPolicy: &always}}
		status.InitContainerStatuses = []corev1.ContainerStatus{{Name: inject.ContainerName, State: up}}
	}
	created, err := admin.CoreV1().Pods("omnivision").Create(t.Context(), pod, metav1.CreateOptions{})
	must(t, err)
	created.Status = status
	_, err = admin.CoreV1().Pods("omnivision").UpdateStatus(t.Context(), created, metav1.UpdateOptions{})
	must(t, err)
}

// kubeconfig makes the caller's kubeconfig one with these contexts, by the addresses of their API servers.
func kubeconfig(t *testing.T, servers map[string]string) {
	t.Helper()
	type named map[string]any
	config := map[string]any{"apiVersion": "v1", "kind": "Config"}
	var clusters, contexts []named
	for name, server := range servers {
		clusters = append(clusters, named{"name": name, "cluster": named{"server": server}})
		contexts = append(contexts, named{"name": name, "context": named{"cluster": name, "user": "nobody"}})
	}
	config["clusters"], config["contexts"], config["users"] = clusters, contexts, []named{{"name": "nobody", "user": named{}}}
	text, err := json.Marshal(config)
	must(t, err)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(t, os.WriteFile(path, text, 0o600))
	t.Setenv("KUBECONFIG", path)
}

// commandApart is command with standard output and standard error apart.
func commandApart(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, problems strings.Builder
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(&problems)
	root.SetArgs(args)
	err = root.ExecuteContext(t.Context())
	return out.String(), problems.String(), err
}

func TestLogsOfAnAliveAndADeadCluster(t *testing.T) {
	server, store, address := logCluster(t)
	kubeconfig(t, map[string]string{"alive": address, "dead": "http://127.0.0.1:1"})
	both := []string{"--context", "cluster-aws=alive", "--context", "cluster-gcp=dead"}
	one := []string{"--context", "cluster-aws=alive"}
	admin, err := kubernetes.NewForConfig(server.Config)
	must(t, err)
	for _, name := range []string{"omnivision", "logging"} {
		labels := map[string]string{}
		if name == "omnivision" {
			labels[inject.NamespaceLabel] = inject.NamespaceEnabled
		}
		_, err := admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
		must(t, err)
	}
	now := time.Now()
	push(t, store, now.Add(-3*time.Second), "ui-0", `says "hello`+"`\n\tand more")
	push(t, store, now.Add(-2*time.Second), "ui-1", "other")

	t.Run("TheOthersGoOn", func(t *testing.T) {
		out, problems, err := commandApart(t, append(both, "logs", "--app", "omnivision-ui", "--grep", "\"hello`")...)
		if want := now.Add(-3*time.Second).UTC().Format("2006-01-02T15:04:05.000Z") + " cluster-aws omnivision/ui-0 ui  says \"hello`\n    \tand more\n"; out != want {
			t.Errorf("output %q, want %q", out, want)
		}
		if !strings.HasPrefix(problems, "cluster-gcp: ask Loki at http://127.0.0.1:1") || err == nil || !strings.Contains(err.Error(), "1 of 2 clusters did not answer") {
			t.Errorf("told %q, error %v", problems, err)
		}
	})
	t.Run("JSON", func(t *testing.T) {
		out, problems, err := commandApart(t, append(one, "logs", "--limit", "1", "-o", "json")...)
		var line struct {
			Cluster, Pod, Line string
			Labels             map[string]string
		}
		if jsonErr := json.Unmarshal([]byte(out), &line); jsonErr != nil || err != nil || problems != "" || line.Pod != "ui-1" || line.Line != "other" || line.Labels["workload"] != "omnivision-ui" {
			t.Errorf("%s (%q): %v, %v", out, problems, err, jsonErr)
		}
	})
	t.Run("Coverage", func(t *testing.T) { testCoverageCommand(t, admin, one, both) })
	t.Run("Status", func(t *testing.T) { testStatusShowsLogs(t, admin, one) })
}

func testCoverageCommand(t *testing.T, admin kubernetes.Interface, one, both []string) {
	runningPod(t, admin, "ui-0", true)
	args := []string{"logs", "coverage", "--settle", "1ns"}
	if out, problems, err := commandApart(t, append(args, one...)...); err != nil || out != "cluster-aws: 100 % of 1 running containers are covered, 0 missing, 0 opted out, 1 delivered lately\n" || problems != "" {
		t.Errorf("%q (%q): %v", out, problems, err)
	}
	runningPod(t, admin, "ui-1", false)
	out, _, err := commandApart(t, append(args, both...)...)
	if err == nil || !strings.Contains(err.Error(), "the logs of 1 containers are not shipped") || !strings.Contains(err.Error(), "about cluster-gcp") {
		t.Errorf("error %v", err)
	}
	var coded codedError
	if errors.As(err, &coded) {
		t.Errorf("exit code %d, want 1", coded.code)
	}
	for _, want := range []string{"cluster-aws  omnivision  ui-1  ui         no-sidecar  created while", "cluster-aws: 50 % of 2 running", "cluster-gcp: not measured: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, _, _ = commandApart(t, append(append(args, "-o", "json"), one...)...)
	var found struct {
		Clusters []struct {
			Missing int
			Reports []struct {
				Gaps []struct{ Pod, Reason string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil || found.Clusters[0].Missing != 1 || found.Clusters[0].Reports[0].Gaps[0].Pod != "ui-1" {
		t.Errorf("%s: %v", out, err)
	}
}

// Status has a line about logs where there is a Loki, and none elsewhere.
func testStatusShowsLogs(t *testing.T, admin kubernetes.Interface, one []string) {
	if out, _, err := commandApart(t, append(one, "status")...); err != nil || strings.Contains(out, "LOGS") {
		t.Errorf("without a Loki: %v\n%s", err, out)
	}
	_, err := admin.CoreV1().Services("logging").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "loki"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 3100}}}}, metav1.CreateOptions{})
	must(t, err)
	if out, _, err := commandApart(t, append(one, "status")...); err != nil || !strings.Contains(out, "\n  LOGS  100 % of 0 running containers") {
		t.Errorf("with a Loki: %v\n%s", err, out)
	}
	out, _, err := commandApart(t, append(one, "status", "-o", "json")...)
	if err != nil || !strings.Contains(out, `"logs": {
        "namespaces": 1,`) {
		t.Errorf("as JSON: %v\n%s", err, out)
	}
}

func TestLogsRefuseWhatMakesNoSense(t *testing.T) {
	for _, args := range [][]string{{"logs", "--limit", "0"}, {"logs", "--since", "-1m"}, {"logs", "-o", "yaml"}, {"logs", "coverage", "--within", "0s"}, {"logs", "--context", "eks"}} {
		_, _, err := commandApart(t, args...)
		var coded codedError
		if !errors.As(err, &coded) || coded.code != exitUsage {
			t.Errorf("%v: %v", args, err)
		}
	}
}
