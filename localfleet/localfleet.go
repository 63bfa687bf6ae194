// Package localfleet brings a whole fleet up on one machine, for rehearsal and
// tests: real Kubernetes clusters with the nodes that their clouds give them,
// and around them what the internet would supply, under the same names.
//
// The clusters run the production tree unmodified. What stands in for
// something of production is listed by Status as a substitute.
package localfleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet/controlplane"
	"github.com/omnivision/omnivision/localfleet/engine"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/mirror"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
)

// Options say which fleet, and where on this machine it lives.
type Options struct {
	StateDir string // run state; gone after Down
	CacheDir string // engines and images; kept
	Source   string // checkout of this project
	PortBase int    // first loopback port
	Clusters []string
	Offline  bool // never ask upstream registries and repositories
	// Contexts name kubeconfig contexts of clusters that exist, to be used instead
	// of local ones; see MatchContexts.
	Contexts []string
	// KeepBuildCaches leaves the Go caches of the engines' builds on disk.
	KeepBuildCaches bool
}

// Fleet is a local fleet, running or not.
type Fleet struct {
	Options
	Plan  *topology.Plan
	Tree  *fleet.Fleet
	Store *engine.Store

	sup     *process.Supervisor
	version sourceVersion

	// Of clusters that exist: their contexts and how to reach them, by name.
	contexts map[string]string
	remote   map[string]*rest.Config

	// What the steps of Up hand on to later ones.
	forge       *gitea.Server
	made        madeImages
	mirrors     []mirrored
	substitutes substitutes
}

// mirrored is an upstream repository, and its bare copy on this machine.
type mirrored struct {
	repo mirror.Repo
	dir  string
}

// treeDir is where a checkout keeps the GitOps tree.
const treeDir = "omnivision-gitops"

// Open reads the fleet's description from the checkout and plans it.
func Open(options Options) (*Fleet, error) {
	tree := filepath.Join(options.Source, treeDir)
	described, err := fleet.Load(os.DirFS(tree))
	if err != nil {
		return nil, fmt.Errorf("read the fleet's description in %s: %w", tree, err)
	}
	contexts, err := MatchContexts(described, options.Contexts)
	if err != nil {
		return nil, err
	}
	if len(contexts) > 0 && len(options.Clusters) > 0 {
		return nil, errors.New("--only is for local clusters: name a --context for each cluster instead")
	}
	chosen, err := choose(described, append(sortedKeys(contexts), options.Clusters...))
	if err != nil {
		return nil, err
	}
	plan, err := topology.New(options.StateDir, options.PortBase, chosen)
	if err != nil {
		return nil, err
	}
	if err := planAddedNodes(plan); err != nil {
		return nil, err
	}
	remote, err := Connect(contexts)
	if err != nil {
		return nil, err
	}
	return &Fleet{
		version: readVersion(options.Source), contexts: contexts, remote: remote,
		Options: options, Plan: plan, Tree: described,
		Store: newStore(options),
		sup:   &process.Supervisor{Dir: options.StateDir, Cgroup: topology.Cgroup},
	}, nil
}

func choose(described *fleet.Fleet, names []string) ([]topology.ClusterSpec, error) {
	var specs []topology.ClusterSpec
	if len(names) == 0 {
		for _, c := range described.Clusters {
			specs = append(specs, topology.ClusterSpec{Name: c.Name, Cloud: c.Cloud, Region: c.Region})
		}
		return specs, nil
	}
	for _, name := range names {
		c, err := described.Cluster(name)
		if err != nil {
			return nil, err
		}
		specs = append(specs, topology.ClusterSpec{Name: c.Name, Cloud: c.Cloud, Region: c.Region})
	}
	return specs, nil
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// SourceRoot finds the checkout that dir is in.
func SourceRoot(dir string) (string, error) {
	const module = "module github.com/omnivision/omnivision\n"
	for at := dir; ; at = filepath.Dir(at) {
		data, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), module) {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("%s is not inside a checkout of this project: change to one, or name it with --source", dir)
		}
	}
}

// Lock takes the fleet for this command alone. The returned function gives it
// back.
func (f *Fleet) Lock() (func(), error) {
	if err := os.MkdirAll(filepath.Dir(f.lockPath()), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(f.lockPath(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) //nolint:gosec // descriptors are small
	if err == nil {
		if err := os.WriteFile(f.lockPath(), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
			return nil, err
		}
		return func() { _ = file.Close() }, nil
	}
	holder, _ := os.ReadFile(f.lockPath())
	_ = file.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", f.lockPath(), err)
	}
	return nil, fmt.Errorf("another command is changing this fleet (process %s): wait until it ends, or look with 'omnivision status'",
		strings.TrimSpace(string(holder)))
}

// lockPath is beside the state, which Down removes.
func (f *Fleet) lockPath() string { return strings.TrimRight(f.StateDir, "/") + ".lock" }

// program returns the path of an engine's program.
func (f *Fleet) program(name string) (string, error) { return f.Store.Path(name) }

// ControlPlane opens the control plane of the cluster called name.
func (f *Fleet) ControlPlane(name string) (*controlplane.ControlPlane, error) {
	cluster, err := f.Plan.Cluster(name)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cluster.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not up: start the fleet with 'omnivision up'", name)
	}
	return controlplane.Open(cluster, f.sup, f.program)
}

// Down ends every process of the fleet and removes its namespaces and state.
// Engines and images stay, so that the next Up is quick. It works from whatever
// is found, also after Up was killed half way.
func (f *Fleet) Down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	// Nothing is asked to end by itself: all state is removed next.
	if err := f.sup.Sweep(ctx, ""); err != nil {
		return err
	}
	if err := removeNetwork(); err != nil {
		return err
	}
	if err := unmountBelow(f.StateDir); err != nil {
		return err
	}
	if err := os.RemoveAll(f.StateDir); err != nil {
		return fmt.Errorf("remove the fleet's state: %w", err)
	}
	return nil
}

// unmountBelow takes away mounts below dir. There are none, since nodes mount
// in namespaces of their own, unless somebody made one by hand; removing files
// through it would be worse than failing.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	for i := len(found) - 1; i >= 0; i-- {
		if err := unix.Unmount(found[i], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", found[i], err)
		}
	}
	return nil
}
