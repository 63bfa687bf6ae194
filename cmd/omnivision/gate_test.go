package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/localfleet"
)

func TestClustersAreThoseOfTheFlags(t *testing.T) {
	kubeconfig(t, map[string]string{"nowhere": "https://127.0.0.1:1"})
	for _, test := range []struct {
		name               string
		clusters, contexts []string
		want               []string
		refused            string // part of the usage error
	}{
		{name: "one of two contexts", clusters: []string{"cluster-gcp"}, contexts: []string{"cluster-aws=nowhere", "cluster-gcp=nowhere"}, want: []string{"cluster-gcp"}},
		{name: "those of contexts, in the fleet's order", contexts: []string{"cluster-gcp=nowhere", "cluster-aws=nowhere"}, want: []string{"cluster-aws", "cluster-gcp"}},
		{name: "a context alone", contexts: []string{"eks"}, refused: "CLUSTER=CONTEXT"},
		{name: "a cluster without a context", clusters: []string{"cluster-aws"}, contexts: []string{"cluster-gcp=nowhere"}, refused: "--context cluster-aws=CONTEXT"},
		{name: "twice", contexts: []string{"cluster-gcp=nowhere", "cluster-gcp=nowhere"}, refused: "two contexts"},
	} {
		f := fleetFlags{options: localfleet.Options{Contexts: test.contexts}}
		got, configs, err := f.reach(test.clusters...)
		var coded codedError
		if test.refused != "" {
			if !errors.As(err, &coded) || coded.code != exitUsage || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("%s: error %v", test.name, err)
			}
			continue
		}
		if err != nil || !slices.Equal(got, test.want) || len(configs) != len(got) || configs[got[0]].Host != "https://127.0.0.1:1" {
			t.Errorf("%s: %q, %v, %v", test.name, got, configs, err)
		}
	}
}

// Outside of a checkout, for clusters elsewhere.
func TestContextsNeedNoCheckout(t *testing.T) {
	kubeconfig(t, map[string]string{"nowhere": "https://127.0.0.1:1"})
	t.Chdir(t.TempDir())
	f := fleetFlags{options: localfleet.Options{Contexts: []string{"mine=nowhere"}}}
	if got, configs, err := f.reach(); err != nil || !slices.Equal(got, []string{"mine"}) || configs["mine"] == nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A cluster that cannot be reached is in the report, and the command does not end as if all were well.
func TestGateReportOfAClusterThatDoesNotAnswer(t *testing.T) {
	kubeconfig(t, map[string]string{"nowhere": "https://127.0.0.1:1"})
	var out strings.Builder
	root := newRootCommand()
	root.SetOut(&out)
	root.SetArgs([]string{"gate", "report", "--context", "cluster-aws=nowhere", "-o", "json"})
	err := root.ExecuteContext(t.Context())
	var coded codedError
	if err == nil || errors.As(err, &coded) || !strings.Contains(err.Error(), "could not be asked about") || !strings.Contains(out.String(), `"cluster": "cluster-aws"`) {
		t.Errorf("error %v, output %s", err, out.String())
	}
}
