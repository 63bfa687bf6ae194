// Command gate is a cluster's admission: it pins image tags to digests and refuses Pods with images that the
// policies do not admit. Every replica serves; there is no leader. Several processes of one Pod may serve one port.
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
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/omnivision/omnivision/gate/certificate"
	"github.com/omnivision/omnivision/gate/credentials"
	"github.com/omnivision/omnivision/gate/server"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/internal/version"
	"github.com/omnivision/omnivision/logs/loki"
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
	listen, metricsListen      string
	kubeconfig                 string
	namespace, service, secret string
	configuration, instance    string
	admitted                   string
	trust                      string
	google                     bool
	sidecar, cluster, region   string
	loki                       string
	drainDelay, drainTimeout   time.Duration
	logLevel                   slog.Level
	showVersion                bool
}

const usage = `gate answers a cluster's admission reviews of Pods: it pins image tags to digests and refuses images
that the policies do not admit. It keeps its own CA and certificate in a Secret, and writes the CA into
its webhook configurations.

Examples:

  # In a Pod, as omnivision-gitops/components/gate runs it
  gate --namespace=omnivision-system --service=omnivision-gate

  # Outside of the cluster, for trying it; webhooks must then reach this machine by url
  gate --kubeconfig=$HOME/.kube/config --namespace=omnivision-system --trust=. --listen=:8443 --log-level=debug

Flags:
`

func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("gate", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.listen, "listen", ":10250", "`address` of the webhooks, TLS, which several gates of one Pod share; it is opened when this one can answer. Private GKE clusters reach 443 and 10250 alone (P28)")
	fs.StringVar(&o.metricsListen, "metrics-listen", ":9090", "`address` of /metrics, and of /healthz and /readyz of this process alone")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` to reach the API server by; by default the Pod's service account")
	fs.StringVar(&o.namespace, "namespace", getenv("POD_NAMESPACE"), "`name` of the gate's own namespace, by default $POD_NAMESPACE")
	fs.StringVar(&o.service, "service", "omnivision-gate", "`name` of the gate's Service: the certificate is for it")
	fs.StringVar(&o.secret, "certificate-secret", "omnivision-gate-certificate", "`name` of the Secret that keeps CA and certificate")
	fs.StringVar(&o.sidecar, "sidecar-image", getenv("OMNIVISION_SIDECAR_IMAGE"), "`image` of the log sidecar, pinned by digest, by default $OMNIVISION_SIDECAR_IMAGE; without it no Pod gets one")
	fs.StringVar(&o.cluster, "cluster", getenv("OMNIVISION_CLUSTER"), "`name` of the cluster, a label of every log line; by default $OMNIVISION_CLUSTER")
	fs.StringVar(&o.region, "region", getenv("OMNIVISION_REGION"), "`name` of its region, likewise; by default $OMNIVISION_REGION")
	fs.StringVar(&o.loki, "loki", "http://"+loki.Service+"."+loki.Namespace+".svc:"+loki.Port, "`URL` of the cluster's Loki, which is asked what has arrived")
	fs.StringVar(&o.configuration, "webhook-configuration", "omnivision-gate", "`name` of the Mutating- and of the ValidatingWebhookConfiguration that get the CA")
	fs.StringVar(&o.admitted, "admitted-configmap", "omnivision-gate-admitted", "`name` of the ConfigMap that keeps what this cluster admitted, for outages of the registry")
	fs.StringVar(&o.trust, "trust", "/etc/omnivision/trust/public:/etc/omnivision/trust/own", "`folders`, with : between them, that may hold the trusted_root.json of a Sigstore whose certificates count; one has to")
	fs.BoolVar(&o.google, "google", false, "read Artifact Registry as the service account that GKE's metadata server speaks for")
	fs.StringVar(&o.instance, "instance", getenv("POD_NAME"), "`name` of this replica in Events, by default $POD_NAME")
	fs.DurationVar(&o.drainDelay, "drain-delay", 10*time.Second, "after SIGTERM, how long to answer reviews while not ready")
	fs.DurationVar(&o.drainTimeout, "drain-timeout", 30*time.Second, "after that, how long reviews in flight may take; keep the Pod's grace period longer than both")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error; decisions are info, refusals warn")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; every option is a flag, see --help", fs.Arg(0))
	case o.namespace == "" && !o.showVersion:
		return o, errors.New("which namespace the gate runs in is not known: set --namespace or $POD_NAMESPACE")
	}
	return o, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	build := version.Get()
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "gate:", err)
		return exitUsage
	case o.showVersion:
		fmt.Fprintf(stdout, "gate %s (commit %s, %s)\n", build.Version, build.Commit, build.Go)
		return exitOK
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: o.logLevel})).With("service", "omnivision-gate", "version", build.Version)
	klog.SetSlogLogger(log) // what Kubernetes' client has to say is JSON as well
	if err := start(ctx, o, log); err != nil {
		log.Error("the gate ended", "error", err.Error())
		return exitFailed
	}
	return exitOK
}

func start(ctx context.Context, o options, log *slog.Logger) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("finding the API server: %w; outside of a cluster set --kubeconfig", err)
	}
	config.UserAgent = "omnivision-gate/" + version.Get().Version
	background, cancel := context.WithCancel(context.WithoutCancel(ctx)) // goes on during the drain
	defer cancel()
	keeper, err := newKeeper(o, config, log)
	if err != nil {
		return err
	}
	decides, err := newDeciding(decisions{
		namespace: o.namespace, admitted: o.admitted, trust: filepath.SplitList(o.trust),
		cloud: credentials.Cloud{AWSRole: os.Getenv("AWS_ROLE_ARN"), AWSTokenFile: os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"), Google: o.google},
	}, config, log)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	events, err := newEvents(background, o, config)
	if err != nil {
		return err
	}
	logging, err := newLogging(o, config, events, registry, log)
	if err != nil {
		return err
	}
	metrics := webhook.NewMetrics()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), metrics, keeper)
	registry.MustRegister(decides.collectors...)
	hooks := webhook.New(webhook.Options{
		Judge: decides.judge, Injectors: logging.injectors, Audit: log, Metrics: metrics, Events: events,
	})
	replica := server.Replica{
		Webhook: hooks, Keeper: keeper, Ready: decides.ready, Registry: registry, Log: log, DrainDelay: o.drainDelay, DrainTimeout: o.drainTimeout,
	}
	replica.Background = append(replica.Background, decides.run, logging.run)
	if replica.Listener, err = server.NewSharedPort(o.listen, replica.Prepared); err != nil {
		return fmt.Errorf("opening --listen: %w", err)
	}
	if replica.MetricsListener, err = net.Listen("tcp", o.metricsListen); err != nil {
		return fmt.Errorf("opening --metrics-listen: %w", err)
	}
	log.Info("starting", "commit", version.Get().Commit, "namespace", o.namespace)
	return replica.Run(ctx)
}

func newKeeper(o options, config *rest.Config, log *slog.Logger) (*certificate.Keeper, error) {
	clock := &certificate.APIClock{}
	config = rest.CopyConfig(config)
	config.Wrap(clock.Wrap)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client of the API server: %w", err)
	}
	host := o.service + "." + o.namespace
	return certificate.New(certificate.Options{
		Client: client, Namespace: o.namespace, Secret: o.secret, Names: []string{host + ".svc", host + ".svc.cluster.local"},
		Mutating: []string{o.configuration}, Validating: []string{o.configuration}, Clock: clock, Log: log,
	})
}

// Limits of all Events together: they are for people.
const (
	eventsQPS   = 2
	eventsBurst = 20
)

func newEvents(ctx context.Context, o options, config *rest.Config) (*webhook.Events, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = eventsQPS, eventsBurst
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for Events: %w", err)
	}
	return webhook.NewEvents(ctx, client, o.instance), nil
}
