package fleet

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

var update = flag.Bool("update", false, "write golden files")

// tree is a copy of the repository's own GitOps tree that a test may change.
func tree(t testing.TB) fstest.MapFS {
	t.Helper()
	dir := os.DirFS("../omnivision-gitops")
	out := fstest.MapFS{}
	err := fs.WalkDir(dir, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(dir, name)
		out[name] = &fstest.MapFile{Data: content}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// replace changes a file and fails when there was nothing to change.
func replace(t testing.TB, tree fstest.MapFS, file, old, new string) {
	t.Helper()
	if tree[file] == nil || !bytes.Contains(tree[file].Data, []byte(old)) {
		t.Fatalf("%s does not contain %q", file, old)
	}
	tree[file] = &fstest.MapFile{Data: bytes.Replace(tree[file].Data, []byte(old), []byte(new), 1)}
}

func load(t testing.TB, tree fs.FS) *Fleet {
	t.Helper()
	f, err := Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func rendered(t testing.TB, tree fs.FS, c Cluster) string {
	t.Helper()
	objects, err := Render(tree, c)
	if err != nil {
		t.Fatal(err)
	}
	text, err := MarshalYAML(objects)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestOurTreeIsValid(t *testing.T) {
	for _, p := range Validate(os.DirFS("../omnivision-gitops")) {
		t.Error(p)
	}
}

func TestRootRendersAsRecorded(t *testing.T) {
	tree := tree(t)
	for _, c := range load(t, tree).Clusters {
		golden := filepath.Join("testdata", c.Name+".yaml")
		got := rendered(t, tree, c)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s renders differently than %s: look at the difference, and if it is intended run go test ./fleet -update", c.Name, golden)
		}
	}
}

// P2: whatever is written into one cluster's files, no byte of another's rendering moves.
func TestOneClustersFilesDoNotReachAnother(t *testing.T) {
	original := tree(t)
	f := load(t, original)
	for _, touched := range f.Clusters {
		changed := tree(t)
		for name, file := range changed {
			if strings.HasPrefix(name, touched.Dir()+"/") || strings.HasSuffix(name, "/"+touched.Name+".yaml") {
				file.Data = bytes.ReplaceAll(file.Data, []byte(`"0.1.0"`), []byte(`"9.9.9"`))
				file.Data = append(file.Data, []byte("# changed\n")...)
			}
		}
		if rendered(t, changed, touched) == rendered(t, original, touched) {
			t.Errorf("%s: the change changed nothing, so this test proves nothing", touched.Name)
		}
		for _, other := range f.Clusters {
			if other.Name != touched.Name && rendered(t, changed, other) != rendered(t, original, other) {
				t.Errorf("a change of %s's files changed the rendering of %s", touched.Name, other.Name)
			}
		}
	}
}

func TestPushToOneClusterRefreshesOnlyItsPlatform(t *testing.T) {
	tree := tree(t)
	f := load(t, tree)
	refreshed := func(file string) (names []string) {
		for _, c := range f.Clusters {
			apps, err := Applications(tree, c)
			if err != nil {
				t.Fatal(err)
			}
			for _, app := range apps {
				if app.Refreshes(f.Repository, file) {
					names = append(names, c.Name+"/"+app.Name())
				}
			}
		}
		slices.Sort(names)
		return names
	}
	for _, test := range []struct {
		file string
		want []string
	}{
		{"infrastructure/cluster-aws/values-overrides.yaml", []string{"cluster-aws/omnivision-platform"}},
		{"apps/omnivision-worker/cluster-gcp.yaml", []string{"cluster-gcp/omnivision-platform"}},
		{"apps/omnivision-ui/values.yaml", []string{"cluster-aws/omnivision-platform", "cluster-gcp/omnivision-platform"}},
		{"infrastructure/cluster-aws/platform.yaml", []string{"cluster-aws/omnivision-root"}},
		{"components/prometheus/manifests/prometheus.yml", []string{"cluster-aws/prometheus", "cluster-gcp/prometheus"}},
		{"components/argocd/application.yaml", []string{"cluster-aws/omnivision-root", "cluster-gcp/omnivision-root"}},
		{"README.md", nil},
		{"fleet.yaml", nil},
	} {
		if got := refreshed(test.file); !slices.Equal(got, test.want) {
			t.Errorf("a push of %s refreshes %v, want %v", test.file, got, test.want)
		}
	}
}

// P7: namespaces and projects, then CRDs, then components, then the platform; the root manages
// itself last, because a sync waits for the health of all waves but the last, and its own
// health depends on the sync.
func TestSyncWavesBringThingsInOrder(t *testing.T) {
	tree := tree(t)
	for _, c := range load(t, tree).Clusters {
		objects, err := Render(tree, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			want := "0"
			switch {
			case o.GetKind() != "Application":
				want = "-2"
			case o.GetName() == CRDsApplication:
				want = "-1"
			case o.GetName() == RootApplication || o.GetName() == PlatformApplication:
				want = "1"
			}
			if got := o.GetAnnotations()["argocd.argoproj.io/sync-wave"]; got != want {
				t.Errorf("%s: %s %s is in wave %s, want %s", c.Name, o.GetKind(), o.GetName(), got, want)
			}
		}
	}
}

// P9: selfHeal must undo what people do, not what the canary does.
func TestSelfHealLeavesTheCanaryAlone(t *testing.T) {
	tree := tree(t)
	for _, c := range load(t, tree).Clusters {
		apps, err := Applications(tree, c)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(apps, func(a Application) bool { return a.Name() == PlatformApplication })
		ignored := map[string]bool{}
		for _, d := range apps[i].Spec.IgnoreDifferences {
			for _, what := range slices.Concat(d.JSONPointers, d.JQPathExpressions, d.ManagedFieldsManagers) {
				ignored[d.Kind+" "+what] = true
			}
		}
		for _, want := range []string{
			"Rollout kube-controller-manager", // the HPA's replica count
			`Service .spec.selector."rollouts-pod-template-hash"`,
			"TraefikService .spec.weighted.services[].weight",
			"HTTPRoute .spec.rules[].backendRefs[].weight",
		} {
			if !ignored[want] {
				t.Errorf("%s: selfHeal would fight over %s", c.Name, want)
			}
		}
	}
}

// P19: a sync that has a hook waits for the health of everything before it, and a Rollout
// that is paused in a canary step is not healthy for an hour.
func TestNoSyncWaitsForAHook(t *testing.T) {
	for name, file := range tree(t) {
		for _, hook := range []string{"argocd.argoproj.io/hook", "helm.sh/hook"} {
			if ext := filepath.Ext(name); (ext == ".yaml" || ext == ".yml") && bytes.Contains(file.Data, []byte(hook)) {
				t.Errorf("%s has %s: a paused canary would block every sync after it", name, hook)
			}
		}
	}
}
