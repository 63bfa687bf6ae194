package localfleet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/localfleet/topology"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func plan(t *testing.T, dir string) *topology.Plan {
	t.Helper()
	p, err := topology.New(dir, 18000, []topology.ClusterSpec{{Name: "one", Cloud: "aws", Region: "r"}, {Name: "two", Cloud: "gcp", Region: "r"}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddedNodesAreKnownToTheNextCommand(t *testing.T) {
	dir := t.TempDir()
	f := &Fleet{Plan: plan(t, dir)}
	for _, name := range []string{"gpu-1", "gpu-3"} {
		if _, err := f.Plan.AddNode("two", name); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.rememberAddedNodes("two"); err != nil {
		t.Fatal(err)
	}
	next := plan(t, dir)
	if err := planAddedNodes(next); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range next.Clusters[1].Nodes {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); got != "gpu-0 cpu-0 gpu-1 gpu-3" {
		t.Errorf("the nodes of two are %s", got)
	}
	if got := len(next.Clusters[0].Nodes); got != 2 {
		t.Errorf("one has %d nodes", got)
	}
}

func TestAddedNodesThatCannotBeAreRefusedWithTheirFile(t *testing.T) {
	for name, content := range map[string]string{
		"no JSON": "gpu-1", "no such node": `["cpu-7"]`, "twice": `["gpu-1", "gpu-1"]`, "a path": `["../../x"]`,
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "clusters", "one", "added-nodes.json")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := planAddedNodes(plan(t, dir))
		if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "omnivision down") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestANodeOfTheClusterItselfIsNotRemoved(t *testing.T) {
	f := &Fleet{Plan: plan(t, t.TempDir())}
	for node, want := range map[string]string{"gpu-0": "belongs to the cluster", "cpu-0": "belongs to the cluster", "gpu-1": "has no node"} {
		if err := f.RemoveNode(t.Context(), "one", node); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", node, err, want)
		}
	}
}

func TestANodeTakesWorkWhenItsGPUsCanBeHad(t *testing.T) {
	for _, test := range []struct {
		ready, gpus string
		want        bool
	}{{"True", "4", true}, {"False", "4", false}, {"True", "", false}, {"True", "3", false}} {
		o := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{
			"conditions":  []any{map[string]any{"type": "Ready", "status": test.ready}},
			"allocatable": map[string]any{"nvidia.com/gpu": test.gpus},
		}}}
		if err := takesWork(o, 4); (err == nil) != test.want || err != nil && !errors.Is(err, kubeapi.ErrNotReady) {
			t.Errorf("Ready %s with %q GPUs: %v", test.ready, test.gpus, err)
		}
	}
}
