//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const workerRollout = "omnivision-platform-worker"

// testAbortHealsGit releases a worker whose canary trips an Xid in Oregon: the steward takes
// it out of Git, and no cluster starts it again. All the while Oregon is served.
func testAbortHealsGit(t *testing.T) {
	const cluster = "cluster-aws"
	good := runningWorker(t, cluster)
	g := clone(t)
	// The same analysis as in production, asked more often.
	g.edit(t, "infrastructure/cluster-aws/values-overrides.yaml", func(s string) string {
		return strings.TrimRight(s, "\n") + "\ngpuHealthCheck:\n  initialDelay: 5s\n  interval: 5s\n"
	})
	stopAsking := askAllTheTime(t)
	bad := releaseWorker(t, "// A change that is bad for GPUs.")
	// Git names the canary alone, and the stable release's Pods must be able to start (P32).
	if err := admits(t, cluster, good); err != nil {
		t.Errorf("during the canary: %v", err)
	}
	tripCanary(t, cluster, nil)
	awaitAbort(t, cluster)
	branch := "revert/" + workerApp + "/" + strings.TrimPrefix(bad, "sha256:")[:12]
	var pr pullRequest
	took := eventually(t, "the revert's pull request", time.Minute, func() (err error) {
		pr, err = openPull(t, branch)
		return err
	})
	t.Logf("abort to pull request: %.1f s", took.Seconds())
	for _, part := range []string{bad, "worker-cuda-errors", "a sign for each", "Pods of the canary", "Log lines of the canary, from ", "GPU error"} {
		if !strings.Contains(pr.Body, part) {
			t.Errorf("the pull request does not say %q:\n%s", part, pr.Body)
		}
	}
	g.run(t, "pull", "--quiet", "--rebase", "origin", "main")
	brought := g.run(t, "log", "--max-count=1", "--format=%H", "-S"+bad, "--", "apps/"+workerApp+"/"+cluster+".yaml")
	eventually(t, "the commit that brought it to hear of the abort", time.Minute, func() error {
		return says(t, "omnivision-gitops", brought, "omnivision/"+workerApp+"/"+cluster, "failure", "aborted: ")
	})
	merge(t, pr)
	g.run(t, "pull", "--quiet", "--rebase", "origin", "main")
	for file, digest := range map[string]string{"apps/" + workerApp + "/" + cluster + ".yaml": good[strings.Index(good, "sha256:"):], "components/policies/manifests/quarantine.yaml": bad} {
		text, err := os.ReadFile(filepath.Join(g.dir, file))
		if err != nil || !strings.Contains(string(text), digest) {
			t.Errorf("%s does not name %s: %v\n%s", file, digest, err, text)
		}
	}
	eventually(t, "Oregon to be healthy on the last good worker", 3*time.Minute, func() error {
		if now := runningWorker(t, cluster); now != good {
			return fmt.Errorf("Git still names %s", now)
		}
		return healthy(t)
	})
	requests := stopAsking()
	t.Logf("requests from before the canary until it was out of Git: %v", requests.all)
	_, goodDigest, _ := strings.Cut(good, "@")
	delete(requests.failed, bad)
	if len(requests.failed) > 0 || requests.all[goodDigest] == 0 {
		t.Errorf("the stable version did not serve throughout: of %v there failed %v", requests.all, requests.failed)
	}
	refuses(t, cluster, workerRepositories[cluster]+"@"+bad, "[Quarantined]")
	neverIn(t, g, "cluster-gcp", bad)
	condemned.digest, condemned.branch = bad, branch
}

// releaseWorker brings a change of the worker to Oregon as a developer does, and returns the
// new image's digest once the Rollout wants it.
func releaseWorker(t *testing.T, change string) string {
	t.Helper()
	pushWorker(t, change)
	return mergeWorker(t)
}

// pushWorker pushes a change of the worker: the conveyor builds and proposes it.
func pushWorker(t *testing.T, change string) {
	t.Helper()
	source := checkout{filepath.Join(t.TempDir(), "source"), "omnivision"}
	source.clone(t)
	// The vulnerable image of another part has taken the version that the next commit would have.
	source.run(t, "commit", "--quiet", "--allow-empty", "--message", "Count on")
	source.edit(t, "worker/worker.go", func(s string) string { return s + "\n" + change + "\n" })
}

// mergeWorker merges what the conveyor proposes to Oregon, and returns the image's digest
// once the Rollout wants it.
func mergeWorker(t *testing.T) string {
	t.Helper()
	const branch = "release/" + workerApp + "/wave-1"
	var pr pullRequest
	eventually(t, "the pull request of the push", 10*time.Minute, func() (err error) {
		if err := failedJobs(t, "omnivision"); err != nil {
			t.Fatal(err)
		}
		pr, err = openPull(t, branch)
		return err
	})
	digest := regexp.MustCompile("`(sha256:[0-9a-f]{64})`").FindStringSubmatch(pr.Body)
	if digest == nil {
		t.Fatalf("the pull request names no digest:\n%s", pr.Body)
	}
	merge(t, pr)
	eventually(t, digest[1]+" in Oregon's Rollout", 2*time.Minute, func() error {
		if image := kubectl(t, "cluster-aws", "get", "rollout", workerRollout, "-n", "omnivision", "-o", "jsonpath={.spec.template.spec.containers[0].image}"); !strings.HasSuffix(image, digest[1]) {
			return fmt.Errorf("it names %s", image)
		}
		return nil
	})
	return digest[1]
}

// canaryPod waits until a Pod of the canary runs, and returns its name and its node's.
func canaryPod(t *testing.T, cluster string) (name, node string) {
	t.Helper()
	eventually(t, "the canary's Pod", 3*time.Minute, func() error {
		hash := kubectl(t, cluster, "get", "rollout", workerRollout, "-n", "omnivision", "-o", "jsonpath={.status.currentPodHash}")
		all := kubectl(t, cluster, "get", "pods", "-n", "omnivision", "-l", "app.kubernetes.io/component=worker,rollouts-pod-template-hash="+hash,
			"--field-selector=status.phase=Running", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{"\n"}{end}`)
		first, _, _ := strings.Cut(all, "\n")
		if name, node, _ = strings.Cut(first, " "); name == "" {
			return fmt.Errorf("no Pod of %s runs", hash)
		}
		return nil
	})
	return name, node
}

// gpusOf lists the lines of a node's GPUs, by their index.
func gpusOf(t *testing.T, cluster, node string) []string {
	t.Helper()
	return strings.Split(strings.TrimSpace(omnivision(t, "gpu", "list", "--cluster", cluster, "--node", node)), "\n")[1:]
}

// tripGPU raises an Xid on the GPU of a Pod, and returns the GPU's index. Just before it does,
// it calls first, if there is one.
func tripGPU(t *testing.T, cluster, node, pod string, xid int, first func()) (gpu string) {
	t.Helper()
	eventually(t, "the GPU of "+pod, time.Minute, func() error {
		lines := gpusOf(t, cluster, node)
		for index, line := range lines {
			if strings.Contains(line, "omnivision/"+pod) {
				if first != nil {
					first()
				}
				gpu = strconv.Itoa(index)
				omnivision(t, "gpu", "xid", "--cluster", cluster, "--node", node, gpu, strconv.Itoa(xid))
				return nil
			}
		}
		return fmt.Errorf("no GPU is of %s:\n%s", pod, strings.Join(lines, "\n"))
	})
	return gpu
}

// tripCanary raises an Xid that software causes on the GPU of the canary's Pod. Just before it
// does, it calls first, if there is one.
func tripCanary(t *testing.T, cluster string, first func()) {
	t.Helper()
	pod, node := canaryPod(t, cluster)
	tripGPU(t, cluster, node, pod, 31, first)
}
