package localfleet

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/fleet"
)

func TestMatchContexts(t *testing.T) {
	described := &fleet.Fleet{Clusters: []fleet.Cluster{{Name: "cluster-aws"}, {Name: "cluster-gcp"}}}
	const arn = "arn:aws:eks:us-west-2:111122223333:cluster/prod"
	for name, c := range map[string]struct {
		given   []string
		want    map[string]string
		refused string // part of the error
	}{
		"none":               {want: map[string]string{}},
		"called as clusters": {given: []string{"cluster-gcp", "cluster-aws"}, want: map[string]string{"cluster-aws": "cluster-aws", "cluster-gcp": "cluster-gcp"}},
		"in order":           {given: []string{arn, "kind-b"}, want: map[string]string{"cluster-aws": arn, "cluster-gcp": "kind-b"}},
		"named":              {given: []string{"cluster-gcp=kind-b", "cluster-aws=" + arn}, want: map[string]string{"cluster-aws": arn, "cluster-gcp": "kind-b"}},
		"one of two":         {given: []string{"cluster-gcp=kind-b"}, want: map[string]string{"cluster-gcp": "kind-b"}},
		"one, not named":     {given: []string{"kind-b"}, refused: "CLUSTER=CONTEXT"},
		"named and not":      {given: []string{"cluster-gcp=kind-b", "kind-a"}, refused: "kind-a"},
		"unknown cluster":    {given: []string{"cluster-azure=kind-c"}, refused: "cluster-azure"},
		"no context":         {given: []string{"cluster-gcp="}, refused: "names no context"},
		"twice":              {given: []string{"cluster-gcp=a", "cluster-gcp=b"}, refused: "two contexts"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := MatchContexts(described, c.given)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("error is %v, want one about %q", err, c.refused)
				}
				return
			}
			if err != nil || !maps.Equal(got, c.want) {
				t.Fatalf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestWithoutAFleetEveryContextNamesItsCluster(t *testing.T) {
	got, err := MatchContexts(nil, []string{"cluster-aws=eks", "mine=gke=x"})
	if want := map[string]string{"cluster-aws": "eks", "mine": "gke=x"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for given, refused := range map[string]string{"eks": "CLUSTER=CONTEXT", "mine=": "names no context"} {
		if _, err := MatchContexts(nil, []string{given}); err == nil || !strings.Contains(err.Error(), refused) {
			t.Errorf("%s: error is %v, want one about %q", given, err, refused)
		}
	}
}

func TestAnUnknownContextIsRefusedByName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", path)
	_, err := Connect(map[string]string{"cluster-aws": "kind-typo"})
	if err == nil || !strings.Contains(err.Error(), "kind-typo") || !strings.Contains(err.Error(), "cluster-aws") {
		t.Errorf("error is %v, want one that names context and cluster", err)
	}
}
