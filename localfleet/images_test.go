package localfleet

import (
	"testing"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet/topology"
)

func TestNodesPreloadWhatRunsThere(t *testing.T) {
	f := &Fleet{Tree: &fleet.Fleet{Clusters: []fleet.Cluster{
		{Name: "cluster-aws", ImageRegistry: "123.dkr.ecr.us-west-2.amazonaws.com/omnivision"},
		{Name: "cluster-gcp", ImageRegistry: "europe-west1-docker.pkg.dev/omnivision/images"},
	}}}
	cpu, gpu := topology.Node{Name: "cpu-0"}, topology.Node{Name: "gpu-0", GPUs: 4}
	for _, test := range []struct {
		image      string
		node       topology.Node
		want       bool
		clusterFor string
	}{
		{"quay.io/argoproj/argocd:v3.6.1", cpu, true, "cluster-aws"},
		{"quay.io/argoproj/argocd:v3.6.1", gpu, false, "cluster-aws"},
		{"ghcr.io/fluent/fluent-operator/fluent-bit:4.1.1", gpu, true, "cluster-gcp"},
		{"ghcr.io/fluent/fluent-operator/fluent-bit:4.1.1", cpu, true, "cluster-gcp"},
		{"123.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:1", gpu, true, "cluster-aws"},
		{"123.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:1", gpu, false, "cluster-gcp"},
		{"123.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:1", cpu, false, "cluster-aws"},
		{"europe-west1-docker.pkg.dev/omnivision/images/omnivision-ui:1", cpu, true, "cluster-gcp"},
	} {
		if got := f.runsOn(test.image, test.clusterFor, test.node); got != test.want {
			t.Errorf("%s on %s of %s: %t, want %t", test.image, test.node.Name, test.clusterFor, got, test.want)
		}
	}
}
