package node_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/controlplane"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/node"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// binary finds the engines' programs, or skips; in CI they must be there.
func binary(t *testing.T) func(string) (string, error) {
	t.Helper()
	dir := os.Getenv("OMNIVISION_ENGINES")
	missing := func(what string) {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing (OMNIVISION_ENGINES=%s)", what, dir)
		}
		t.Skipf("%s is missing: run 'make engines' and set OMNIVISION_ENGINES to the folder of programs", what)
	}
	if os.Geteuid() != 0 {
		t.Skip("nodes need root")
	}
	for _, program := range []string{"kubelet", "kube-proxy", "kube-apiserver", "etcd"} {
		if _, err := os.Stat(filepath.Join(dir, program)); dir == "" || err != nil {
			missing(program)
		}
	}
	for _, program := range []string{"containerd", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			missing(program)
		}
	}
	return func(name string) (string, error) { return filepath.Join(dir, name), nil }
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNodeRegistersWithItsCloudsLabelsAndAKillLeavesNoMount(t *testing.T) {
	programs := binary(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("/var/lib", "ovtest-") // overlayfs does not stack on every /tmp
	mustDo(t, err)
	plan, err := topology.New(dir, 18000, []topology.ClusterSpec{{Name: "t", Cloud: "gcp", Region: "europe-west1"}})
	mustDo(t, err)
	cluster := plan.Clusters[0]
	group := fmt.Sprintf("ovtest-node-%d", os.Getpid())
	cluster.NetNS = group // control plane and node share one namespace in this test
	n := cluster.Nodes[0]
	n.NetNS, n.Cgroup = group, "/"+filepath.Join(group, cluster.Name, n.Name)
	sup := &process.Supervisor{Dir: dir, Cgroup: group}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range node.Daemons(cluster, n) {
				t.Logf("%s:\n%s", name, sup.LogTail(name, 15))
			}
		}
		ctx := context.Background()
		if err := sup.Sweep(ctx, ""); err != nil {
			t.Error(err)
		}
		if err := netns.Delete(group); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	mustDo(t, netns.Ensure(group))
	mustDo(t, netns.EnsureBridge(group, "eth0", cluster.CIDR))
	mustDo(t, netns.EnsureAddress(group, "eth0", n.CIDR))
	plane, err := controlplane.Open(cluster, sup, programs)
	mustDo(t, err)
	mustDo(t, plane.Start(ctx))
	kubelet, err := plane.Kubeconfig("kubelet", "system:node:"+n.Name, "system:nodes")
	mustDo(t, err)
	proxy, err := plane.Kubeconfig("kube-proxy", "system:kube-proxy")
	mustDo(t, err)
	cert, key, err := plane.ServerCertificate("kubelet-server", ca.Request{CommonName: "system:node:" + n.Name, Organizations: []string{"system:nodes"}, IPs: []net.IP{n.Address}})
	mustDo(t, err)
	config := node.Config{
		Cluster: cluster, Node: n, Binary: programs, ClusterCA: plane.CA(), KubeletConfig: kubelet, ProxyConfig: proxy,
		ServingCert: cert, ServingKey: key, EdgeCA: plane.CA(), RegistryAddress: topology.HubAddress,
	}
	mustDo(t, node.Start(ctx, sup, config))

	rest, err := plane.RESTConfig()
	mustDo(t, err)
	kube, err := kubernetes.NewForConfig(rest)
	mustDo(t, err)
	found := waitReady(ctx, t, kube, n.Name)
	for key, value := range n.Labels {
		if found.Labels[key] != value {
			t.Errorf("label %s is %q, want %q", key, found.Labels[key], value)
		}
	}
	if !slices.ContainsFunc(found.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "nvidia.com/gpu" }) {
		t.Errorf("taints = %v", found.Spec.Taints)
	}
	mustDo(t, sup.Wait(ctx, cluster.Name+"/"+n.Name+"/kube-proxy", time.Minute, func(context.Context) error {
		var rules []byte
		err := netns.Do(group, func() (err error) {
			rules, err = exec.CommandContext(ctx, "nft", "list", "table", "ip", "kube-proxy").CombinedOutput()
			return err
		})
		if err != nil || !strings.Contains(string(rules), cluster.ServiceIP.String()) {
			return fmt.Errorf("no rule for the Service kubernetes yet: %w", err)
		}
		return nil
	}))

	mustDo(t, node.Kill(ctx, sup, cluster, n))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	mustDo(t, err)
	if strings.Contains(string(mounts), dir) {
		t.Errorf("the machine sees mounts of the node:\n%s", mounts)
	}
	mustDo(t, node.Start(ctx, sup, config)) // power is back
	waitReady(ctx, t, kube, n.Name)
}

func waitReady(ctx context.Context, t *testing.T, kube kubernetes.Interface, name string) *corev1.Node {
	t.Helper()
	watch, err := kube.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	mustDo(t, err)
	defer watch.Stop()
	for event := range watch.ResultChan() {
		found, ok := event.Object.(*corev1.Node)
		if !ok {
			continue
		}
		for _, condition := range found.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return found
			}
		}
	}
	t.Fatalf("node %s did not become ready: %v", name, ctx.Err())
	return nil
}
