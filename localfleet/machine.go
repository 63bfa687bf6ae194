package localfleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/omnivision/omnivision/localfleet/engine"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/network"
	"github.com/omnivision/omnivision/localfleet/preflight"
	"github.com/omnivision/omnivision/localfleet/topology"
	"golang.org/x/sys/unix"
)

// programs maps what the fleet runs of the machine's own to Debian's packages.
var programs = map[string]string{
	"containerd":              "containerd",
	"containerd-shim-runc-v2": "containerd",
	"runc":                    "runc",
	"/usr/lib/cni/ptp":        "containernetworking-plugins",
	"nft":                     "nftables",
	"git":                     "git",
	"gcc":                     "gcc",
	"/usr/include/stdlib.h":   "libc6-dev",
	"ip":                      "iproute2",
	"npm":                     "npm",
}

const (
	stateBytes  = 6e9 // etcd, node file systems, unpacked images
	enginesRoom = 9e9 // built engines and images
	memoryBytes = 6e9 // two clusters and what is around them
)

// Checks are the questions to this machine that Up asks before it starts
// anything. On a machine that already runs the fleet its ports are its own.
func (f *Fleet) Checks() []preflight.Check {
	checks := []preflight.Check{preflight.Root(os.Geteuid())}
	if mayTry() {
		checks = append(checks, preflight.Kernel(netns.OnThread)...)
	}
	checks = append(checks, preflight.Disk("state", f.StateDir, stateBytes))
	if len(f.sup.Members()) == 0 {
		checks = append(checks,
			preflight.Disk("engines and images", f.CacheDir, enginesRoom),
			preflight.Memory(memoryBytes),
			preflight.Ports(f.Plan.Ports()))
	}
	return checks
}

// PackageChecks are the questions that only hold once packages are installed.
func (f *Fleet) PackageChecks() []preflight.Check {
	checks := []preflight.Check{preflight.Packages(programs)}
	if mayTry() {
		checks = append(checks, preflight.NFTables(inThrowawayNetwork))
	}
	return checks
}

// mayTry reports whether the kernel's features can be tried. Without root each
// would fail for that alone, and hide the one thing that is wrong.
func mayTry() bool { return os.Geteuid() == 0 }

func inThrowawayNetwork(probe func() error) error {
	return netns.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return probe()
	})
}

func (f *Fleet) preflight(ctx context.Context, report func(string)) error {
	report("asking the machine")
	return preflight.Failed(preflight.Run(ctx, f.Checks()))
}

func (f *Fleet) packages(ctx context.Context, report func(string)) error {
	if missing := preflight.MissingPackages(programs); len(missing) > 0 {
		report(fmt.Sprintf("installing %d packages", len(missing)))
		if err := preflight.Install(ctx, missing); err != nil {
			return err
		}
	}
	return preflight.Failed(preflight.Run(ctx, f.PackageChecks()))
}

// engineNames is what a running fleet needs; other commands build their own. Two
// are built at a time, in this order: a small one compiles while the modules of
// Kubernetes come, and those that share libraries (Kubernetes with CoreDNS and
// Prometheus, Rollouts with Traefik) are apart, so that the later one finds them
// compiled.
var engineNames = []string{"registry", "kubernetes", "gitea", "rollouts", "runner", "traefik", "prometheus", "coredns", "fluent-operator", "rekor", "sigstore", "trivy", "loki"}

func newStore(options Options) *engine.Store {
	return &engine.Store{
		Dir: options.CacheDir, Source: options.Source, KeepCaches: options.KeepBuildCaches, SeedCache: true,
		Extras: EngineExtras(),
	}
}

// EngineExtras are the steps of the engines' builds that are not Go programs.
func EngineExtras() map[string]engine.ExtraStep {
	return map[string]engine.ExtraStep{engine.GiteaWeb: giteaAssets}
}

// giteaAssets writes what Gitea's program looks for on disk. A machine that
// cannot build the page gets a forge without one, which all of the fleet but a
// person's browser can do with.
func giteaAssets(ctx context.Context, in engine.ExtraInput) error {
	source, err := in.ModuleDir(ctx, "code.gitea.io/gitea")
	if err != nil {
		return err
	}
	assets := gitea.Assets{Source: source, Dest: in.Dir, Report: in.Report}
	return gitea.WriteAssets(ctx, assets)
}

func (f *Fleet) engines(ctx context.Context, report func(string)) error {
	return f.Store.Ensure(ctx, engineNames, func(e engine.Event) { report(buildProgress(e)) })
}

func (f *Fleet) network(context.Context, func(string)) error {
	return network.Ensure(f.Plan)
}

func removeNetwork() error { return network.Remove() }

// users of the servers that must not be root. They need no name.
const (
	forgeUID    = 64101
	runnerUID   = 64102
	registryUID = 64103
	sigstoreUID = 64104
)

func (f *Fleet) path(parts ...string) string {
	return filepath.Join(append([]string{f.StateDir}, parts...)...)
}

// ownProgram is the path of this program, of which the fleet runs some commands as daemons.
func ownProgram() (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return program, nil
}

// waitFor calls done until it returns nil, and says what it waited for when
// the limit passes (P45).
func waitFor(ctx context.Context, what string, limit time.Duration, done func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		err := done(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("waited %s for %s: %w", limit, what, err)
		case <-tick.C:
		}
	}
}

func makeDirs(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// hubURL is how processes in the hub reach a port of it.
func hubURL(port int) string { return fmt.Sprintf("http://%s:%d", topology.HubAddress, port) }
