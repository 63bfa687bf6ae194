package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// checkout is this repository's own source.
const checkout = "../.."

func TestEveryEngineResolvesInThisCheckout(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Source: checkout}
	builds, err := s.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	var programs []string
	for _, b := range builds {
		if !directoryName.MatchString(b.DirName()) {
			t.Errorf("%s: the directory name %s cannot be packed", b.Name, b.DirName())
		}
		for _, stamp := range b.Stamps {
			if value := stamp.Value(b.Versions); value == "" || strings.ContainsAny(value, " \t\n'\"") {
				t.Errorf("%s: %s gets %q, which the linker's flags cannot carry", b.Name, stamp.Variable, value)
			}
		}
		for _, name := range b.Programs() {
			if slices.Contains(programs, name) {
				t.Errorf("%s: a second program called %s", b.Name, name)
			}
			programs = append(programs, name)
		}
		for _, step := range b.Steps {
			var files []string
			for _, p := range step {
				if slices.Contains(files, p.defaultName()) {
					t.Errorf("%s: one step makes %s twice", b.Name, p.defaultName())
				}
				files = append(files, p.defaultName())
			}
		}
	}
}

// TestProgramsTellTheirVersion runs what is built on this machine (P4): a
// program that says v0.0.0 makes every check of a version lie.
func TestProgramsTellTheirVersion(t *testing.T) {
	dir := os.Getenv("OMNIVISION_CACHE")
	if dir == "" {
		dir = "/var/cache/omnivision"
	}
	s := &Store{Dir: dir, Source: checkout}
	for program, c := range map[string]struct {
		args []string
		want string
	}{
		"etcd":                    {[]string{"--version"}, `etcd Version: 3\.7\.\d+\n`},
		"kube-apiserver":          {[]string{"--version"}, `^Kubernetes {kubernetes}\n$`},
		"kube-controller-manager": {[]string{"--version"}, `^Kubernetes {kubernetes}\n$`},
		"kube-scheduler":          {[]string{"--version"}, `^Kubernetes {kubernetes}\n$`},
		"kubelet":                 {[]string{"--version"}, `^Kubernetes {kubernetes}\n$`},
		"kube-proxy":              {[]string{"--version"}, `^Kubernetes {kubernetes}\n$`},
		"kubectl":                 {[]string{"version", "--client"}, `Client Version: {kubernetes}\n`},
		"argocd":                  {[]string{"version", "--client"}, `argocd: v3\.6\.1\n`},
		"rollouts-controller":     {[]string{"--version"}, `v1\.10\.2\b`},
		"helm":                    {[]string{"version", "--short"}, `^v4\.3\.1\b`},
		"kustomize":               {[]string{"version"}, `^v5\.8\.1\n$`},
		"registry":                {[]string{"--version"}, ` {registry}\n$`},
		"coredns":                 {[]string{"-version"}, `CoreDNS-1\.15\.0\n.*{coredns}`},
		"prometheus":              {[]string{"--version"}, `version {prometheusbare} `},
		"traefik":                 {[]string{"version"}, `Version: +3\.6\.12\n`},
		"gitea":                   {[]string{"--version"}, `version 1\.26\.0 `},
		"runner":                  {[]string{"--version"}, `{runner}`},
		"buildkitd":               {[]string{"--version"}, `buildkitd github.com/moby/buildkit {buildkit} {buildkit}`},
		"rekor-server":            {[]string{"version"}, `GitVersion: +{rekor}\n`},
		"fulcio":                  {[]string{"version"}, `GitVersion: +{sigstore}\+timestamp-authority\.\d+\.\d+\.\d+\n`},
		"timestamp-server":        {[]string{"version"}, `GitVersion: +{sigstore}\+timestamp-authority\.\d+\.\d+\.\d+\n`},
		"trivy":                   {[]string{"--version"}, `Version: {trivybare}\n`},
		"loki":                    {[]string{"--version"}, `loki, version {lokibare} `},
		"cosign":                  {[]string{"version"}, `GitVersion: +{cosign}\n`},
	} {
		t.Run(program, func(t *testing.T) {
			path, err := s.Path(program)
			if err != nil {
				if os.Getenv("CI") == "" {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			want := c.want
			builds, err := s.Resolve()
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range builds {
				want = strings.ReplaceAll(want, "{"+b.Name+"}", regexp.QuoteMeta(b.Version))
				want = strings.ReplaceAll(want, "{"+b.Name+"bare}", regexp.QuoteMeta(strings.TrimPrefix(b.Version, "v")))
			}
			cmd := exec.CommandContext(deadline(t), path, c.args...)
			home := t.TempDir()
			cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "PATH=" + filepath.Dir(path)}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !regexp.MustCompile(want).Match(out) {
				t.Errorf("it says\n%s\nwant %s", out, want)
			}
		})
	}
}

// TestEnginesShareClientGo holds what makes a cold build bearable: the largest
// library of the engines is compiled once for all that have it at one version,
// which takes the same version of all that it imports.
func TestEnginesShareClientGo(t *testing.T) {
	builds, err := (&Store{Dir: t.TempDir(), Source: checkout}).Resolve()
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]Versions{}
	for _, b := range builds {
		versions[b.Name] = b.Versions
	}
	versions["omnivision"] = ownVersions(t)
	for _, group := range [][]string{{"kubernetes", "coredns", "prometheus", "promtool", "omnivision"}, {"rollouts", "traefik"}} {
		for _, module := range []string{
			"k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "k8s.io/klog/v2", "k8s.io/kube-openapi", "k8s.io/utils",
			"sigs.k8s.io/json", "sigs.k8s.io/structured-merge-diff/v6", "github.com/go-openapi/swag", "github.com/google/gnostic-models",
			"github.com/fxamacker/cbor/v2", "golang.org/x/net", "golang.org/x/sys", "golang.org/x/text", "golang.org/x/oauth2", "google.golang.org/protobuf",
		} {
			for _, engine := range group[1:] {
				if want := versions[group[0]][module]; versions[engine][module] != want {
					t.Errorf("%s has %s at %s, %s at %s: both compile all that imports it", engine, module, versions[engine][module], group[0], want)
				}
			}
		}
	}
}

// ownVersions are those of this repository's own go.mod: `make up` compiles the
// program before the engines, and they start with what it left in the Go cache.
func ownVersions(t *testing.T) Versions {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(checkout, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	if mod.Toolchain == nil || mod.Toolchain.Name != toolchain {
		t.Errorf("go.mod has toolchain %v, the engines %s: nothing is shared", mod.Toolchain, toolchain)
	}
	versions := Versions{}
	for _, r := range mod.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	for _, r := range mod.Replace {
		versions[r.Old.Path] = r.New.Version
	}
	return versions
}
