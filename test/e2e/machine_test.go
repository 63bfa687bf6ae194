//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is what a fleet could leave behind.
type machine struct {
	mounts, interfaces, namespaces, rules []string
}

// look lists it.
func look(t *testing.T) machine {
	t.Helper()
	var m machine
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		m.mounts = append(m.mounts, strings.Fields(line)[4])
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		m.interfaces = append(m.interfaces, i.Name)
	}
	namespaces, err := filepath.Glob("/run/netns/*")
	if err != nil {
		t.Fatal(err)
	}
	m.namespaces = namespaces
	rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err == nil {
		m.rules = strings.Split(strings.TrimSpace(string(rules)), "\n")
	}
	for _, list := range [][]string{m.mounts, m.interfaces, m.namespaces} {
		sort.Strings(list)
	}
	return m
}

// processes are those in the fleet's control groups.
func processes(t *testing.T) []int {
	t.Helper()
	var pids []int
	trees, err := filepath.Glob("/sys/fs/cgroup/*/omnivision")
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range append(trees, "/sys/fs/cgroup/omnivision") {
		_ = filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.Name() != "cgroup.procs" {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids
}

func testDown(t *testing.T) {
	begin := time.Now()
	omnivision(t, "down")
	t.Logf("down: %.1f s", time.Since(begin).Seconds())
	after := look(t)
	for what, pair := range map[string][2][]string{
		"mounts": {before.mounts, after.mounts}, "interfaces": {before.interfaces, after.interfaces},
		"namespaces": {before.namespaces, after.namespaces}, "firewall rules": {before.rules, after.rules},
	} {
		if fmt.Sprint(pair[0]) != fmt.Sprint(pair[1]) {
			t.Errorf("%s before:\n%v\nand after:\n%v", what, pair[0], pair[1])
		}
	}
	if left := processes(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if _, err := os.Stat("/var/lib/omnivision"); err == nil {
		t.Error("the state folder is left")
	}
}

func testKilledArgoCD(t *testing.T) {
	const cluster = "cluster-aws"
	kubectl(t, cluster, "delete", "pods", "-n", "argocd", "--all", "--grace-period=0", "--force", "--wait=false")
	if _, _, err := generate(regions[0].ui); err != nil {
		t.Errorf("the platform needs Argo CD to serve: %v", err)
	}
	eventually(t, "Argo CD comes back", 5*time.Minute, func() error {
		out, err := try(t, "kubectl", "--cluster", cluster, "--", "wait", "pods", "-n", "argocd", "--all", "--for=condition=Ready", "--timeout=60s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return healthy(t)
	})
}

// testDeletedCRD takes a CRD away that `up` installed before Argo CD ran: that Git brings
// it as well shows only once it is missing. A CRD carries no mark of an Application, so
// Argo CD learns of its end, and of its health, only when it compares again: every three
// minutes, or when it is asked to.
func testDeletedCRD(t *testing.T) {
	const cluster, crd = "cluster-aws", "serverstransporttcps.traefik.io"
	before := kubectl(t, cluster, "get", "crd", crd, "-o", "jsonpath={.metadata.uid}")
	kubectl(t, cluster, "delete", "crd", crd)
	eventually(t, "Argo CD brings the CRD back", 3*time.Minute, func() error {
		if err := healthy(t); err == nil {
			if uid, err := try(t, "kubectl", "--cluster", cluster, "--", "get", "crd", crd, "-o", "jsonpath={.metadata.uid}"); err == nil && uid != before {
				return nil
			}
		}
		kubectl(t, cluster, "annotate", "application", "crds", "-n", "argocd", "argocd.argoproj.io/refresh=normal", "--overwrite")
		return errors.New("it is not there, or not healthy")
	})
}

func testXid(t *testing.T) {
	const cluster = "cluster-gcp"
	devices := omnivision(t, "gpu", "list", "--cluster", cluster)
	if !strings.Contains(devices, "omnivision/") {
		t.Fatalf("no GPU belongs to a worker:\n%s", devices)
	}
	for index, line := range strings.Split(strings.TrimSpace(devices), "\n")[1:] {
		if strings.Contains(line, "omnivision/") {
			omnivision(t, "gpu", "xid", "--cluster", cluster, strconv.Itoa(index), "31")
		}
	}
	for _, query := range []string{
		`sum(omnivision_worker_cuda_errors_total{xid="31"}) > 0`,
		`max(DCGM_FI_DEV_XID_ERRORS) == 31`,
	} {
		eventually(t, query, 3*time.Minute, func() error {
			out, err := try(t, "kubectl", "--cluster", cluster, "--", "get", "--raw",
				"/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query?query="+strings.NewReplacer(
					" ", "%20", "{", "%7B", "}", "%7D", `"`, "%22", ">", "%3E", "=", "%3D").Replace(query))
			if err != nil {
				return err
			}
			if !strings.Contains(out, `"metric"`) {
				return fmt.Errorf("no sample yet: %s", out)
			}
			return nil
		})
	}
}

// testBrokenGPU has a GPU fall off the bus: the scheduler must no longer count
// on it until it is reset.
func testBrokenGPU(t *testing.T) {
	const cluster = "cluster-aws"
	allocatable := func(want string) func() error {
		return func() error {
			got := kubectl(t, cluster, "get", "node", "gpu-0", "-o", `jsonpath={.status.allocatable.nvidia\.com/gpu}`)
			if got != want {
				return fmt.Errorf("gpu-0 has %s GPUs allocatable, want %s", got, want)
			}
			return nil
		}
	}
	eventually(t, "all GPUs are whole", time.Minute, allocatable("4"))
	omnivision(t, "gpu", "xid", "--cluster", cluster, "1", "79")
	eventually(t, "the broken GPU leaves the node", time.Minute, allocatable("3"))
	omnivision(t, "gpu", "reset", "--cluster", cluster, "1")
	eventually(t, "the reset GPU comes back", time.Minute, allocatable("4"))
	eventually(t, "Oregon is healthy", 5*time.Minute, func() error { return healthy(t) })
}

// killNode kills the node that Oregon's control of itself is on, and brings it back.
func killNode(t *testing.T) {
	t.Helper()
	omnivision(t, "node", "kill", "--cluster", "cluster-aws", "cpu-0")
	if _, _, err := generate(regions[1].ui); err != nil {
		t.Errorf("Belgium suffers from a node's death in Oregon: %v", err)
	}
	omnivision(t, "up")
	// The Pods of the node are told ready or not once more when its kubelet has looked at them.
	eventually(t, "Oregon to be healthy with its node", time.Minute, func() error { return healthy(t) })
	if _, _, err := generate(regions[0].ui); err != nil {
		t.Errorf("Oregon does not generate after its node came back: %v", err)
	}
}

// testReboot ends everything that a reboot ends: processes and namespaces. What
// is on disk stays.
func testReboot(t *testing.T) {
	for deadline := time.Now().Add(10 * time.Second); len(processes(t)) > 0 && time.Now().Before(deadline); {
		for _, pid := range processes(t) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	namespaces, err := filepath.Glob("/run/netns/ov-*")
	if err != nil {
		t.Fatal(err)
	}
	for _, namespace := range namespaces {
		if out, err := exec.Command("ip", "netns", "delete", filepath.Base(namespace)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	begin := time.Now()
	omnivision(t, "up")
	t.Logf("up after a reboot: %.1f s", time.Since(begin).Seconds())
	testBothRegionsGenerate(t)
}
