// Command worker generates animations on the GPUs of its container.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/omnivision/omnivision/internal/version"
	"github.com/omnivision/omnivision/worker"
	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/cppn"
	"github.com/omnivision/omnivision/worker/gpu"
	"github.com/omnivision/omnivision/worker/gpu/nvml"
	"github.com/omnivision/omnivision/worker/serve"
)

func main() {
	started := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr, started))
}

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type options struct {
	listen, metricsListen    string
	gpus                     string
	cpuSlots, threads        int
	drainDelay, drainTimeout time.Duration
	generationTimeout        time.Duration
	identity                 api.Identity
	logLevel                 slog.Level
	showVersion              bool
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("worker", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.listen, "listen", ":8080", "`address` of the API and the probes")
	fs.StringVar(&o.metricsListen, "metrics-listen", ":9090", "`address` of /metrics")
	fs.StringVar(&o.gpus, "gpus", "auto", "auto: the devices in $"+gpu.VisibleDevicesVariable+", or without it those that NVML shows, and none is an error; cpu: do without a GPU")
	fs.IntVar(&o.cpuSlots, "cpu-slots", 1, "with --gpus=cpu, how many generations may run at a time")
	fs.IntVar(&o.threads, "render-threads", 1, "CPU cores that one generation may use")
	fs.DurationVar(&o.drainDelay, "drain-delay", 5*time.Second, "after SIGTERM, how long to take requests while not ready")
	fs.DurationVar(&o.drainTimeout, "drain-timeout", 45*time.Second, "after that, how long streams in flight may take; keep the Pod's grace period longer than both")
	fs.DurationVar(&o.generationTimeout, "generation-timeout", worker.DefaultGenerationTimeout, "the longest that one generation may take")
	fs.StringVar(&o.identity.Cluster, "cluster", getenv("OMNIVISION_CLUSTER"), "name of the cluster, by default $OMNIVISION_CLUSTER")
	fs.StringVar(&o.identity.Region, "region", getenv("OMNIVISION_REGION"), "region of the cluster, by default $OMNIVISION_REGION")
	fs.StringVar(&o.identity.Digest, "image-digest", getenv("OMNIVISION_IMAGE_DIGEST"), "digest of this image, by default $OMNIVISION_IMAGE_DIGEST")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; every option is a flag, see --help", fs.Arg(0))
	}
	if o.gpus != "auto" && o.gpus != "cpu" {
		return o, fmt.Errorf("--gpus=%s: must be auto or cpu", o.gpus)
	}
	if o.cpuSlots < 1 || o.threads < 1 {
		return o, errors.New("--cpu-slots and --render-threads must be at least 1")
	}
	build := version.Get()
	o.identity.Version, o.identity.Commit = build.Version, build.Commit
	return o, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer, started time.Time) int {
	o, err := parse(args, getenv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "worker:", err)
		return exitUsage
	case o.showVersion:
		fmt.Fprintf(stdout, "worker %s (commit %s, %s)\n", o.identity.Version, o.identity.Commit, version.Get().Go)
		return exitOK
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: o.logLevel})).
		With("service", "omnivision-worker", "version", o.identity.Version)
	if err := start(ctx, o, getenv, log, started); err != nil {
		log.Error("the worker ended", "error", err.Error())
		return exitFailed
	}
	return exitOK
}

func start(ctx context.Context, o options, getenv func(string) string, log *slog.Logger, started time.Time) error {
	devices, err := o.devices(getenv, nvml.Visible)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server, err := worker.New(worker.Config{
		Model:             cppn.Model{Threads: o.threads},
		Devices:           devices,
		Identity:          o.identity,
		Log:               log,
		Registry:          registry,
		GenerationTimeout: o.generationTimeout,
	})
	if err != nil {
		return err
	}
	service := serve.Service{
		Log:          log,
		Readiness:    &server.Readiness,
		Handler:      server.Handler(),
		Metrics:      serve.MetricsHandler(promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry})),
		DrainDelay:   o.drainDelay,
		DrainTimeout: o.drainTimeout,
	}
	if err := o.open(&service); err != nil {
		return err
	}
	// Last, so that nothing can fail between registering for events and hearing them.
	driver, err := o.driver(getenv, devices, started, server.XidTrouble, nvml.Open)
	if err != nil {
		log.Warn("nothing reports this worker's Xid events, so it exports no omnivision_worker_cuda_errors_total; rely on dcgm-exporter",
			"reason", err.Error())
	} else {
		service.Background = append(service.Background, server.CountXids(driver))
	}
	log.Info("starting", "commit", o.identity.Commit, "devices", devices, "cluster", o.identity.Cluster, "region", o.identity.Region)
	return serve.Run(ctx, service)
}

func (o options) open(service *serve.Service) (err error) {
	if service.Listener, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("opening --listen: %w", err)
	}
	if service.MetricsListener, err = net.Listen("tcp", o.metricsListen); err != nil {
		return fmt.Errorf("opening --metrics-listen: %w", err)
	}
	return nil
}

// devices are what the worker generates on. GKE's device plugin gives a
// container its GPUs' device files and no variable, so NVML is asked then.
func (o options) devices(getenv func(string) string, visible func() ([]string, error)) ([]string, error) {
	if o.gpus == gpu.CPU {
		return slices.Repeat([]string{gpu.CPU}, o.cpuSlots), nil
	}
	value := getenv(gpu.VisibleDevicesVariable)
	devices, err := gpu.Visible(value)
	if strings.TrimSpace(value) == "" {
		found, reason := visible()
		if len(found) > 0 {
			return found, nil
		}
		if reason != nil {
			err = fmt.Errorf("%w, and NVML shows none: %w", err, reason)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w; ask for one with resources.limits \"nvidia.com/gpu\" on a node that has the NVIDIA device plugin, or start the worker with --gpus=cpu", err)
	}
	return devices, nil
}

// driver chooses what reports Xid events, or says why nothing does.
func (o options) driver(getenv func(string) string, devices []string, started time.Time, report func(error), open func(nvml.Config) (*nvml.Driver, error)) (gpu.Driver, error) {
	if o.gpus == gpu.CPU {
		return nil, errors.New("--gpus=cpu: there is no GPU")
	}
	if dir := getenv(gpu.XidLogVariable); dir != "" {
		return gpu.XidLog{Dir: dir, Devices: devices, Since: started, Report: report}, nil
	}
	driver, err := open(nvml.Config{Devices: devices, Report: report})
	if err != nil {
		return nil, fmt.Errorf("%s is not set, and NVML cannot be used: %w", gpu.XidLogVariable, err)
	}
	return driver, nil
}
