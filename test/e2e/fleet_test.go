//go:build e2e

// Package e2e proves the product as its user meets it: the whole fleet from
// nothing with the one command, looked at in both regions, changed through Git,
// broken on purpose, and taken away again.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet"
)

// regions are the two clusters and where this machine reaches them.
var regions = []struct{ cluster, region, ui, argocd string }{
	{"cluster-aws", "us-west-2", "http://127.0.0.1:18011", "http://127.0.0.1:18012"},
	{"cluster-gcp", "europe-west1", "http://127.0.0.1:18021", "http://127.0.0.1:18022"},
}

const forgeURL = "http://127.0.0.1:18000"

// root is the checkout.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err = localfleet.SourceRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// omnivision runs the program as a user does and returns its standard output.
func omnivision(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("omnivision %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root(t), "bin", "omnivision"), args...)
	cmd.Dir = root(t)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	return out.String(), err
}

// combined is try with what is said to standard error.
func combined(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root(t), "bin", "omnivision"), args...)
	cmd.Dir = root(t)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func kubectl(t *testing.T, cluster string, args ...string) string {
	t.Helper()
	return omnivision(t, append([]string{"kubectl", "--cluster", cluster, "--"}, args...)...)
}

func status(t *testing.T) localfleet.Status {
	t.Helper()
	out, _ := try(t, "status", "-o", "json") // its exit code says whether all is well
	var s localfleet.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("read status: %v\n%s", err, out)
	}
	return s
}

// eventually calls check until it returns nil.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// before is what the machine had before the fleet.
var before machine

func TestMain(m *testing.M) {
	if how := os.Getenv(foreignVariable); how != "" {
		if err := pushForeign(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end test makes real nodes and needs root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestFleet is one story in order: each part begins with what the last one left.
func TestFleet(t *testing.T) {
	omnivision(t, "down")
	before = look(t)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("KEEP") == "" {
			_, _ = try(t, "down")
		}
	})
	parts := []struct {
		name string
		run  func(*testing.T)
	}{
		{"KilledUp", testKilledUp},
		{"Up", testUp},
		{"BothRegionsGenerate", testBothRegionsGenerate},
		{"LogsArrive", testLogsArrive},
		{"OregonOnlyChange", testOregonOnlyChange},
		{"PlanIsArgoCDs", testPlanIsArgoCDs},
		{"SecondUpIsRefused", testSecondUpIsRefused},
		{"ExistingClusters", testExistingClusters},
		// Until it is made up for: nothing that has Belgium's Argo CD look.
		{"LoseWebhook", testLoseWebhook},
		{"EverySlippedPodIsRepaired", testSlippedPod},
		{"BrokenCommit", testBrokenCommit},
		{"KilledArgoCD", testKilledArgoCD},
		{"DeletedCRDComesBack", testDeletedCRD},
		{"XidReachesWorkerAndPrometheus", testXid},
		{"BrokenGPULeavesItsNode", testBrokenGPU},
		{"PushReleases", testPushReleases},
		{"LostWebhookIsMadeUpFor", testLostWebhookIsMadeUpFor},
		{"ReleaseFromShell", testReleaseFromShell},     // now both regions run one worker
		{"NothingIsLostOrDoubled", testNumberedWriter}, // kills a node
		{"RebootedMachine", testReboot},
		{"AnotherMachineBuildsTheSame", testAnotherMachine},
		{"EvidenceVerifies", testEvidence},
		{"VulnerableImageStops", testVulnerableStops},
		{"GateRefusesForeign", testGateRefusesForeign},
		{"GateReplicaKilled", testGateReplicaKilled},
		{"GateRenewsItsCertificate", testGateRenewsItsCertificate},
		{"Quarantine", testQuarantine},
		{"OneGPUShortAborts", testOneGPUShort}, // while the next one's worker is built
		{"CanaryShare", testCanaryShare},
		{"NewerReleaseOvertakes", testNewerRelease},
		{"BrokenGPUDrainsItsNode", testBrokenGPUDrainsItsNode},
		{"ExporterDownPauses", testExporterDown},
		{"ReleaseGoesWaveByWave", testWaves},
		{"AbortHealsGit", testAbortHealsGit},
		{"ForgeDownDuringAbort", testForgeDown},
		{"GateWithoutRegistry", testGateWithoutRegistry},
		{"GateDown", testGateDown},
		{"DownLeavesNothing", testDown},
	}
	for _, part := range parts {
		// KEEP_GOING shows all that is broken, though one thing may come of another.
		if !t.Run(part.name, part.run) && os.Getenv("KEEP_GOING") == "" {
			return
		}
	}
}

// testKilledUp kills the first `up` in the middle of its work, twice. The next
// part's `up` has to cope with what that leaves.
func testKilledUp(t *testing.T) {
	for _, step := range []string{"network", "control planes"} {
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(root(t), "bin", "omnivision"), "up")
		cmd.Dir = root(t)
		progress, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(progress)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "ok ") && strings.Contains(lines.Text(), "  "+step+"  ") {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatalf("up ended before it was through with %q: %v", step, err)
		}
		_ = cmd.Wait() // it was killed
	}
}

func testUp(t *testing.T) {
	begin := time.Now()
	omnivision(t, "up")
	t.Logf("up: %.1f s", time.Since(begin).Seconds())
	s := status(t)
	t.Logf("memory: %.2f GiB", float64(s.MemoryBytes)/(1<<30))
	if s.MemoryBytes > 6<<30 {
		t.Errorf("the fleet takes %.2f GiB, more than 6", float64(s.MemoryBytes)/(1<<30))
	}
	if len(s.Substitutes) == 0 {
		t.Error("status names no substitute, yet GPUs are simulated")
	}
	for _, cluster := range s.Clusters {
		if len(cluster.Nodes) < 2 {
			t.Errorf("%s has %d nodes", cluster.Name, len(cluster.Nodes))
		}
		gpus := false
		for _, node := range cluster.Nodes {
			gpus = gpus || node.GPUs != "" && node.GPUs != "0"
			if !node.Ready {
				t.Errorf("%s: node %s is not ready", cluster.Name, node.Name)
			}
		}
		if !gpus {
			t.Errorf("%s: no node has nvidia.com/gpu", cluster.Name)
		}
		for _, app := range cluster.Applications {
			if !app.OK() {
				t.Errorf("%s: %s is %s, %s: %s", cluster.Name, app.Name, app.Sync, app.Health, app.Message)
			}
		}
		if len(cluster.Rollouts) != 2 {
			t.Errorf("%s has %d Rollouts, want worker and ui", cluster.Name, len(cluster.Rollouts))
		}
	}
}

// generate asks a region's page for an animation, through the UI to a worker.
func generate(ui string) (http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	body := `{"prompt":"a storm over the sea","seed":7,"width":64,"height":64,"frames":8,"fps":8}`
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, ui+"/v1/generations", strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, data)
	}
	return response.Header, data, err
}

func testBothRegionsGenerate(t *testing.T) {
	var animations [][]byte
	for _, r := range regions {
		var header http.Header
		var animation []byte
		eventually(t, "generation in "+r.region, 2*time.Minute, func() (err error) {
			header, animation, err = generate(r.ui)
			return err
		})
		if !bytes.HasPrefix(animation, []byte("\x89PNG")) || bytes.Count(animation, []byte("fcTL")) != 8 {
			t.Errorf("%s: not an animated PNG of 8 frames, %d bytes", r.region, len(animation))
		}
		if got := header.Get("X-Omnivision-Region"); got != r.region {
			t.Errorf("%s: served by region %q", r.region, got)
		}
		if !strings.HasPrefix(header.Get("X-Omnivision-Digest"), "sha256:") {
			t.Errorf("%s: digest header is %q", r.region, header.Get("X-Omnivision-Digest"))
		}
		animations = append(animations, animation)
	}
	if !bytes.Equal(animations[0], animations[1]) {
		t.Error("the same prompt and seed gave another animation in the other region")
	}
}

// testExistingClusters takes the running clusters for somebody else's: Argo CD
// that is there already is installed once more, and nothing of it changes.
func testExistingClusters(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	omnivision(t, "kubeconfig", "--file", kubeconfig)
	t.Setenv("KUBECONFIG", kubeconfig)
	pods := func(cluster string) string {
		return kubectl(t, cluster, "get", "pods", "-n", "argocd", "-o", "jsonpath={.items[*].metadata.uid}")
	}
	before := []string{pods("cluster-aws"), pods("cluster-gcp")}
	contexts := []string{
		"--context", "cluster-aws=cluster-aws", "--context", "cluster-gcp=cluster-gcp",
		"--state", filepath.Join(t.TempDir(), "state"), "--cache", "/var/cache/omnivision",
	}
	omnivision(t, append([]string{"up"}, contexts...)...)
	omnivision(t, append([]string{"status"}, contexts...)...)
	if after := []string{pods("cluster-aws"), pods("cluster-gcp")}; after[0] != before[0] || after[1] != before[1] {
		t.Errorf("Argo CD was restarted: Pods were %v and are %v", before, after)
	}
	if _, err := try(t, "up", "--context", "cluster-aws=no-such-context"); err == nil {
		t.Error("a context that does not exist was accepted")
	}
}

func testSecondUpIsRefused(t *testing.T) {
	fleet, err := localfleet.Open(localfleet.Options{
		StateDir: "/var/lib/omnivision", CacheDir: "/var/cache/omnivision", Source: root(t), PortBase: 18000,
	})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := fleet.Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := try(t, "up"); err == nil {
		t.Error("a second up at the same time was not refused")
	}
}
