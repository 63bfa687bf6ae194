//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pod is a Pod of the application's namespace with one container.
const pod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s}
spec:
  automountServiceAccountToken: false
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: main
      image: %s
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`

// create asks a cluster for a Pod and returns what it answers. Dry or not, the gate is asked.
func create(t *testing.T, cluster, namespace, podName, image string, flags ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), podName+".yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, pod, podName, namespace, image), 0o644); err != nil {
		t.Fatal(err)
	}
	return combined(t, append([]string{"kubectl", "--cluster", cluster, "--", "create", "-f", file}, flags...)...)
}

// runningWorker is the image that a cluster's workers run, by digest and without tag.
func runningWorker(t *testing.T, cluster string) string {
	t.Helper()
	image := kubectl(t, cluster, "get", "rollout", "omnivision-platform-worker", "-n", "omnivision", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	_, digest, ok := strings.Cut(image, "@")
	if !ok {
		t.Fatalf("the worker's image %q has no digest", image)
	}
	return workerRepositories[cluster] + "@" + digest
}

// refuses wants a cluster to refuse an image, with the reason, the image and what to do next.
func refuses(t *testing.T, cluster, image, reason string) {
	t.Helper()
	said, err := create(t, cluster, "omnivision", "foreign", image, "--dry-run=server")
	if err == nil {
		t.Errorf("%s is admitted, not refused with %s", image, reason)
		return
	}
	for _, part := range []string{image, reason, "omnivision verify " + image} {
		if !strings.Contains(said, part) {
			t.Errorf("the refusal of %s does not say %q: %s", image, part, said)
		}
	}
}

// admits wants a cluster to admit an image, and returns what was wrong.
func admits(t *testing.T, cluster, image string) error {
	t.Helper()
	if said, err := create(t, cluster, "omnivision", "released", image, "--dry-run=server"); err != nil {
		return fmt.Errorf("%s is refused: %s", image, said)
	}
	return nil
}

// testGateRefusesForeign pushes images under our name to our registry: none of them runs.
func testGateRefusesForeign(t *testing.T) {
	const cluster = "cluster-aws"
	released := runningWorker(t, cluster)
	if err := admits(t, cluster, released); err != nil {
		t.Fatal(err)
	}
	for _, attack := range []struct{ kind, says string }{
		{"unsigned", "[Unsigned]"},
		{"copied", "no signature says that it is for the repository"},
		{"transplant", "does not match any digest in statement"},
	} {
		image := makeForeign(t, attack.kind, released)
		refuses(t, cluster, image, attack.says)
	}
	t.Run("somebody else's signature", func(t *testing.T) { refusesOther(t, cluster, released) })
	t.Run("a branch of ours", func(t *testing.T) { refusesBranch(t, cluster) })
	t.Run("a key", func(t *testing.T) { refusesKey(t, cluster, released) })
	t.Run("an ephemeral container", func(t *testing.T) { refusesEphemeral(t, cluster, released) })
	t.Run("a tampered manifest", func(t *testing.T) { refusesTampered(t, cluster, released) })
	t.Run("a tag that moves", func(t *testing.T) { refusesMovedTag(t, cluster, released) })
	t.Run("a Deployment", func(t *testing.T) { refusesDeployment(t, cluster, released) })
	t.Run("a namespace relabelled", func(t *testing.T) { refusesRelabelled(t, cluster, released) })
}

// refusesOther signs an image as a person, whom the fleet does not trust.
func refusesOther(t *testing.T, cluster, released string) {
	image := makeForeign(t, "unsigned", released)
	cosignSign(t, root(t), image, `--identity-token "$SIGSTORE_ID_TOKEN"`)
	refuses(t, cluster, image, "[WrongIdentity]")
}

// cosignSign signs an image by the upstream program, with the fleet's Sigstore, as somebody.
func cosignSign(t *testing.T, dir, image, as string) {
	t.Helper()
	mustInside(t, dir, "sh", "-c", `COSIGN_PASSWORD= exec cosign sign --yes `+as+` --trusted-root "$OMNIVISION_TRUSTED_ROOT" \
		--signing-config "$OMNIVISION_SIGNING_CONFIG" "$0"`, image)
}

// refusesEphemeral tries to bring an image into a Pod that runs already.
func refusesEphemeral(t *testing.T, cluster, released string) {
	image := makeForeign(t, "unsigned", released)
	pods := strings.Fields(kubectl(t, cluster, "get", "pods", "-n", "omnivision", "-o", "name"))
	if len(pods) == 0 {
		t.Fatal("there is no Pod")
	}
	said, err := combined(t, "kubectl", "--cluster", cluster, "--", "debug", "-n", "omnivision", strings.TrimPrefix(pods[0], "pod/"), "--image", image, "--profile", "restricted", "--attach=false")
	if err == nil || !strings.Contains(said, "omnivision verify") {
		t.Errorf("an ephemeral container of an unsigned image: %v\n%s", err, said)
	}
}

// testQuarantine takes a release back in Git: no cluster starts it any more, whatever signed
// it, until Git lifts it again. An old release is refused once Git names a floor, one that was
// scanned too long ago, and one of which a statement is missing.
func testQuarantine(t *testing.T) {
	const cluster, policies = "cluster-aws", "components/policies/manifests/"
	g := clone(t)
	// The fleet's first worker: one that Git wants no more, or the steward would take it out.
	first := strings.Fields(g.run(t, "rev-list", "--max-parents=0", "HEAD"))[0]
	digest := regexp.MustCompile("sha256:[0-9a-f]{64}").FindString(g.run(t, "show", first+":apps/"+workerApp+"/"+cluster+".yaml"))
	image := workerRepositories[cluster] + "@" + digest
	change := func(file, from, to string) func() {
		var whole string
		g.edit(t, policies+file, func(s string) string {
			if whole = s; !strings.Contains(s, from) {
				t.Fatalf("%s has no %q", file, from)
			}
			return strings.Replace(s, from, to, 1)
		})
		return func() { g.edit(t, policies+file, func(string) string { return whole }) }
	}
	for _, rule := range []struct{ file, from, to, says string }{
		{"quarantine.yaml", "quarantine: []", "quarantine:\n    - digest: " + digest + "\n      app: " + workerApp +
			"\n      version: \"0.0.0-1\"\n      cluster: cluster-gcp\n      reason: a test\n      since: \"2026-11-27T02:00:00Z\"", "[Quarantined]"},
		{"release-policy.yaml", "floors: []", "floors:\n    - {repository: " + workerApp + ", version: 99.0.0}", "[BelowFloor]"},
		{"release-policy.yaml", "maxAge: 720h", "maxAge: 1s", "[StaleScan]"},
		{"cluster-image-policy.yaml", "predicateType: https://slsa.dev/provenance/v1", "predicateType: https://example.com/audit/v1", "[NoAttestation]"},
	} {
		begin := time.Now()
		back := change(rule.file, rule.from, rule.to)
		eventually(t, rule.says, 2*time.Minute, func() error {
			if err := admits(t, cluster, image); err == nil || !strings.Contains(err.Error(), rule.says) {
				return fmt.Errorf("the answer is %v", err)
			}
			return nil
		})
		t.Logf("%s: in force %.1f s after the push began", rule.file, time.Since(begin).Seconds())
		back()
		eventually(t, "the end of "+rule.says, 2*time.Minute, func() error {
			// Whether it still may run depends on how long ago Git named it.
			if err := admits(t, cluster, image); err != nil && strings.Contains(err.Error(), rule.says) {
				return err
			}
			return nil
		})
	}
}

// testGateWithoutRegistry takes the registry away, and the gate's memory with it: what the
// cluster ran starts again, what it never saw does not.
func testGateWithoutRegistry(t *testing.T) {
	const cluster = "cluster-aws"
	released := runningWorker(t, cluster)
	unknown := makeForeign(t, "unsigned", released)
	killDaemon(t, "registry")
	kubectl(t, cluster, "rollout", "restart", "deployment/omnivision-gate", "-n", "omnivision-system")
	kubectl(t, cluster, "rollout", "status", "deployment/omnivision-gate", "-n", "omnivision-system", "--timeout=3m")
	if err := admits(t, cluster, released); err != nil {
		t.Errorf("without a registry, after a restart of the gate: %v", err)
	}
	refuses(t, cluster, unknown, "[RegistryUnavailable]")
	omnivision(t, "up")
	eventually(t, "the registry's answer", time.Minute, func() error {
		if err := admits(t, cluster, unknown); err == nil || !strings.Contains(err.Error(), "[Unsigned]") {
			return fmt.Errorf("the answer is %v", err)
		}
		return nil
	})
}

// killDaemon ends a daemon of the fleet as a crash would.
func killDaemon(t *testing.T, daemon string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/var/lib/omnivision/run", daemon+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ PID int }
	if err := json.Unmarshal(raw, &record); err != nil || record.PID == 0 {
		t.Fatalf("the record of %s: %v\n%s", daemon, err, raw)
	}
	if err := syscall.Kill(record.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// testGateDown takes the gate away: application Pods are refused, the system's are not, and
// the gate comes back by itself.
func testGateDown(t *testing.T) {
	const cluster = "cluster-aws"
	released := runningWorker(t, cluster)
	kubectl(t, cluster, "delete", "pods", "-n", "omnivision-system", "-l", "app.kubernetes.io/name=omnivision-gate", "--wait=false", "--grace-period=0", "--force")
	if said, err := create(t, cluster, "kube-system", "system", "registry.k8s.io/pause:3.10.1", "--dry-run=server"); err != nil {
		t.Errorf("without a gate kube-system starts no Pod: %s", said)
	}
	back := eventually(t, "the gate to be back", 3*time.Minute, func() error { return admits(t, cluster, released) })
	t.Logf("admission works again %s after every Pod of the gate was killed", back.Round(100*time.Millisecond))
}
