// Command podlogs is the CSI driver of a node that shows Pods their own logs, read-only; see package podlogs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/omnivision/omnivision/internal/version"
	"github.com/omnivision/omnivision/podlogs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "podlogs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	cfg := podlogs.Config{Version: version.Get().Version, Log: slog.New(slog.NewJSONHandler(out, nil))}
	flags := flag.NewFlagSet("podlogs", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&cfg.NodeName, "node", os.Getenv("NODE_NAME"), "name of the node (environment NODE_NAME)")
	flags.StringVar(&cfg.LogDir, "log-dir", podlogs.DefaultLogDir, "the kubelet's podLogsDir")
	flags.StringVar(&cfg.KubeletDir, "kubelet-dir", podlogs.DefaultKubeletDir, "the kubelet's root directory; it and --log-dir must be mounted here under the same path")
	listen := flags.String("listen", ":9810", "address of /metrics, /healthz and /readyz")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	driver, err := podlogs.New(cfg, registry)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	closeAdmin, err := serveAdmin(*listen, admin(driver, registry), cancel)
	if err != nil {
		return err
	}
	defer closeAdmin()
	if err := driver.Run(ctx); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func admin(driver *podlogs.Driver, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := driver.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// serveAdmin serves metrics and health; if it cannot go on, it ends the program by cancel.
func serveAdmin(address string, handler http.Handler, cancel context.CancelCauseFunc) (closeServer func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and health: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve metrics and health: %w", err))
		}
	}()
	return func() { _ = server.Close() }, nil
}
