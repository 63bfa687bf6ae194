//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// logLine is what `omnivision logs -o json` writes.
type logLine struct {
	Time                               time.Time
	Cluster, Namespace, Pod, Container string
	Line                               string
	Labels                             map[string]string
}

// readLogs reads from a cluster's Loki as a user does.
func readLogs(t *testing.T, cluster string, flags ...string) ([]logLine, error) {
	t.Helper()
	out, err := try(t, append([]string{"logs", "--cluster", cluster, "-o", "json"}, flags...)...)
	if err != nil {
		return nil, err
	}
	var lines []logLine
	for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
		var line logLine
		if err := decoder.Decode(&line); err != nil {
			return nil, fmt.Errorf("read a log line: %w", err)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// arrivalLimit is far above what a line takes, so that a busy machine fails nothing; what it took is logged.
const arrivalLimit = 20 * time.Second

// testLogsArrive has an animation generated in each region and finds what UI and worker wrote of it in Loki. Then every
// container of every labelled namespace has a sidecar that delivers.
func testLogsArrive(t *testing.T) {
	for _, r := range regions {
		var id string
		eventually(t, "generation in "+r.region, time.Minute, func() error {
			header, _, err := generate(r.ui)
			id = header.Get("X-Request-Id")
			return err
		})
		if id == "" {
			t.Fatalf("%s: the answer has no X-Request-Id", r.region)
		}
		var found []logLine
		took := eventually(t, "the lines of request "+id, arrivalLimit, func() (err error) {
			found, err = readLogs(t, r.cluster, "--grep", id, "--since", "5m")
			if workloads := by(found, "workload"); err == nil && (workloads["omnivision-platform-worker"] == 0 || workloads["omnivision-platform-ui"] == 0) {
				err = fmt.Errorf("Loki has lines of %v", workloads)
			}
			return err
		})
		t.Logf("%s: lines of UI and worker were read back from Loki %.1f s after the answer", r.region, took.Seconds())
		for _, line := range found {
			if line.Cluster != r.cluster || line.Namespace != "omnivision" || line.Pod == "" || line.Container == "" || line.Labels["region"] != r.region {
				t.Errorf("%s: whose line is this? %+v", r.cluster, line)
			}
			for _, label := range []string{"version", "node", "pod_uid"} {
				if line.Labels[label] == "" {
					t.Errorf("%s: no %s with %v", r.cluster, label, line.Labels)
				}
			}
		}
	}
	eventually(t, "full coverage", 2*time.Minute, func() error {
		said, err := combined(t, "logs", "coverage")
		if err != nil || strings.Contains(said, " of 0 running") { // the Pods are too young to count
			return fmt.Errorf("%s (%v)", said, err)
		}
		return nil
	})
}

func by(lines []logLine, label string) map[string]int {
	counts := map[string]int{}
	for _, line := range lines {
		counts[line.Labels[label]]++
	}
	return counts
}

// proof is the namespace of the Pods that logging is proven with, and writerImage a shell with sleep. Nobody has signed
// that: a policy of this test lets it pass.
const (
	proof       = "logs-proof"
	writerImage = "quay.io/argoproj/argocd"
)

const proofObjects = `
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: logs-proof}
spec:
  images: [{glob: "quay.io/argoproj/argocd*"}]
  authorities: [{name: test, static: {action: pass}}]
---
apiVersion: v1
kind: Namespace
metadata:
  name: logs-proof
  annotations: {logging.omnivision.ai/repair: evict}
  labels: {pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: evict, namespace: logs-proof}
rules: [{apiGroups: [""], resources: [pods/eviction], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: evict, namespace: logs-proof}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: evict}
subjects: [{kind: ServiceAccount, name: omnivision-gate, namespace: omnivision-system}]
`

// writerSpec is a Pod's spec that runs a script in a shell.
func writerSpec(t *testing.T, script string) string {
	t.Helper()
	tag := strings.TrimSpace(kubectl(t, "cluster-aws", "get", "deployment", "argocd-server", "-n", "argocd", "-o", "jsonpath={.spec.template.spec.containers[0].image}"))
	if !strings.HasPrefix(tag, writerImage) {
		t.Fatalf("Argo CD runs %q", tag)
	}
	command, err := json.Marshal([]string{"/bin/sh", "-c", script})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{automountServiceAccountToken: false, terminationGracePeriodSeconds: 20,
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}},
  containers: [{name: main, image: %q, command: %s, resources: {limits: {memory: 64Mi}},
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}}]}`, tag, command)
}

func apply(t *testing.T, cluster, manifest string, flags ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	return kubectl(t, cluster, append([]string{"apply", "-f", file}, flags...)...)
}

// testSlippedPod labels a namespace after its Pod has started: the Pod is reported, and made anew with a sidecar. Two
// hundred Pods that are created then have one from the beginning.
func testSlippedPod(t *testing.T) {
	const cluster = "cluster-aws"
	apply(t, cluster, proofObjects)
	spec := writerSpec(t, `trap 'exit 0' TERM; echo begin; while :; do sleep 60 & wait $!; done`)
	deployment := fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: slipped, namespace: %s}
spec:
  selector: {matchLabels: {app: slipped}}
  template: {metadata: {labels: {app: slipped}}, spec: %s}
`, proof, spec)
	// The policy reaches every replica of the gate soon, not at once.
	eventually(t, "a Pod without a sidecar", time.Minute, func() error {
		apply(t, cluster, deployment)
		if phase := kubectl(t, cluster, "get", "pods", "-n", proof, "-l", "app=slipped", "-o", "jsonpath={.items[*].status.phase}"); phase != "Running" {
			return fmt.Errorf("the Pod is %q", phase)
		}
		return nil
	})
	sidecars := func() string {
		return kubectl(t, cluster, "get", "pods", "-n", proof, "-l", "app=slipped", "--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].spec.initContainers[*].name}")
	}
	if has := sidecars(); has != "" {
		t.Fatalf("a namespace without the label has %q", has)
	}
	kubectl(t, cluster, "label", "namespace", proof, "logging=enabled")
	eventually(t, "the report", time.Minute, func() error {
		if said, err := combined(t, "logs", "coverage", "--cluster", cluster); err == nil || !strings.Contains(said, "no-sidecar") {
			return fmt.Errorf("coverage says %s (%v)", said, err)
		}
		return nil
	})
	took := eventually(t, "the repair", 4*time.Minute, func() error {
		if has := sidecars(); has != "omnivision-fluent-bit" {
			return fmt.Errorf("the Pod has %q", has)
		}
		return nil
	})
	t.Logf("a Pod that slipped through had a sidecar %.0f s after its namespace was labelled", took.Seconds())
	if events := kubectl(t, cluster, "get", "events", "-n", proof, "-o", "jsonpath={.items[*].reason}"); !strings.Contains(events, "LogsNotShipped") || !strings.Contains(events, "EvictedForLogging") {
		t.Errorf("the Events are %s", events)
	}
	kubectl(t, cluster, "delete", "deployment", "slipped", "-n", proof, "--wait=false")
	var pods strings.Builder
	for i := range 200 {
		fmt.Fprintf(&pods, "---\n{apiVersion: v1, kind: Pod, metadata: {name: many-%d, namespace: %s}, spec: %s}\n", i, proof, spec)
	}
	file := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(file, []byte(pods.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out := kubectl(t, cluster, "create", "-f", file, "--dry-run=server", "-o", "jsonpath={.spec.initContainers[0].name}{'\\n'}")
	if n := strings.Count(out, "omnivision-fluent-bit\n"); n != 200 {
		t.Errorf("%d of 200 Pods are injected", n)
	}
}

// numbers writes fifty numbered lines a second, each run under a name of its own, and one more when it is told to end.
const numbers = `read -r run < /proc/sys/kernel/random/uuid
trap 'echo "$run last"; exit 0' TERM
i=0
while :; do
  j=0
  while [ $j -lt 10 ]; do echo "$run $i"; i=$((i+1)); j=$((j+1)); done
  sleep 0.2 & wait $!
done`

// testNumberedWriter counts the lines of a Pod whose logging is troubled in every way: its configuration is changed, Loki
// hangs for a minute, the sidecar is killed, the node dies with Loki on it, and the Pod is deleted.
func testNumberedWriter(t *testing.T) {
	const cluster = "cluster-aws"
	if kubectl(t, cluster, "get", "namespace", proof, "--ignore-not-found", "-o", "name") == "" {
		apply(t, cluster, proofObjects)
		kubectl(t, cluster, "label", "namespace", proof, "logging=enabled")
	}
	eventually(t, "the writer", 2*time.Minute, func() error {
		apply(t, cluster, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: writer, namespace: %s}, spec: %s}", proof, writerSpec(t, numbers)))
		if ready := kubectl(t, cluster, "get", "pod", "writer", "-n", proof, "-o", "jsonpath={.status.containerStatuses[0].ready}"); ready != "true" {
			return fmt.Errorf("ready: %q", ready)
		}
		return nil
	})
	reloadWhileLokiHangs(t, cluster)
	signalPod(t, cluster, syscall.SIGKILL, "/usr/local/bin/shipper", "POD_NAME=writer")
	var before []logLine
	eventually(t, "lines after the sidecar's death", time.Minute, func() error {
		now := time.Now()
		lines, err := readLogs(t, cluster, "-n", proof, "--pod", "writer", "--since", "20s")
		if err == nil && (len(lines) == 0 || lines[len(lines)-1].Time.Before(now.Add(-5*time.Second))) {
			err = fmt.Errorf("%d lines, none of the last seconds", len(lines))
		}
		before = lines
		return err
	})
	first := before[0].Line[:strings.IndexByte(before[0].Line, ' ')]
	killNode(t)
	written := linesOnDisk(t, cluster, first)
	eventually(t, "the second run", 2*time.Minute, func() error {
		lines, err := readLogs(t, cluster, "-n", proof, "--pod", "writer", "--since", "20s")
		if err == nil && (len(lines) == 0 || strings.HasPrefix(lines[len(lines)-1].Line, first)) {
			err = fmt.Errorf("%d lines, none of a second run", len(lines))
		}
		return err
	})
	kubectl(t, cluster, "delete", "pod", "writer", "-n", proof)
	var runs map[string][]string
	eventually(t, "the last line", arrivalLimit, func() error {
		lines, err := readLogs(t, cluster, "-n", proof, "--pod", "writer", "--since", "30m", "--limit", "1000000")
		if err != nil {
			return err
		}
		runs = map[string][]string{}
		for _, line := range lines {
			run, number, _ := strings.Cut(line.Line, " ")
			runs[run] = append(runs[run], number)
		}
		if last := lines[len(lines)-1].Line; !strings.HasSuffix(last, " last") {
			return fmt.Errorf("the last of %d lines is %q", len(lines), last)
		}
		return nil
	})
	if len(runs) != 2 || len(runs[first]) != written {
		t.Errorf("Loki has %d runs, and of the first one %d lines; on the node's disk were %d", len(runs), len(runs[first]), written)
	}
	for run, lines := range runs {
		for i, number := range lines {
			if number != strconv.Itoa(i) && (number != "last" || run == first) {
				t.Fatalf("run %s: after %d lines in order comes %q: one is lost or doubled", run, i, number)
			}
		}
		t.Logf("%d lines of a run, each once", len(lines))
	}
	kubectl(t, cluster, "delete", "namespace", proof, "--wait=false")
	kubectl(t, cluster, "delete", "clusterimagepolicy", "logs-proof")
}

// hang is how long Loki answers nobody.
const hang = time.Minute

// reloadWhileLokiHangs changes the sidecars' configuration in Git, stops Loki, and waits until the writer's sidecar has
// taken the change and Loki goes on.
func reloadWhileLokiHangs(t *testing.T, cluster string) {
	t.Helper()
	signalPod(t, cluster, syscall.SIGSTOP, "/usr/bin/loki", "")
	goOn := time.AfterFunc(hang, func() { signalPod(t, cluster, syscall.SIGCONT, "/usr/bin/loki", "") })
	begin := time.Now()
	clone(t).edit(t, "components/fluent-operator/manifests/cluster-filter.yaml", func(s string) string {
		if strings.Contains(s, "flushMs: 500") {
			return strings.Replace(s, "flushMs: 500", "flushMs: 400", 1)
		}
		return strings.Replace(s, "flushMs: 400", "flushMs: 500", 1)
	})
	took := eventually(t, "the reload", 3*time.Minute, func() error {
		if log := kubectl(t, cluster, "logs", "writer", "-n", proof, "-c", "omnivision-fluent-bit"); !strings.Contains(log, "configuration reloaded") {
			return fmt.Errorf("the sidecar's log is %s", log)
		}
		return nil
	})
	t.Logf("a change in Git reached the running sidecar in %.0f s", took.Seconds())
	if goOn.Stop() { // it has not run yet
		time.Sleep(time.Until(begin.Add(hang))) // the outage's length, not a wait for something
		signalPod(t, cluster, syscall.SIGCONT, "/usr/bin/loki", "")
	}
}

// signalPod signals a cluster's processes of a program; with variable, those with it in their environment.
func signalPod(t *testing.T, cluster string, signal syscall.Signal, program, variable string) {
	t.Helper()
	var signalled int
	for _, pid := range processes(t) {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		group, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if name, _, _ := strings.Cut(string(command), "\x00"); name != program || !strings.Contains(string(group), cluster) {
			continue
		}
		if variable != "" && !strings.Contains("\x00"+string(environment), "\x00"+variable+"\x00") {
			continue
		}
		if err := syscall.Kill(pid, signal); err != nil {
			t.Errorf("signal %s: %v", program, err)
		}
		signalled++
	}
	if signalled == 0 {
		t.Errorf("%s runs no %s %s", cluster, program, variable)
	}
}

// linesOnDisk counts what the first run of the writer had written when its node died.
func linesOnDisk(t *testing.T, cluster, run string) (n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("/var/lib/omnivision/clusters", cluster, "nodes/*/log/pods", proof+"_writer_*", "main", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no log files of the writer (%v)", err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() //nolint:errcheck // only read
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if strings.Contains(lines.Text(), " F "+run+" ") {
				n++
			}
		}
	}
	return n
}
