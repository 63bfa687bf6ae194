//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/omnivision/omnivision/worker/api"
)

// rolling is the good worker that is pushed in OneGPUShortAborts and takes its 5 % in CanaryShare;
// then the one that overtakes it, and goes everywhere in ReleaseGoesWaveByWave.
var rolling struct {
	digest string
	values string     // of Oregon, as they were before
	added  chan error // of the node that Oregon gets meanwhile
}

const (
	rollingCluster = "cluster-aws"
	rollingValues  = "infrastructure/cluster-aws/values-overrides.yaml"
	addedNode      = "gpu-1"
)

// pushRolling pushes a good worker, and prepares Oregon for its canary while the conveyor
// builds it: the same steps as in production, of which the first pause ends by hand, an
// analysis that asks more often, a further GPU node, and a steward that may drain nodes.
func pushRolling(t *testing.T) {
	t.Helper()
	g := clone(t)
	g.edit(t, rollingValues, func(s string) string {
		rolling.values = s
		return strings.TrimRight(s, "\n") + `
gpuHealthCheck:
  initialDelay: 30s
  interval: 5s
  window: 20s
  missingDataLimit: 6
aiWorker:
  canary:
    steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {duration: 10s}}]
`
	})
	// As docs/canary.md says it.
	g.edit(t, "infrastructure/cluster-aws/kustomization.yaml", func(s string) string {
		return strings.TrimRight(s, "\n") + `
  - target: {kind: Application, name: steward}
    patch: |-
      - op: add
        path: /spec/source/kustomize
        value: {components: [../drain]}
      - op: replace
        path: /metadata/annotations/argocd.argoproj.io~1manifest-generate-paths
        value: /components/steward/manifests;/components/steward/drain
`
	})
	pushWorker(t, "// A change that is good.")
	rolling.added = make(chan error, 1)
	go func() {
		_, err := try(t, "node", "add", "--cluster", rollingCluster)
		rolling.added <- err
	}()
}

// testCanaryShare merges the good worker and holds its canary at 5 %: of 2,000 requests that
// come by the UI 5 % are the canary's, and none fails.
func testCanaryShare(t *testing.T) {
	if rolling.added == nil {
		t.Fatal("no worker was pushed: run it after OneGPUShortAborts")
	}
	if err := <-rolling.added; err != nil {
		t.Fatalf("node add: %v", err)
	}
	if gpus := kubectl(t, rollingCluster, "get", "node", addedNode, "-o", `jsonpath={.status.allocatable.nvidia\.com/gpu}`); gpus != "4" {
		t.Errorf("the added node has %q GPUs", gpus)
	}
	rolling.digest = mergeWorker(t)
	waitForWeight(t, rollingCluster, rolling.digest, 5)
	pushWorker(t, "// A change that is better.") // which the conveyor builds meanwhile
	countShare(t, rolling.digest)
}

// overtaken is the release whose canary a newer one replaces.
var overtaken struct{ digest, commit string }

// testNewerRelease merges the next worker while the canary of the one before is held at 5 %: the
// newer one takes its place, and the older one goes no further.
func testNewerRelease(t *testing.T) {
	g := clone(t)
	overtaken.digest = rolling.digest
	overtaken.commit = g.run(t, "log", "--max-count=1", "--format=%H", "-S"+overtaken.digest, "--", "apps/"+workerApp+"/"+rollingCluster+".yaml")
	rolling.digest = mergeWorker(t)
	if rolling.digest == overtaken.digest {
		t.Fatalf("the newer release is the same image, %s", rolling.digest)
	}
	waitForWeight(t, rollingCluster, rolling.digest, 5)
	eventually(t, "the older canary's Pods to be gone", 2*time.Minute, func() error {
		images := kubectl(t, rollingCluster, "get", "pods", "-n", "omnivision", "-l", "app.kubernetes.io/component=worker", "-o", "jsonpath={.items[*].spec.containers[*].image}")
		if strings.Contains(images, overtaken.digest) {
			return fmt.Errorf("workers run %s", images)
		}
		return nil
	})
	if state := rolloutState(t, rollingCluster); strings.Contains(state, "abort=true") || !strings.Contains(state, "weight=5 ") {
		t.Errorf("the newer canary is not at its first step: %s", state)
	}
	if pr, err := openPull(t, "release/"+workerApp+"/wave-2"); err == nil {
		t.Errorf("a canary that was overtaken is proposed to Belgium by pull request %d", pr.Number)
	}
}

// testExporterDown stops the exporter of the canary's GPUs: the release neither aborts nor
// goes on by itself. Then it goes on, and what it needed beside is put away.
func testExporterDown(t *testing.T) {
	exporterDown(t, rollingCluster)
	runs(t, rollingCluster, rolling.digest)
	g := clone(t)
	g.edit(t, rollingValues, func(string) string { return rolling.values })
	omnivision(t, "gpu", "reset", "--cluster", rollingCluster, "--node", broken.node, broken.gpu)
	kubectl(t, rollingCluster, "uncordon", broken.node)
	kubectl(t, rollingCluster, "drain", addedNode, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=2m")
	omnivision(t, "node", "remove", "--cluster", rollingCluster, addedNode)
	eventually(t, "Oregon is healthy without the node", 3*time.Minute, func() error {
		if names := kubectl(t, rollingCluster, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"); names != "cpu-0 gpu-0" {
			return fmt.Errorf("its nodes are %s", names)
		}
		return healthy(t)
	})
}

// waitForWeight waits until Traefik has what Argo Rollouts says.
func waitForWeight(t *testing.T, cluster, canary string, percent int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the canary has %d %%", percent), 3*time.Minute, func() error {
		weights := kubectl(t, cluster, "get", "traefikservice", workerRollout, "-n", "omnivision", "-o", "jsonpath={.spec.weighted.services[*].weight}")
		if want := fmt.Sprintf("%d %d", 100-percent, percent); weights != want {
			return fmt.Errorf("the weights of stable and canary are %s, want %s", weights, want)
		}
		return nil
	})
	// Traefik applies what it has heard of at most every two seconds.
	eventually(t, "Traefik has heard of it", time.Minute, func() error {
		for range 40 {
			if _, digest, err := refused(t.Context()); err == nil && digest == canary {
				return nil
			}
		}
		return fmt.Errorf("none of 40 requests was the canary's")
	})
}

// refused sends a generation without a prompt. It takes the way of every other, and a worker
// refuses it at once, without a GPU, and says who it is.
func refused(ctx context.Context) (status int, digest string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, regions[0].ui+api.GenerationsPath, strings.NewReader("{}"))
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header.Get(api.PrefixWorker + "Digest"), err
}

// countShare sends 2,000 requests by the UI and counts whose they were.
func countShare(t *testing.T, canary string) {
	t.Helper()
	const all, callers = 2000, 8
	var mu sync.Mutex
	served, failed := map[string]int{}, map[string]int{}
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for range all / callers {
				status, digest, err := refused(t.Context())
				mu.Lock()
				served[digest]++
				if err != nil || status != http.StatusBadRequest {
					failed[fmt.Sprintf("of %q: %d, %v", digest, status, err)]++
				}
				mu.Unlock()
			}
		})
	}
	begin := time.Now()
	group.Wait()
	share := 100 * float64(served[canary]) / all
	t.Logf("%d requests in %s: the canary served %.2f %%: %v", all, time.Since(begin).Round(time.Second), share, served)
	if share < 3.5 || share > 6.5 {
		t.Errorf("the canary served %.2f %% of the requests, not 5 ± 1.5", share)
	}
	if len(served) != 2 {
		t.Errorf("requests were served by %v, want a stable version and a canary", served)
	}
	for what, count := range failed {
		t.Errorf("%d requests failed, %s", count, what)
	}
}

// served are requests by the UI, by the digest of the worker that answered.
type served struct{ all, failed map[string]int }

// askAllTheTime sends requests by Oregon's UI until the function that it returns is called.
func askAllTheTime(t *testing.T) (stop func() served) {
	t.Helper()
	const pause = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	s := served{map[string]int{}, map[string]int{}}
	var asking sync.WaitGroup
	asking.Go(func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for ctx.Err() == nil {
			status, digest, err := refused(context.WithoutCancel(ctx))
			s.all[digest]++
			if err != nil || status != http.StatusBadRequest {
				s.failed[digest]++
				t.Logf("a request of %q failed: %d, %v", digest, status, err)
			}
			<-tick.C
		}
	})
	stop = func() served {
		cancel()
		asking.Wait()
		return s
	}
	t.Cleanup(func() { stop() }) // nothing is logged of a part that has ended
	return stop
}

// exporterDown stops the program that reports the canary's GPUs: the analysis must tell that it
// cannot tell, which neither aborts nor promotes (P16).
func exporterDown(t *testing.T, cluster string) {
	t.Helper()
	pids := exporters(t, cluster)
	if len(pids) == 0 {
		t.Fatalf("no process of %s is the exporter's", cluster)
	}
	resume := func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT) // the kubelet may have replaced it
		}
	}
	t.Cleanup(resume)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	took := eventually(t, "the analysis pauses the canary", 3*time.Minute, func() error {
		state := rolloutState(t, cluster)
		if !strings.Contains(state, "InconclusiveAnalysisRun") {
			return fmt.Errorf("its state is %s", state)
		}
		return nil
	})
	resume()
	state := rolloutState(t, cluster)
	t.Logf("the exporter is down, and after %.0f s the canary paused: %s", took.Seconds(), state)
	if strings.Contains(state, "abort=true") || !strings.Contains(state, "weight=5 ") || !strings.Contains(state, "step=1 ") {
		t.Errorf("without data the canary did not stay where it was: %s", state)
	}
	if why := kubectl(t, cluster, "get", "analysisruns", "-n", "omnivision", "-o", `jsonpath={.items[?(@.status.phase=="Inconclusive")].status.message}`); !strings.Contains(why, "dcgm-reports") {
		t.Errorf("the analysis does not say which question had no answer: %q", why)
	}
}

func rolloutState(t *testing.T, cluster string) string {
	t.Helper()
	return kubectl(t, cluster, "get", "rollout", workerRollout, "-n", "omnivision", "-o",
		"jsonpath=abort={.status.abort} step={.status.currentStepIndex} weight={.status.canary.weights.canary.weight} pauses={.status.pauseConditions[*].reason} {.status.message}")
}

// exporters are the processes of a cluster's GPU substitute.
func exporters(t *testing.T, cluster string) []int {
	t.Helper()
	var found []int
	for _, pid := range processes(t) {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has ended
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		program, _, _ := strings.Cut(string(command), "\x00")
		if err == nil && strings.HasSuffix(program, "gpu-substitute") && strings.Contains(string(groups), "/"+cluster+"/") {
			found = append(found, pid)
		}
	}
	return found
}
