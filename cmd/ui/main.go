// Command ui serves the web page of one region. With --check it serves nothing
// and asks whether others do, which is how `helm test` looks at a release: the
// image has no other program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/omnivision/omnivision/internal/version"
	"github.com/omnivision/omnivision/ui"
	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/serve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type options struct {
	listen, metricsListen    string
	workerURL                string
	maxGenerations           int
	drainDelay, drainTimeout time.Duration
	identity                 api.Identity
	logLevel                 slog.Level
	showVersion              bool
	check                    addresses
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("ui", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.listen, "listen", ":8080", "`address` of the page and the probes")
	fs.StringVar(&o.metricsListen, "metrics-listen", ":9090", "`address` of /metrics")
	fs.StringVar(&o.workerURL, "worker-url", getenv("OMNIVISION_WORKER_URL"), "`URL` of the region's workers, by default $OMNIVISION_WORKER_URL")
	fs.IntVar(&o.maxGenerations, "max-generations", ui.DefaultMaxGenerations, "generations that may pass through at a time")
	fs.DurationVar(&o.drainDelay, "drain-delay", 5*time.Second, "after SIGTERM, how long to take requests while not ready")
	fs.DurationVar(&o.drainTimeout, "drain-timeout", 60*time.Second, "after that, how long streams in flight may take; keep the Pod's grace period longer than both")
	fs.StringVar(&o.identity.Cluster, "cluster", getenv("OMNIVISION_CLUSTER"), "name of the cluster, by default $OMNIVISION_CLUSTER")
	fs.StringVar(&o.identity.Region, "region", getenv("OMNIVISION_REGION"), "region of the cluster, by default $OMNIVISION_REGION")
	fs.StringVar(&o.identity.Digest, "image-digest", getenv("OMNIVISION_IMAGE_DIGEST"), "digest of this image, by default $OMNIVISION_IMAGE_DIGEST")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.Var(&o.check, "check", "serve nothing: GET this `URL`, and fail unless the answer is 2xx within 5 s; may be given several times")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; every option is a flag, see --help", fs.Arg(0))
	}
	build := version.Get()
	o.identity.Version, o.identity.Commit = build.Version, build.Commit
	return o, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "ui:", err)
		return exitUsage
	case o.showVersion:
		fmt.Fprintf(stdout, "ui %s (commit %s, %s)\n", o.identity.Version, o.identity.Commit, version.Get().Go)
		return exitOK
	case len(o.check) > 0:
		if err := checkAll(ctx, o.check, checkTimeout); err != nil {
			fmt.Fprintln(stderr, "ui:", err)
			return exitFailed
		}
		return exitOK
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: o.logLevel})).
		With("service", "omnivision-ui", "version", o.identity.Version)
	if err := start(ctx, o, log); err != nil {
		log.Error("the ui ended", "error", err.Error())
		return exitFailed
	}
	return exitOK
}

func start(ctx context.Context, o options, log *slog.Logger) error {
	workerURL, err := url.Parse(o.workerURL)
	if err != nil {
		return fmt.Errorf("reading --worker-url: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server, err := ui.New(ui.Config{
		WorkerURL: workerURL, Identity: o.identity, Log: log, Registry: registry, MaxGenerations: o.maxGenerations,
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
	if service.Listener, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("opening --listen: %w", err)
	}
	if service.MetricsListener, err = net.Listen("tcp", o.metricsListen); err != nil {
		return fmt.Errorf("opening --metrics-listen: %w", err)
	}
	log.Info("starting", "commit", o.identity.Commit, "worker_url", workerURL.Redacted(), "cluster", o.identity.Cluster, "region", o.identity.Region)
	return serve.Run(ctx, service)
}
