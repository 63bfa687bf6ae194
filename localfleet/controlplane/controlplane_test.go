package controlplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
)

// engines is where the programs of a built fleet are looked for.
func binary(t *testing.T) func(string) (string, error) {
	t.Helper()
	dir := os.Getenv("OMNIVISION_ENGINES")
	for _, program := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		if _, err := os.Stat(filepath.Join(dir, program)); dir == "" || err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is not built (OMNIVISION_ENGINES=%s)", program, dir)
			}
			t.Skipf("%s is not built: run 'make engines' and set OMNIVISION_ENGINES to the folder of programs", program)
		}
	}
	return func(name string) (string, error) { return filepath.Join(dir, name), nil }
}

func TestControlPlaneServesAndComesBackAfterAKill(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a control plane has a network namespace of its own, which needs root")
	}
	programs := binary(t)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cluster := topology.Cluster{
		ClusterSpec: topology.ClusterSpec{Name: "cluster-test", Cloud: "aws", Region: "us-west-2"},
		Dir:         t.TempDir(), NetNS: fmt.Sprintf("ovtest-cp-%d", os.Getpid()),
		Address: []byte{10, 98, 0, 2}, ServiceCIDR: "10.96.0.0/16", ServiceIP: []byte{10, 96, 0, 1},
	}
	sup := &process.Supervisor{Dir: t.TempDir(), Cgroup: fmt.Sprintf("ovtest-cp-%d", os.Getpid())}
	t.Cleanup(func() {
		if err := sup.Sweep(context.Background(), ""); err != nil {
			t.Error(err)
		}
		if err := netns.Delete(cluster.NetNS); err != nil {
			t.Error(err)
		}
	})
	if err := netns.Ensure(cluster.NetNS); err != nil {
		t.Fatal(err)
	}
	if err := netns.EnsureAddress(cluster.NetNS, "lo", "10.98.0.2/32"); err != nil {
		t.Fatal(err)
	}
	plane, err := Open(cluster, sup, programs)
	if err != nil {
		t.Fatal(err)
	}
	if err := plane.Start(ctx); err != nil {
		t.Fatal(err)
	}
	config, err := plane.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubeapi.New(config, "test")
	if err != nil {
		t.Fatal(err)
	}
	namespace := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "before"},
	}}
	if err := client.Apply(ctx, 30*time.Second, namespace); err != nil {
		t.Fatal(err)
	}

	for _, daemon := range Daemons(cluster) {
		if err := sup.Kill(ctx, daemon); err != nil {
			t.Fatal(err)
		}
	}
	if err := plane.Start(ctx); err != nil {
		t.Fatalf("start after a kill: %v", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kube.CoreV1().Namespaces().Get(ctx, "before", metav1.GetOptions{}); err != nil {
		t.Errorf("what was applied before the kill: %v", err)
	}
	version, err := kube.Discovery().ServerVersion()
	if err != nil || version.GitVersion == "v0.0.0-master" {
		t.Errorf("version %v, %v: the API server does not say which it is (P4)", version, err)
	}
}
