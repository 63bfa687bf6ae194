package engine

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Engine is one module of upstream programs that are built together, because
// they share most of their packages.
type Engine struct {
	// Name is also the directory below engines/.
	Name string
	// Purpose is what the engine is for, in a few words, for people.
	Purpose string
	// Module is the one whose version is the engine's.
	Module string
	// Toolchain is the Go version that is demanded by name; empty means any
	// that satisfies the go line of the module.
	Toolchain string
	// Release turns the module's version into that of the release, for projects
	// that number them differently; nil means that they are the same.
	Release func(module string) string
	Tags    []string
	CGO     bool
	// Experiment is what the toolchain is to have switched on (GOEXPERIMENT).
	Experiment string
	// Stamps are the variables that the linker sets, so that each program
	// tells its version truly (P4).
	Stamps []Stamp
	// Steps are the programs in the order in which they are needed: a step is
	// one `go build`, and what it built survives a kill in a later step.
	Steps [][]Program
	// Assets are files of modules that are not programs, but that images made
	// of the programs need.
	Assets []Asset
	// Extras names further build steps that the caller may register with the
	// store (Store.Extras). An extra that is not registered is left out.
	Extras []string
	// Scratch is how much disk the build takes at most, its module and build
	// caches included, when both are empty.
	Scratch int64
}

// Program is one binary of an engine.
type Program struct {
	// Name is the file's name in the store.
	Name string
	// Package is the import path of the main package.
	Package string
}

// Stamp sets one string variable at link time.
type Stamp struct {
	// Variable is package.name as the linker wants it.
	Variable string
	// Value makes the value of the versions in go.mod.
	Value func(Versions) string
}

// Asset is a file of a module that is kept beside the programs.
type Asset struct {
	Module string
	// Path is the file inside the module, and its place below share/ in the
	// engine's directory.
	Path string
}

// Versions are the module versions of a go.mod, replacements applied.
type Versions map[string]string

// Programs lists the names of all binaries of e.
func (e Engine) Programs() []string {
	var names []string
	for _, step := range e.Steps {
		for _, p := range step {
			names = append(names, p.Name)
		}
	}
	return names
}

// ldflags are the linker's flags: no symbol table and DWARF, which nobody
// debugs here and which are a third of a binary, and the stamps.
func (e Engine) ldflags(v Versions) string {
	flags := []string{"-s", "-w"}
	for _, s := range e.Stamps {
		flags = append(flags, "-X", s.Variable+"="+s.Value(v))
	}
	return strings.Join(flags, " ")
}

// buildFlags are the arguments of `go build` and `go list` that decide what is
// compiled. DWARF, which the linker would drop, is not made in the first place: that
// is a quarter of the compiler's time.
func (e Engine) buildFlags(v Versions) []string {
	flags := []string{"-trimpath", "-buildvcs=false", "-gcflags", "all=-dwarf=false"}
	if len(e.Tags) > 0 {
		flags = append(flags, "-tags", strings.Join(e.Tags, ","))
	}
	return append(flags, "-ldflags", e.ldflags(v))
}

var majorSuffix = regexp.MustCompile(`^v[0-9]+$`)

// defaultName is the file name that `go build -o DIR/` gives to a program.
func (p Program) defaultName() string {
	if base := path.Base(p.Package); !majorSuffix.MatchString(base) {
		return base
	}
	return path.Base(path.Dir(p.Package))
}

// stamp of the version of a module, as it is written in go.mod (v1.2.3).
func version(variable, module string) Stamp {
	return Stamp{Variable: variable, Value: func(v Versions) string { return v[module] }}
}

// bare is version without the leading v.
func bare(variable, module string) Stamp {
	return Stamp{Variable: variable, Value: func(v Versions) string { return strings.TrimPrefix(v[module], "v") }}
}

// number is one numeric part (0 major, 1 minor) of the version of a module.
func number(variable, module string, part int) Stamp {
	return Stamp{Variable: variable, Value: func(v Versions) string {
		parts := strings.SplitN(strings.TrimPrefix(v[module], "v"), ".", 3)
		if part >= len(parts) {
			return ""
		}
		return parts[part]
	}}
}

func fixed(variable, value string) Stamp {
	return Stamp{Variable: variable, Value: func(Versions) string { return value }}
}

const (
	kubernetesModule = "k8s.io/kubernetes"
	prometheusModule = "github.com/prometheus/prometheus"
	argocdModule     = "github.com/argoproj/argo-cd/v3"
	rolloutsModule   = "github.com/argoproj/argo-rollouts"
	helmModule       = "helm.sh/helm/v4"
	corednsModule    = "github.com/coredns/coredns"
	registryModule   = "github.com/distribution/distribution/v3"
	traefikModule    = "github.com/traefik/traefik/v3"
	giteaModule      = "code.gitea.io/gitea"
	runnerModule     = "gitea.com/gitea/runner"
	buildkitModule   = "github.com/moby/buildkit"
	trivyModule      = "github.com/aquasecurity/trivy"
	fulcioModule     = "github.com/sigstore/fulcio"
	timestampModule  = "github.com/sigstore/timestamp-authority/v2"
	rekorModule      = "github.com/sigstore/rekor-tiles/v2"
	cosignModule     = "github.com/sigstore/cosign/v3"
	lokiModule       = "github.com/grafana/loki/v3"
	fluentModule     = "github.com/fluent/fluent-operator/v3"
)

// toolchain is the Go version that builds every engine. One for all of them means
// that the standard library, and what they have at the same version (client-go
// above all: TestEnginesShareClientGo), is compiled once.
const toolchain = "go1.27.0"

// GiteaWeb is the extra of the gitea engine that builds its web page.
const GiteaWeb = "gitea-web"

// Catalogue lists the engines, those that `up` needs first at the front.
//
// A commit is stamped by its tag: the module proxy serves tags, and naming a
// hash that nothing checks would be a guess. Dates are left out, so that the
// same input gives the same binary.
func Catalogue() []Engine {
	return []Engine{
		{
			Name:      "registry",
			Purpose:   "CNCF distribution, the fleet's image and chart registry",
			Module:    registryModule,
			Toolchain: toolchain,
			Stamps: []Stamp{
				version(registryModule+"/version.version", registryModule),
				version(registryModule+"/version.revision", registryModule),
			},
			Steps:   [][]Program{{{"registry", "github.com/omnivision/omnivision/engines/registry"}}},
			Scratch: 1 << 30,
		},
		{
			Name:      "kubernetes",
			Purpose:   "Kubernetes and etcd, Argo CD, Helm and kustomize, which share most of their packages",
			Module:    kubernetesModule,
			Toolchain: toolchain,
			Stamps: slices.Concat(
				kubernetesStamps("k8s.io/component-base/version"),
				kubernetesStamps("k8s.io/client-go/pkg/version"),
				argoStamps(argocdModule+"/common", argocdModule),
				[]Stamp{
					version(argocdModule+"/common.kubectlVersion", kubernetesModule),
					version(helmModule+"/internal/version.version", helmModule),
					version(helmModule+"/internal/version.gitCommit", helmModule),
					fixed(helmModule+"/internal/version.gitTreeState", "clean"),
				},
			),
			Steps: [][]Program{
				{
					{"etcd", "go.etcd.io/etcd/server/v3"},
					{"kube-apiserver", kubernetesModule + "/cmd/kube-apiserver"},
				},
				{
					{"kube-controller-manager", kubernetesModule + "/cmd/kube-controller-manager"},
					{"kube-scheduler", kubernetesModule + "/cmd/kube-scheduler"},
					{"kubelet", kubernetesModule + "/cmd/kubelet"},
					{"kube-proxy", kubernetesModule + "/cmd/kube-proxy"},
					{"kubectl", kubernetesModule + "/cmd/kubectl"},
				},
				{
					{"argocd", argocdModule + "/cmd"},
					{"helm", helmModule + "/cmd/helm"},
					{"kustomize", "sigs.k8s.io/kustomize/kustomize/v5"},
				},
			},
			Assets: []Asset{
				{argocdModule, "entrypoint.sh"},
				{argocdModule, "hack/gpg-wrapper.sh"},
				{argocdModule, "hack/git-verify-wrapper.sh"},
			},
			Scratch: 7 << 30,
		},
		{
			// A module of its own: built with the validation of Kubernetes 1.37
			// it refuses every Pod template that names a service account.
			Name:      "rollouts",
			Purpose:   "Argo Rollouts, with the Kubernetes libraries that it was released with",
			Module:    rolloutsModule,
			Toolchain: toolchain,
			Stamps:    argoStamps(rolloutsModule+"/utils/version", rolloutsModule),
			Steps:     [][]Program{{{"rollouts-controller", rolloutsModule + "/cmd/rollouts-controller"}}},
			Scratch:   3 << 30,
		},
		{
			Name:      "coredns",
			Purpose:   "CoreDNS with the plugins of a cluster's Corefile",
			Module:    corednsModule,
			Toolchain: toolchain,
			Stamps:    []Stamp{version(corednsModule+"/coremain.GitCommit", corednsModule)},
			Steps:     [][]Program{{{"coredns", "github.com/omnivision/omnivision/engines/coredns"}}},
			Scratch:   2 << 30,
		},
		{
			Name:      "gitea",
			Purpose:   "Gitea, the fleet's forge",
			Module:    giteaModule,
			Toolchain: toolchain,
			Tags:      []string{"sqlite", "sqlite_unlock_notify"},
			CGO:       true,
			Stamps:    []Stamp{bare("main.Version", giteaModule)},
			Steps:     [][]Program{{{"gitea", giteaModule}}},
			Extras:    []string{GiteaWeb},
			Scratch:   2 << 30,
		},
		{
			Name:      "runner",
			Purpose:   "Gitea's Actions runner",
			Module:    runnerModule,
			Toolchain: toolchain,
			Stamps:    []Stamp{version(runnerModule+"/internal/pkg/ver.version", runnerModule)},
			Steps:     [][]Program{{{"runner", runnerModule}}},
			Scratch:   1 << 30,
		},
		{
			Name:      "prometheus",
			Purpose:   "Prometheus, which judges canaries, with Kubernetes as the one service discovery",
			Module:    prometheusModule,
			Toolchain: toolchain,
			Release:   prometheusVersion,
			Tags:      []string{"remove_all_sd", "enable_kubernetes_sd"},
			Stamps: []Stamp{
				{
					Variable: "github.com/prometheus/common/version.Version",
					Value:    func(v Versions) string { return strings.TrimPrefix(prometheusVersion(v[prometheusModule]), "v") },
				},
				version("github.com/prometheus/common/version.Revision", prometheusModule),
			},
			Steps:   [][]Program{{{"prometheus", prometheusModule + "/cmd/prometheus"}}},
			Scratch: 2 << 30,
		},
		{
			// Of the tests alone: a module of its own, so that `up` does without.
			Name:      "promtool",
			Purpose:   "promtool, which tries the canary's queries in the tests",
			Module:    prometheusModule,
			Toolchain: toolchain,
			Release:   prometheusVersion,
			Tags:      []string{"remove_all_sd", "enable_kubernetes_sd"},
			Stamps: []Stamp{{
				Variable: "github.com/prometheus/common/version.Version",
				Value:    func(v Versions) string { return strings.TrimPrefix(prometheusVersion(v[prometheusModule]), "v") },
			}},
			Steps:   [][]Program{{{"promtool", prometheusModule + "/cmd/promtool"}}},
			Scratch: 2 << 30,
		},
		{
			Name:      "traefik",
			Purpose:   "Traefik, ingress and traffic weights, the same on every cloud",
			Module:    traefikModule,
			Toolchain: toolchain,
			Stamps: []Stamp{
				bare(traefikModule+"/pkg/version.Version", traefikModule),
				fixed(traefikModule+"/pkg/version.BuildDate", "unrecorded"),
			},
			Steps:   [][]Program{{{"traefik", traefikModule + "/cmd/traefik"}}},
			Scratch: 3 << 30,
		},
		{
			// A module of its own, with the Kubernetes libraries that it was released with.
			Name:      "fluent-operator",
			Purpose:   "the Fluent Operator, which renders the log sidecars' configuration",
			Module:    fluentModule,
			Toolchain: toolchain,
			Steps:     [][]Program{{{"fluent-manager", fluentModule + "/cmd/fluent-manager"}}},
			Scratch:   2 << 30,
		},
		{
			Name:      "loki",
			Purpose:   "Loki, which keeps the clusters' logs",
			Module:    lokiModule,
			Toolchain: toolchain,
			Stamps: []Stamp{
				bare(lokiModule+"/pkg/util/build.Version", lokiModule),
				version(lokiModule+"/pkg/util/build.Revision", lokiModule),
			},
			Steps:   [][]Program{{{"loki", lokiModule + "/cmd/loki"}}},
			Scratch: 3 << 30,
		},
		// From here on: of the conveyor, which builds them at its first release.
		{
			Name:      "buildkit",
			Purpose:   "BuildKit's daemon, which builds the images of releases",
			Module:    buildkitModule,
			Toolchain: toolchain,
			Stamps: []Stamp{
				version(buildkitModule+"/version.Version", buildkitModule),
				version(buildkitModule+"/version.Revision", buildkitModule),
			},
			Steps:   [][]Program{{{"buildkitd", buildkitModule + "/cmd/buildkitd"}}},
			Scratch: 2 << 30,
		},
		{
			Name:      "rekor",
			Purpose:   "Rekor, the fleet's transparency log",
			Module:    rekorModule,
			Toolchain: toolchain,
			Stamps:    []Stamp{version(sigstoreVersion, rekorModule)},
			Steps:     [][]Program{{{"rekor-server", rekorModule + "/cmd/rekor-server/posix"}}},
			Scratch:   2 << 30,
		},
		{
			Name:      "sigstore",
			Purpose:   "Fulcio and the timestamp authority, which witness who signed and when",
			Module:    fulcioModule,
			Toolchain: toolchain,
			// Both have the one variable, and so both tell both versions.
			Stamps: []Stamp{{Variable: sigstoreVersion, Value: func(v Versions) string {
				return v[fulcioModule] + "+timestamp-authority." + strings.TrimPrefix(v[timestampModule], "v")
			}}},
			Steps: [][]Program{{
				{"fulcio", "github.com/omnivision/omnivision/engines/sigstore/fulcio"},
				{"timestamp-server", "github.com/omnivision/omnivision/engines/sigstore/timestamp-server"},
			}},
			Scratch: 2 << 30,
		},
		{
			Name:    "trivy",
			Purpose: "Trivy, which stops vulnerable images",
			Module:  trivyModule,
			// It is written for the experimental encoding/json/v2 of Go 1.26, which
			// Go 1.27 took in with other names (json.SkipFunc is gone).
			Toolchain:  "go1.26.8",
			Experiment: "jsonv2",
			Stamps:     []Stamp{bare(trivyModule+"/pkg/version/app.ver", trivyModule)},
			Steps:      [][]Program{{{"trivy", trivyModule + "/cmd/trivy"}}},
			Scratch:    4 << 30,
		},
		{
			// Of the tests alone: what the conveyor signs must satisfy upstream's
			// own program.
			Name:      "cosign",
			Purpose:   "Cosign, which verifies in the tests what the conveyor signed",
			Module:    cosignModule,
			Toolchain: toolchain,
			Stamps:    []Stamp{version(sigstoreVersion, cosignModule)},
			Steps:     [][]Program{{{"cosign", cosignModule + "/cmd/cosign"}}},
			Scratch:   3 << 30,
		},
	}
}

// prometheusVersion is the release that a version of Prometheus' Go module is:
// v0.316.0 of the module is Prometheus v3.16.0.
func prometheusVersion(module string) string {
	minor, patch, ok := strings.Cut(strings.TrimPrefix(module, "v0."), ".")
	if !ok || len(minor) < 3 {
		return module
	}
	number, err := strconv.Atoi(minor[1:])
	if err != nil {
		return module
	}
	return fmt.Sprintf("v%c.%d.%s", minor[0], number, patch)
}

// sigstoreVersion is where Sigstore's programs keep their version.
const sigstoreVersion = "sigs.k8s.io/release-utils/version.gitVersion"

// kubernetesStamps are what Kubernetes' own build sets in each of its two
// version packages.
func kubernetesStamps(pkg string) []Stamp {
	return []Stamp{
		version(pkg+".gitVersion", kubernetesModule),
		number(pkg+".gitMajor", kubernetesModule, 0),
		number(pkg+".gitMinor", kubernetesModule, 1),
		version(pkg+".gitCommit", kubernetesModule),
		fixed(pkg+".gitTreeState", "clean"),
	}
}

// argoStamps are those of the Argo projects: only with a tag, a commit and a
// clean tree do they report the tag, otherwise the version gets "+unknown".
func argoStamps(pkg, module string) []Stamp {
	return []Stamp{
		bare(pkg+".version", module),
		version(pkg+".gitTag", module),
		version(pkg+".gitCommit", module),
		fixed(pkg+".gitTreeState", "clean"),
	}
}

// find returns the engine called name.
func find(catalogue []Engine, name string) (Engine, error) {
	var known []string
	for _, e := range catalogue {
		if e.Name == name {
			return e, nil
		}
		known = append(known, e.Name)
	}
	return Engine{}, fmt.Errorf("no engine is called %q; there are %s", name, strings.Join(known, ", "))
}
