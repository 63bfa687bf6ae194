// Package podlogs is a CSI driver that shows a Pod its own log directory, /var/log/pods/<namespace>_<name>_<uid>,
// read-only, and nothing else of the node (P30). Pod Security `baseline` and `restricted` forbid hostPath and allow
// inline CSI volumes, so a log sidecar needs no privilege where this driver runs.
//
// It serves inline ephemeral volumes alone: the Identity and Node services of the Container Storage Interface 1.12, and
// the kubelet's plugin registration v1. There is nothing to create, attach, stage or expand. Which Pod a volume is for
// comes from the kubelet (CSIDriver.spec.podInfoOnMount), never from the Pod's own words: the uid must also be the one in
// the target path, which the kubelet makes.
package podlogs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// DriverName is what volumes name as their driver, and the name of the CSIDriver object.
const DriverName = "podlogs.omnivision.ai"

const (
	// DefaultLogDir is where the kubelet keeps Pods' logs.
	DefaultLogDir = "/var/log/pods"
	// DefaultKubeletDir is the kubelet's root directory.
	DefaultKubeletDir = "/var/lib/kubelet"
)

// Config says on which node the driver runs and where it finds what.
type Config struct {
	// NodeName is the node's name in Kubernetes.
	NodeName string
	// LogDir is the kubelet's podLogsDir. The driver sees it under the same path as the kubelet.
	LogDir string
	// KubeletDir is the kubelet's root directory: volumes are published below its folder pods.
	KubeletDir string
	// PluginDir is where the driver's own socket is made; the kubelet must see it under the same path.
	PluginDir string
	// RegistryDir is the directory that the kubelet watches for plugins.
	RegistryDir string
	// Version is reported to the kubelet.
	Version string
	Log     *slog.Logger
}

// withDefaults fills in what a kubelet has by default.
func (c Config) withDefaults() (Config, error) {
	if c.NodeName == "" {
		return c, errors.New("the node's name is not known: set --node, or NODE_NAME from spec.nodeName")
	}
	if c.LogDir == "" {
		c.LogDir = DefaultLogDir
	}
	if c.KubeletDir == "" {
		c.KubeletDir = DefaultKubeletDir
	}
	if c.PluginDir == "" {
		c.PluginDir = filepath.Join(c.KubeletDir, "plugins", DriverName)
	}
	if c.RegistryDir == "" {
		c.RegistryDir = filepath.Join(c.KubeletDir, "plugins_registry")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{c.LogDir, c.KubeletDir, c.PluginDir, c.RegistryDir} {
		if !filepath.IsAbs(dir) {
			return c, fmt.Errorf("directory %q must be absolute", dir)
		}
	}
	return c, nil
}

// Driver publishes log directories for one node.
type Driver struct {
	cfg     Config
	pods    string // KubeletDir/pods
	metrics metrics

	mu    sync.Mutex
	state error // why the kubelet cannot use the driver; nil when it can
	// busy has the targets that a call works on: the kubelet may repeat a call that it gave up on.
	busy map[string]bool
}

var errNotRegistered = errors.New("the kubelet has not registered the driver yet")

// New makes a driver; Run starts it. Its metrics are registered with registerer, if there is one.
func New(cfg Config, registerer prometheus.Registerer) (*Driver, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(cfg.LogDir); err != nil {
		return nil, fmt.Errorf("the node's log directory: %w; set --log-dir to the kubelet's podLogsDir, and mount it", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("the node's log directory: %s is not a directory", cfg.LogDir)
	}
	d := &Driver{cfg: cfg, pods: filepath.Join(cfg.KubeletDir, "pods"), metrics: newMetrics(), state: errNotRegistered, busy: map[string]bool{}}
	if registerer != nil {
		if err := d.metrics.register(registerer); err != nil {
			return nil, fmt.Errorf("register the driver's metrics: %w", err)
		}
	}
	return d, nil
}

// Ready returns nil while the kubelet has the driver, and otherwise what is missing.
func (d *Driver) Ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

func (d *Driver) setState(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = err
	registered := 0.0
	if err == nil {
		registered = 1
	}
	d.metrics.registered.Set(registered)
}

// begin claims a target for one call; false if another call has it.
func (d *Driver) begin(target string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy[target] {
		return false
	}
	d.busy[target] = true
	return true
}

func (d *Driver) end(target string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, target)
}
