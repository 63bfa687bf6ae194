//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// GPUs that are missing, and GPUs that break under a canary.

// testOneGPUShort changes what is around Belgium's worker while Belgium has no GPU left for a
// canary (P15): everybody says why its Pod waits, the deadline ends it, and the image, which
// is the stable one, is condemned by nobody. Meanwhile the conveyor builds the worker that
// the next part releases.
func testOneGPUShort(t *testing.T) {
	const cluster, file = "cluster-gcp", "infrastructure/cluster-gcp/values-overrides.yaml"
	pushRolling(t)
	missing := breakFreeGPUs(t, cluster)
	g := clone(t)
	_, digest, _ := strings.Cut(runningWorker(t, cluster), "@")
	brought := g.run(t, "log", "--max-count=1", "--format=%H", "-S"+digest, "--", "apps/"+workerApp+"/"+cluster+".yaml")
	var before string
	g.edit(t, file, func(s string) string {
		before = s
		return strings.TrimRight(s, "\n") + "\naiWorker:\n  progressDeadlineSeconds: 20\n  podAnnotations: {omnivision.invalid/reason: a change that needs new Pods}\n"
	})
	const why = "1 Insufficient nvidia.com/gpu"
	eventually(t, "status says why the canary's Pod waits", 2*time.Minute, func() error { return waitsFor(t, cluster, why) })
	eventually(t, "the steward says so", time.Minute, func() error {
		return says(t, "omnivision-gitops", brought, "omnivision/"+workerApp+"/"+cluster, "pending", "progressing: a Pod of the canary finds no node: 0/2 nodes are available: "+why)
	})
	awaitAbort(t, cluster)
	eventually(t, "the steward says that it was aborted", time.Minute, func() error {
		return says(t, "omnivision-gitops", brought, "omnivision/"+workerApp+"/"+cluster, "error", "degraded: ")
	})
	g.edit(t, file, func(string) string { return before })
	for _, gpu := range missing {
		omnivision(t, "gpu", "reset", "--cluster", cluster, gpu)
	}
	eventually(t, "Belgium is healthy again", 3*time.Minute, func() error {
		if phase := kubectl(t, cluster, "get", "rollout", workerRollout, "-n", "omnivision", "-o", "jsonpath={.status.phase}"); phase != "Healthy" {
			return fmt.Errorf("its Rollout is %s", phase)
		}
		return healthy(t)
	})
	if pr, err := newestPull(t, "revert/"+workerApp+"/"+strings.TrimPrefix(digest, "sha256:")[:12]); err == nil {
		t.Errorf("the stable image was to be taken back by pull request %d", pr.Number)
	}
	list, err := os.ReadFile(filepath.Join(g.dir, "components/policies/manifests/quarantine.yaml"))
	if err != nil || strings.Contains(string(list), digest) {
		t.Errorf("the stable image is quarantined: %v\n%s", err, list)
	}
}

// breakFreeGPUs has every GPU of a cluster's own node that no Pod has fall off the bus, waits
// until the scheduler knows, and returns which they are.
func breakFreeGPUs(t *testing.T, cluster string) []string {
	t.Helper()
	var free []string
	all := gpusOf(t, cluster, "gpu-0")
	for index, line := range all {
		if !strings.Contains(line, "omnivision/") {
			free = append(free, strconv.Itoa(index))
			omnivision(t, "gpu", "xid", "--cluster", cluster, strconv.Itoa(index), "79")
		}
	}
	left := strconv.Itoa(len(all) - len(free))
	eventually(t, "the broken GPUs leave the node", time.Minute, func() error {
		if got := kubectl(t, cluster, "get", "node", "gpu-0", "-o", `jsonpath={.status.allocatable.nvidia\.com/gpu}`); got != left {
			return fmt.Errorf("%s GPUs are allocatable, want %s", got, left)
		}
		return nil
	})
	return free
}

// waitsFor reports whether status says of a cluster's worker that a Pod finds no node.
func waitsFor(t *testing.T, cluster, why string) error {
	t.Helper()
	for _, c := range status(t).Clusters {
		for _, r := range c.Rollouts {
			if c.Name != cluster || r.Name != workerRollout {
				continue
			}
			if strings.Contains(r.Message, "finds no node: ") && strings.Contains(r.Message, why) {
				return nil
			}
			return fmt.Errorf("it says %q", r.Message)
		}
	}
	return errors.New("it has no such Rollout")
}

// broken is the GPU that breaks under the canary.
var broken struct{ node, gpu string }

// testBrokenGPUDrainsItsNode has the GPU of the canary fall off the bus while it is held at
// 5 %: the analysis pauses and does not condemn the image, the steward takes the node out of
// service, and the canary goes on elsewhere (P17).
func testBrokenGPUDrainsItsNode(t *testing.T) {
	const cluster = rollingCluster
	var pod string
	pod, broken.node = canaryPod(t, cluster)
	begin := time.Now()
	broken.gpu = tripGPU(t, cluster, broken.node, pod, 79, nil)
	eventually(t, "the steward cordons "+broken.node, 2*time.Minute, func() error {
		if state := rolloutState(t, cluster); strings.Contains(state, "abort=true") {
			t.Fatalf("the canary was aborted: %s", state)
		}
		if kubectl(t, cluster, "get", "node", broken.node, "-o", "jsonpath={.spec.unschedulable}") != "true" {
			return errors.New("it takes Pods: " + rolloutState(t, cluster))
		}
		return nil
	})
	eventually(t, "the canary goes on elsewhere", 3*time.Minute, func() error { return goesOn(t, cluster, broken.node) })
	t.Logf("%s on %s broke, and after %.0f s the canary went on elsewhere", pod, broken.node, time.Since(begin).Seconds())
	if why := kubectl(t, cluster, "get", "analysisruns", "-n", "omnivision", "-o", `jsonpath={.items[?(@.status.phase=="Inconclusive")].status.message}`); !strings.Contains(why, "worker-gpu-hardware") {
		t.Errorf("the analysis does not say that hardware is broken: %q", why)
	}
	if left := kubectl(t, cluster, "get", "pods", "-n", "omnivision", "--field-selector", "spec.nodeName="+broken.node, "-o", "name"); left != "" {
		t.Errorf("the platform is still on the broken node:\n%s", left)
	}
}

// goesOn reports whether the canary is at its 5 % again, away from a node, and judged anew.
func goesOn(t *testing.T, cluster, away string) error {
	t.Helper()
	state := rolloutState(t, cluster)
	if !strings.Contains(state, "step=1 weight=5 pauses=CanaryPauseStep ") {
		return errors.New("its state is " + state)
	}
	hash := kubectl(t, cluster, "get", "rollout", workerRollout, "-n", "omnivision", "-o", "jsonpath={.status.currentPodHash}")
	if phases := kubectl(t, cluster, "get", "analysisruns", "-n", "omnivision", "-l", "rollouts-pod-template-hash="+hash, "-o", "jsonpath={.items[*].status.phase}"); phases != "Inconclusive Running" && phases != "Running Inconclusive" {
		return errors.New("its analyses are " + phases)
	}
	pods := strings.Fields(kubectl(t, cluster, "get", "pods", "-n", "omnivision", "-l", "rollouts-pod-template-hash="+hash, "-o",
		`jsonpath={range .items[*]}{.spec.nodeName}={.status.conditions[?(@.type=="Ready")].status} {end}`))
	if len(pods) != 1 || !strings.HasSuffix(pods[0], "=True") || strings.HasPrefix(pods[0], away+"=") {
		return fmt.Errorf("its Pods are %v", pods)
	}
	return nil
}
