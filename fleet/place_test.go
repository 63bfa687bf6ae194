package fleet

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestAReleaseGoesToTheClustersOfAWaveOrToAComponent(t *testing.T) {
	tree := os.DirFS("../omnivision-gitops")
	f, err := Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		app      string
		wave     int
		want     int // wave
		clusters string
		files    string
		first    string // repository
	}{
		"an app's first wave":  {"omnivision-worker", 0, 1, "cluster-aws", "apps/omnivision-worker/cluster-aws.yaml", f.Clusters[0].ImageRegistry + "/omnivision-worker"},
		"an app's second wave": {"omnivision-ui", 2, 2, "cluster-gcp", "apps/omnivision-ui/cluster-gcp.yaml", f.Clusters[0].ImageRegistry + "/omnivision-ui"},
		"the gate":             {"omnivision-gate", 0, 0, "cluster-aws cluster-gcp", "components/gate/manifests/kustomization.yaml", "ghcr.io/omnivision/omnivision-gate"},
		"the steward":          {"omnivision-steward", 0, 0, "cluster-aws cluster-gcp", "components/steward/manifests/kustomization.yaml", "ghcr.io/omnivision/omnivision-steward"},
		"the logs' driver":     {"omnivision-podlogs", 0, 0, "cluster-aws cluster-gcp", "components/podlogs/manifests/kustomization.yaml", "ghcr.io/omnivision/omnivision-podlogs"},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := f.Target(tree, test.app, test.wave)
			if err != nil {
				t.Fatal(err)
			}
			var files []string
			for _, place := range target.Places {
				files = append(files, place.File)
			}
			if target.Wave != test.want || strings.Join(target.Clusters, " ") != test.clusters || strings.Join(files, " ") != test.files || target.Repositories[0] != test.first {
				t.Errorf("target is %+v", target)
			}
			want := Release{Tag: "0.1.0-57", Digest: "sha256:" + strings.Repeat("a", 64)}
			after, err := target.Places[0].Edit(tree, want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := target.Places[0].Read(fstest.MapFS{target.Places[0].File: {Data: after}})
			if err != nil || got != want {
				t.Errorf("the file then has %+v, %v", got, err)
			}
		})
	}
}

func TestAComponentThatNoClusterListsDoesNotRun(t *testing.T) {
	tree := fstest.MapFS{}
	err := fs.WalkDir(os.DirFS("../omnivision-gitops"), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			data, readErr := os.ReadFile("../omnivision-gitops/" + name)
			tree[name], err = &fstest.MapFile{Data: data, Mode: 0o644}, readErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	runs := func(app string, want bool) {
		t.Helper()
		target, err := f.Target(tree, app, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Runs(tree, target); err != nil || got != want {
			t.Errorf("%s runs: %t, %v; want %t", app, got, err, want)
		}
	}
	runs("omnivision-worker", true)
	runs("omnivision-gate", true)
	list := tree["components/kustomization.yaml"]
	list.Data = []byte(strings.Replace(string(list.Data), "  - gate\n", "", 1))
	runs("omnivision-gate", false)
	runs("omnivision-steward", true)
}

func TestWhatAReleaseCannotReachIsSaid(t *testing.T) {
	const kustomization = "images:\n  - name: ghcr.io/x/omnivision-gate\n    newTag: \"1\"\n    digest: \"\"\n"
	described, err := os.ReadFile("../omnivision-gitops/fleet.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tree := fstest.MapFS{
		File:                                   {Data: described},
		"components/gate/kustomization.yaml":   {Data: []byte(kustomization)},
		"components/gate-b/kustomization.yaml": {Data: []byte(strings.Replace(kustomization, "x/", "y/", 1))},
		"components/logs/kustomization.yaml":   {Data: []byte(strings.Replace(kustomization, "x/omnivision-gate", "x/omnivision-podlogs", 1))},
	}
	f, err := Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		app  string
		wave int
		want string
	}{
		"an unknown name":       {"omnivision-wroker", 0, "it has omnivision-worker, omnivision-ui; and no component has an image of this name among omnivision-gate, omnivision-gate, omnivision-podlogs"},
		"two of a name":         {"omnivision-gate", 0, "both have an image called omnivision-gate"},
		"a component in a wave": {"omnivision-podlogs", 1, "leave out wave 1"},
		"an empty wave":         {"omnivision-ui", 7, "has no cluster in wave 7"},
	} {
		if target, err := f.Target(tree, test.app, test.wave); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: target is %+v, error is %v", name, target, err)
		}
	}
	if names := f.appNames(); !slices.Contains(strings.Split(names, ", "), "omnivision-ui") {
		t.Errorf("the apps are %q", names)
	}
	target, err := f.Target(tree, "omnivision-podlogs", 0)
	if err != nil {
		t.Fatal(err)
	}
	moved := fstest.MapFS{target.Places[0].File: {Data: []byte(kustomization)}}
	if have, err := target.Places[0].Read(moved); err == nil || !strings.Contains(err.Error(), "has no image ghcr.io/x/omnivision-podlogs") {
		t.Errorf("a branch with another image has %v, %v", have, err)
	}
}
