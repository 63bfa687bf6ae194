// Command gpu-substitute gives a node of OmniVision's local fleet simulated GPUs behind the interfaces of real ones. It
// is a substitute for NVIDIA's device plugin and dcgm-exporter and runs in no other cluster.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/exporter"
	"github.com/omnivision/omnivision/localfleet/gpu/substitute"
)

// version is stamped by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gpu-substitute:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	var cfg substitute.Config
	var ignoreXids, condemnXids string
	cmd := &cobra.Command{
		Use:   "gpu-substitute",
		Short: "A substitute: simulated GPUs for a node of the local fleet",
		Long: `gpu-substitute is a substitute for NVIDIA's device plugin and dcgm-exporter. It offers simulated GPUs to the
kubelet as nvidia.com/gpu, exports metrics about them in the shape of dcgm-exporter, and raises an Xid on a device
when it is told to over its control socket. Nothing is computed on these GPUs.`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Policy, err = device.ParsePolicy(ignoreXids, condemnXids); err != nil {
				return err
			}
			cfg.Version = version
			cfg.Log = slog.New(slog.NewJSONHandler(cmd.OutOrStdout(), nil)).With("substitute", "gpu")
			return substitute.Run(cmd.Context(), cfg)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Cluster, "cluster", "", "name of the cluster; with the node's it names the GPUs")
	flags.StringVar(&cfg.Node, "node", os.Getenv("NODE_NAME"), "name of the node (environment NODE_NAME)")
	flags.IntVar(&cfg.Count, "gpus", 1, fmt.Sprintf("how many GPUs to simulate, at most %d", device.MaxCount))
	flags.StringVar(&cfg.Model, "model", device.DefaultModel, "model name that the metrics show")
	flags.IntVar(&cfg.MemoryMiB, "memory-mib", device.DefaultMemoryMiB, "memory of each GPU in MiB")
	flags.StringVar(&ignoreXids, "disable-healthchecks", os.Getenv("DP_DISABLE_HEALTHCHECKS"), `Xids that leave a device healthy, "all" or numbers separated by commas, besides the application errors 13, 31, 43, 45, 68 and 109 (environment DP_DISABLE_HEALTHCHECKS, as NVIDIA's plugin has it)`)
	flags.StringVar(&condemnXids, "enable-healthchecks", os.Getenv("DP_ENABLE_HEALTHCHECKS"), "Xids that make a device unhealthy even so (environment DP_ENABLE_HEALTHCHECKS)")
	flags.DurationVar(&cfg.XidWindow, "xid-count-window", exporter.DefaultWindow, "how far back DCGM_EXP_XID_ERRORS_COUNT counts; dcgm-exporter's --xid-count-window-size, as a duration")
	flags.Int64Var(&cfg.MaxLogBytes, "max-log-bytes", device.DefaultMaxLogBytes, "size of a device's Xid log at which a new one is started, or the event refused while a container uses the device")
	flags.StringVar(&cfg.StateDir, "state-dir", substitute.DefaultStateDir, "directory of the simulated devices and of the control socket")
	flags.StringVar(&cfg.HostStateDir, "host-state-dir", "", "the same directory as the node's container runtime sees it (default: the value of --state-dir)")
	flags.StringVar(&cfg.DevicePluginDir, "device-plugin-dir", substitute.DefaultDevicePluginDir, "the kubelet's device-plugin directory")
	flags.StringVar(&cfg.PodResourcesSocket, "pod-resources-socket", substitute.DefaultPodResourcesSocket, "the kubelet's pod-resources socket")
	flags.StringVar(&cfg.MetricsListen, "metrics-listen", substitute.DefaultMetricsListen, "address of /metrics, /health and /ready")
	return cmd
}
