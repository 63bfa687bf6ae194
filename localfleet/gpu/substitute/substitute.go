// Package substitute is the program gpu-substitute: it gives a node of the local fleet GPUs that are simulated, behind
// the interfaces of real ones. One process holds the devices, offers them to the kubelet, exports their metrics and
// lets a rehearsal raise Xids on them.
package substitute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/localfleet/gpu/control"
	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/exporter"
	"github.com/omnivision/omnivision/localfleet/gpu/plugin"
	"github.com/omnivision/omnivision/localfleet/gpu/podresources"
)

// Defaults of a Config: where a Pod finds the kubelet's directories, as NVIDIA's device plugin and dcgm-exporter do.
const (
	DefaultDevicePluginDir    = "/var/lib/kubelet/device-plugins"
	DefaultPodResourcesSocket = "/var/lib/kubelet/pod-resources/kubelet.sock"
	DefaultStateDir           = "/var/lib/omnivision-gpu"
	DefaultMetricsListen      = ":9400"

	lockTimeout     = 30 * time.Second
	shutdownTimeout = 5 * time.Second
)

// Config says which GPUs to simulate and where the node's kubelet is.
type Config struct {
	Cluster, Node string
	// Count, Model and MemoryMiB describe the GPUs; zero values mean one T4.
	Count     int
	Model     string
	MemoryMiB int
	// Policy says which Xids condemn a device; the zero value is that of NVIDIA's device plugin.
	Policy device.Policy
	// XidWindow is the window of DCGM_EXP_XID_ERRORS_COUNT; zero means dcgm-exporter's five minutes.
	XidWindow time.Duration
	// MaxLogBytes bounds a generation of a device's Xid log; zero means device.DefaultMaxLogBytes.
	MaxLogBytes int64

	// StateDir is where devices, logs and the control socket are, as this process sees it; HostStateDir is the same
	// directory as the container runtime sees it. An empty HostStateDir means that both see the same path.
	StateDir, HostStateDir string
	DevicePluginDir        string
	PodResourcesSocket     string
	MetricsListen          string

	Version string
	Log     *slog.Logger
}

func (c *Config) complete() error {
	if c.Node == "" {
		return errors.New("the name of the node is missing: give it as --node or NODE_NAME; it names the GPUs")
	}
	orElse(&c.StateDir, DefaultStateDir)
	orElse(&c.HostStateDir, c.StateDir)
	orElse(&c.DevicePluginDir, DefaultDevicePluginDir)
	orElse(&c.PodResourcesSocket, DefaultPodResourcesSocket)
	orElse(&c.MetricsListen, DefaultMetricsListen)
	orElse(&c.Version, "unknown")
	if c.Count == 0 {
		c.Count = 1
	}
	if c.XidWindow < 0 {
		return fmt.Errorf("the window of the Xid count is %s: give a positive one", c.XidWindow)
	}
	if !filepath.IsAbs(c.HostStateDir) {
		return fmt.Errorf("the state directory on the node is %q: give an absolute path, the kubelet mounts from there", c.HostStateDir)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func orElse(value *string, fallback string) {
	if *value == "" {
		*value = fallback
	}
}

// Run simulates the GPUs until ctx is done.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	pods := podresources.Lister{Socket: cfg.PodResourcesSocket, Resource: plugin.Resource}
	devices, err := openDevices(ctx, cfg, pods)
	if err != nil {
		return err
	}
	defer devices.Close()
	metricsListener, err := net.Listen("tcp", cfg.MetricsListen)
	if err != nil {
		return fmt.Errorf("serving the metrics: %w; another exporter on this address?", err)
	}
	defer metricsListener.Close()
	controlListener, err := control.Listen(filepath.Join(cfg.StateDir, control.SocketName))
	if err != nil {
		return err
	}
	defer controlListener.Close()

	kubelet := plugin.New(plugin.Config{Dir: cfg.DevicePluginDir, HostXidDir: filepath.Join(cfg.HostStateDir, filepath.Base(devices.LogDir())), Devices: devices, Log: cfg.Log})
	controller := &control.Server{Node: cfg.Node, Devices: devices, Owners: pods.Owners, Log: cfg.Log}
	metrics := metricsHandler(cfg, devices, pods, kubelet)
	cfg.Log.Info("GPUs of this node are simulated", "node", cfg.Node, "gpus", cfg.Count, "metrics", metricsListener.Addr().String(),
		"control", controlListener.Addr().String(), "devicePluginDir", cfg.DevicePluginDir)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return kubelet.Run(ctx) })
	group.Go(func() error { return serve(ctx, metricsListener, metrics) })
	group.Go(func() error { return serve(ctx, controlListener, controller.Handler()) })
	return group.Wait()
}

func openDevices(ctx context.Context, cfg Config, pods podresources.Lister) (*device.Set, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return device.Open(ctx, device.Config{
		Dir: cfg.StateDir, Cluster: cfg.Cluster, Node: cfg.Node,
		Count: cfg.Count, Model: cfg.Model, MemoryMiB: cfg.MemoryMiB,
		Policy: cfg.Policy, MaxLogBytes: cfg.MaxLogBytes, InUse: pods.InUse, Log: cfg.Log,
	})
}

// metricsHandler serves /metrics and /health as dcgm-exporter does, and /ready, which says whether the kubelet has the
// devices.
func metricsHandler(cfg Config, devices *device.Set, pods podresources.Lister, kubelet *plugin.Plugin) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", exporter.Handler(exporter.Config{
		Node: cfg.Node, Version: cfg.Version, Devices: devices, Owners: pods.Owners,
		Registrations: kubelet.Registrations, Window: cfg.XidWindow, Log: cfg.Log,
	}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive; these GPUs are simulated") })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := kubelet.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "the kubelet has the simulated GPUs")
	})
	return mux
}

func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		err := server.Shutdown(ctx)
		if err != nil {
			err = errors.Join(fmt.Errorf("waiting for requests on %s to end: %w", listener.Addr(), err), server.Close())
		}
		stopped <- err
	})
	err := server.Serve(listener)
	if stop() { // it failed by itself
		return fmt.Errorf("serving on %s: %w", listener.Addr(), err)
	}
	return <-stopped
}
