package image

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/omnivision/omnivision/localfleet/engine"
)

// Recipe is how the image of one production reference is made on a machine that
// cannot pull it.
type Recipe struct {
	// Reference is the production reference. Without a tag it stands for every
	// tag of an image of this project.
	Reference string
	// Made says of what it is made, from which upstream version.
	Made string
	// Substitute is the sentence for `omnivision status`: what stands in for
	// what, and how it differs.
	Substitute string

	// base is the package set below the image's own layer; empty for none.
	base string
	// program of this source that it holds; empty for none.
	program string
	// arch is Go's name of the architecture; empty is this machine's.
	arch string
	// fill makes the image's own layer.
	fill func(*filler) error
	// config is its configuration; times are set by the builder.
	config v1.Config
}

// filler is what fill works with: the layer's tree, and where files come from.
// The first error sticks, so that a recipe reads as a list.
type filler struct {
	tree
	builder *Builder
	engine  func(binary string) (string, error)
	own     func(program string) (string, error)
	err     error
}

// program places a program of an engine.
func (f *filler) program(binary, at string) { f.place(binary, at, f.engine) }

// ours places a program of this repository's cmd/.
func (f *filler) ours(program, at string) { f.place(program, at, f.own) }

func (f *filler) place(program, at string, find func(string) (string, error)) {
	if f.err != nil {
		return
	}
	path, err := find(program)
	if err == nil {
		err = f.host(at, path, 0o755)
	}
	if err != nil {
		f.err = fmt.Errorf("placing /%s: %w", at, err)
	}
}

// asset places a script that an engine keeps of its module.
func (f *filler) asset(engine, path, at string) {
	if f.err != nil {
		return
	}
	source, err := f.builder.asset(engine, path)
	if err == nil {
		err = f.host(at, source, 0o755)
	}
	if err != nil {
		f.err = fmt.Errorf("placing /%s: %w", at, err)
	}
}

// References that no go.mod decides.
const (
	// redisReference is in the manifests of the Argo CD version in use; a test
	// compares them.
	redisReference = "public.ecr.aws/docker/library/redis:8.10.1-alpine"
	pauseReference = "registry.k8s.io/pause:3.10.1"
	// fluentBitReference is the log sidecar's, as components/gate names it.
	fluentBitReference = "ghcr.io/fluent/fluent-operator/fluent-bit:4.1.1"
)

// Names of this project's own images. Their registry differs from cloud to
// cloud, so they are recognised by the last part of the repository.
const (
	workerImage        = "omnivision-worker"
	uiImage            = "omnivision-ui"
	gateImage          = "omnivision-gate"
	stewardImage       = "omnivision-steward"
	podlogsImage       = "omnivision-podlogs"
	gpuSubstituteImage = "gpu-substitute"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// capNetBindService is the file capability that lets a program of an ordinary
// user listen below port 1024: revision 2 of struct vfs_cap_data, effective,
// bit 10 permitted.
const capNetBindService = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Catalogue lists the recipes for the versions that the engines of the source
// checkout have.
func Catalogue(source string) ([]Recipe, error) {
	store := &engine.Store{Source: source}
	builds, err := store.Resolve("kubernetes", "coredns", "traefik", "prometheus", "rollouts", "loki", "fluent-operator")
	if err != nil {
		return nil, fmt.Errorf("reading the versions of the images: %w", err)
	}
	versions := func(build int, module string) string { return builds[build].Versions[module] }
	return []Recipe{
		argocd(versions(0, "github.com/argoproj/argo-cd/v3")),
		redis(),
		rollouts(builds[4].Version),
		traefik(builds[2].Version),
		prometheus(builds[3].Version),
		coredns(builds[1].Version),
		loki(builds[5].Version),
		fluentOperator(builds[6].Version),
		fluentBit(),
		pause(),
		own(workerImage, "worker", "65532:65532"),
		own(uiImage, "ui", "65532:65532"),
		own(gateImage, "gate", "65532:65532"),
		own(stewardImage, "steward", "65532:65532"),
		own(podlogsImage, "podlogs", "0:0"),
		own(gpuSubstituteImage, "gpu-substitute", "0:0"),
	}, nil
}

// argocd has the paths of upstream's Dockerfile.
func argocd(version string) Recipe {
	return Recipe{
		Reference:  "quay.io/argoproj/argocd:" + version,
		Made:       "Argo CD " + version + " with Helm and kustomize, built from their Go modules, on packages of Debian " + suite,
		Substitute: "Argo CD " + version + " is built from its Go module on Debian packages; its web page is upstream's placeholder, and git-lfs is left out",
		base:       "argocd",
		fill: func(f *filler) error {
			const bin = "usr/local/bin/"
			f.program("argocd", bin+"argocd")
			for _, name := range []string{
				"server", "repo-server", "cmp-server", "application-controller", "dex", "notifications",
				"applicationset-controller", "k8s-auth", "commit-server",
			} {
				f.symlink(bin+"argocd-"+name, "/usr/local/bin/argocd")
			}
			f.program("helm", bin+"helm")
			f.program("kustomize", bin+"kustomize")
			f.asset("kubernetes", "entrypoint.sh", bin+"entrypoint.sh")
			f.asset("kubernetes", "hack/gpg-wrapper.sh", bin+"gpg-wrapper.sh")
			f.asset("kubernetes", "hack/git-verify-wrapper.sh", bin+"git-verify-wrapper.sh")
			f.symlink(bin+"uid_entrypoint.sh", "/usr/local/bin/entrypoint.sh")

			f.dir("home/argocd", 0o775, 999, 0)
			f.dir("app/config", 0o755, 0, 0)
			f.dir("app/config/tls", 0o755, 0, 0)
			f.dir("app/config/gpg/source", 0o755, 0, 0)
			f.dir("app/config/gpg/keys", 0o700, 999, 0)
			f.file("app/config/ssh/ssh_known_hosts", "", 0o644)
			f.symlink("etc/ssh/ssh_known_hosts", "/app/config/ssh/ssh_known_hosts")
			return f.err
		},
		config: v1.Config{
			User: "999", WorkingDir: "/home/argocd",
			Entrypoint: []string{"/usr/bin/tini", "--"},
			Env:        []string{defaultPath, "ARGOCD_USER_ID=999", "USER=argocd", "GRPC_ENABLE_TXT_SERVICE_CONFIG=false"},
		},
	}
}

// redisEntrypoint lets arguments be options alone, as those of Argo CD's
// Deployment are, or a whole command.
const redisEntrypoint = `#!/bin/sh
set -e
case "${1:-}" in
'' | -* | *.conf) set -- redis-server "$@" ;;
esac
exec "$@"
`

func redis() Recipe {
	return Recipe{
		Reference:  redisReference,
		Made:       "redis-server of Debian " + suite,
		Substitute: "Redis is Debian " + suite + "'s 7.0 instead of 8.10; it is Argo CD's cache and holds nothing else",
		base:       "redis",
		fill: func(f *filler) error {
			f.file("usr/local/bin/docker-entrypoint.sh", redisEntrypoint, 0o755)
			f.dir("data", 0o755, 999, 1000)
			return f.err
		},
		config: v1.Config{
			WorkingDir: "/data",
			Entrypoint: []string{"/usr/local/bin/docker-entrypoint.sh"}, Cmd: []string{"redis-server"},
			Env:          []string{defaultPath},
			ExposedPorts: map[string]struct{}{"6379/tcp": {}},
			Volumes:      map[string]struct{}{"/data": {}},
		},
	}
}

func rollouts(version string) Recipe {
	return Recipe{
		Reference:  "quay.io/argoproj/argo-rollouts:" + version,
		Made:       "Argo Rollouts " + version + ", built from its Go module",
		Substitute: "Argo Rollouts " + version + " is built from its Go module",
		base:       "static",
		fill: func(f *filler) error {
			f.program("rollouts-controller", "bin/rollouts-controller")
			f.dir("home/argo-rollouts", 0o755, 999, 999)
			return f.err
		},
		config: v1.Config{
			User: "999", WorkingDir: "/home/argo-rollouts",
			Entrypoint: []string{"/bin/rollouts-controller"}, Env: []string{defaultPath},
		},
	}
}

func traefik(version string) Recipe {
	return Recipe{
		Reference:  "docker.io/library/traefik:" + version,
		Made:       "Traefik " + version + ", built from its Go module",
		Substitute: "Traefik " + version + " is built from its Go module, without its dashboard's page",
		base:       "static",
		fill: func(f *filler) error {
			f.program("traefik", "usr/local/bin/traefik")
			f.symlink("traefik", "/usr/local/bin/traefik")
			return f.err
		},
		config: v1.Config{
			// Upstream's entry point is a script that puts the program's name
			// before options; with the program itself options work the same.
			Entrypoint: []string{"/usr/local/bin/traefik"}, Env: []string{defaultPath},
			ExposedPorts: map[string]struct{}{"80/tcp": {}}, Volumes: map[string]struct{}{"/tmp": {}},
		},
	}
}

func prometheus(version string) Recipe {
	return Recipe{
		Reference:  "quay.io/prometheus/prometheus:" + version,
		Made:       "Prometheus " + version + ", built from its Go module",
		Substitute: "Prometheus " + version + " is built from its Go module with Kubernetes as the one service discovery, without its web page",
		base:       "static",
		fill: func(f *filler) error {
			f.program("prometheus", "bin/prometheus")
			f.dir("prometheus", 0o755, 65534, 65534)
			return f.err
		},
		config: v1.Config{
			User: "65534", WorkingDir: "/prometheus",
			Entrypoint: []string{"/bin/prometheus"},
			Cmd:        []string{"--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"},
			Env:        []string{defaultPath}, ExposedPorts: map[string]struct{}{"9090/tcp": {}},
			Volumes: map[string]struct{}{"/prometheus": {}},
		},
	}
}

func coredns(version string) Recipe {
	return Recipe{
		Reference:  "registry.k8s.io/coredns/coredns:" + version,
		Made:       "CoreDNS " + version + ", built from its Go module",
		Substitute: "CoreDNS " + version + " is built from its Go module with the plugins that the fleet's Corefile uses",
		base:       "static",
		fill: func(f *filler) error {
			f.program("coredns", "coredns")
			if n, ok := f.tree["coredns"]; ok {
				n.xattrs = map[string]string{"security.capability": capNetBindService}
				f.tree["coredns"] = n
			}
			return f.err
		},
		config: v1.Config{
			User: "65532:65532", WorkingDir: "/", Entrypoint: []string{"/coredns"}, Env: []string{defaultPath},
			ExposedPorts: map[string]struct{}{"53/tcp": {}, "53/udp": {}},
		},
	}
}

func loki(version string) Recipe {
	return Recipe{
		Reference:  "docker.io/grafana/loki:" + strings.TrimPrefix(version, "v"),
		Made:       "Loki " + version + ", built from its Go module",
		Substitute: "Loki " + version + " is built from its Go module",
		base:       "static",
		fill: func(f *filler) error {
			f.program("loki", "usr/bin/loki")
			f.dir("loki", 0o755, 10001, 10001)
			return f.err
		},
		config: v1.Config{
			User: "10001", WorkingDir: "/", Entrypoint: []string{"/usr/bin/loki"}, Env: []string{defaultPath},
			ExposedPorts: map[string]struct{}{"3100/tcp": {}},
		},
	}
}

func fluentOperator(version string) Recipe {
	return Recipe{
		Reference:  "ghcr.io/fluent/fluent-operator/fluent-operator:" + version,
		Made:       "the Fluent Operator " + version + ", built from its Go module",
		Substitute: "the Fluent Operator " + version + " is built from its Go module",
		base:       "static",
		fill: func(f *filler) error {
			f.program("fluent-manager", "fluent-manager")
			return f.err
		},
		config: v1.Config{
			User: "65532:65532", WorkingDir: "/", Entrypoint: []string{"/fluent-manager"}, Env: []string{defaultPath},
		},
	}
}

// fluentBit has a program of this project, since Fluent Bit is written in C and no package of it is to be had.
func fluentBit() Recipe {
	r := own(fluentBitReference, "shipper", "65532:65532")
	r.Substitute = "the log sidecars run cmd/shipper, which reads Fluent Bit's configuration and ships to Loki as Fluent Bit does (docs/logging.md)"
	return r
}

func pause() Recipe {
	return Recipe{
		Reference:  pauseReference,
		Made:       "cmd/pause of this source",
		program:    "pause",
		Substitute: "the pause image holds this project's own program, which waits and reaps as upstream's does",
		fill: func(f *filler) error {
			f.ours("pause", "pause")
			return f.err
		},
		config: v1.Config{User: "65535:65535", Entrypoint: []string{"/pause"}, Env: []string{defaultPath}, WorkingDir: "/"},
	}
}

// Own reports whether a repository, without tag, holds an image of this project.
func Own(repository string) bool {
	switch path.Base(repository) {
	case workerImage, uiImage, gateImage, stewardImage, podlogsImage, gpuSubstituteImage:
		return true
	}
	return false
}

// own is an image of this repository. Its Dockerfile is the production path;
// this is the same program over the same few files.
func own(image, program, user string) Recipe {
	r := Recipe{
		Reference:  image,
		Made:       "cmd/" + program + " of this source",
		Substitute: image + " is assembled from this source without BuildKit; it is scanned and signed as a release is",
		base:       "static",
		program:    program,
		fill: func(f *filler) error {
			f.ours(program, "usr/local/bin/"+program)
			return f.err
		},
		config: v1.Config{User: user, WorkingDir: "/", Entrypoint: []string{"/usr/local/bin/" + program}, Env: []string{defaultPath}},
	}
	switch image {
	case stewardImage:
		r.base = "argocd" // the packages around Argo CD, of which it wants git
	case gpuSubstituteImage:
		r.Substitute = "GPUs, their device plugin and DCGM's exporter are simulated by cmd/gpu-substitute"
	}
	return r
}

// match tells whether the recipe is for ref.
func (r Recipe) match(ref name.Reference) bool {
	if strings.Contains(r.Reference, ":") {
		want, err := name.ParseReference(r.Reference)
		return err == nil && want.Name() == ref.Name()
	}
	return filepath.Base(ref.Context().RepositoryStr()) == r.Reference
}

// canonicalHost is the registry's host as production references write it.
func canonicalHost(ref name.Reference) string {
	if host := ref.Context().RegistryStr(); host != name.DefaultRegistry {
		return host
	}
	return "docker.io"
}
