package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/localfleet"
)

func TestNamedClustersAreThoseOfTheFlags(t *testing.T) {
	for _, test := range []struct {
		name     string
		cluster  string
		contexts []string
		want     []string
		usage    bool
	}{
		{name: "one", cluster: "cluster-aws", contexts: []string{"cluster-gcp=gke"}, want: []string{"cluster-aws"}},
		{name: "those of contexts", contexts: []string{"cluster-aws=eks", "cluster-gcp=gke=x"}, want: []string{"cluster-aws", "cluster-gcp"}},
		{name: "a context alone", contexts: []string{"eks"}, usage: true},
	} {
		f := fleetFlags{options: localfleet.Options{Contexts: test.contexts}}
		got, err := f.named(test.cluster)
		var coded codedError
		if test.usage != (errors.As(err, &coded) && coded.code == exitUsage) || !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
	}
}

// A cluster that cannot be reached is in the report, and the command does not end as if all were well.
func TestGateReportOfAClusterThatDoesNotAnswer(t *testing.T) {
	t.Setenv("KUBECONFIG", writeKubeconfig(t, "https://127.0.0.1:1"))
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

func writeKubeconfig(t *testing.T, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: nowhere, cluster: {server: \"" + server + "\"}}]\ncontexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]\nusers: [{name: nobody, user: {}}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
