package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/connect"
	"github.com/omnivision/omnivision/forge/github"
	"github.com/omnivision/omnivision/logs/loki"
	"github.com/omnivision/omnivision/steward"
	"github.com/omnivision/omnivision/steward/gitops"
	"github.com/omnivision/omnivision/steward/notify"
	"github.com/omnivision/omnivision/steward/observe"
)

// start is the steward's life: watch the cluster, serve metrics, and act while elected.
func start(ctx context.Context, o options, log *slog.Logger) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("finding the cluster: %w; in a Pod leave --kubeconfig empty, elsewhere give it", err)
	}
	wake := make(chan struct{}, 1)
	cluster, err := watch(config, o, wake)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("opening --listen: %w", err)
	}
	var ready atomic.Bool
	meter := newMeter()
	go serve(ctx, listener, meter, &ready)
	if err := cluster.Start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to end
		}
		return err
	}
	ready.Store(true) // a replica that waits for its turn is ready to take it
	log.InfoContext(ctx, "watching", "namespace", o.namespace)
	return elected(ctx, config, o, log, func(ctx context.Context) error {
		repository, err := open(ctx, o, log)
		if err != nil || repository == nil {
			return err
		}
		s := &steward.Steward{Name: o.cluster, Repository: repository, Cluster: cluster, Log: log, Drain: o.drain, Notifier: notifier(o)}
		meter.leading.Set(1)
		return s.Run(ctx, wake, steward.Pace{Every: o.every}, meter.observe)
	})
}

func watch(config *rest.Config, o options, wake chan<- struct{}) (*observe.Cluster, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making the cluster's client: %w", err)
	}
	pods, err := core.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making the client for logs: %w", err)
	}
	settings := observe.Options{
		Name: o.cluster, Namespace: o.namespace, ArgoCD: o.argocd, Prometheus: o.prometheus, Logs: &observe.Logs{Pods: pods},
		Changed: func() {
			select {
			case wake <- struct{}{}:
			default: // it is awake already
			}
		},
	}
	if o.loki != "" {
		settings.Logs.Loki = &loki.Client{URL: o.loki}
	}
	if o.drain {
		settings.Drain = &observe.Hardware{Prometheus: o.prometheus, Xids: o.hardwareXids}
	}
	return observe.New(client, settings)
}

// elected runs do while this replica holds the Lease. Losing it ends the program: whoever has
// it now may be acting already.
func elected(ctx context.Context, config *rest.Config, o options, log *slog.Logger, do func(context.Context) error) error {
	leases, err := coordination.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making the Lease's client: %w", err)
	}
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: "omnivision-steward",
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: o.leaseNamespace, Name: "omnivision-steward"}, Client: leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: o.identity},
		},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				log.InfoContext(ctx, "elected", "identity", o.identity)
				done <- do(ctx)
				cancel()
			},
			OnStoppedLeading: func() { log.Info("no longer elected", "identity", o.identity) },
		},
	})
	if err != nil {
		return fmt.Errorf("preparing the election: %w", err)
	}
	elector.Run(ctx)
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-time.After(5 * time.Second): // it never led, or does not end
	}
	if asked.Err() == nil {
		return errors.New("the Lease was lost: another replica goes on; check that the API server answers in time")
	}
	return nil
}

// open connects to the forge; one that is down is waited for.
func open(ctx context.Context, o options, log *slog.Logger) (*gitops.Repository, error) {
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	for wait := time.Second; ; wait = min(2*wait, 2*time.Minute) {
		repository, err := o.connect(ctx, transport)
		if err == nil || !errors.Is(err, forge.Unavailable) && !errors.Is(err, forge.RateLimited) {
			return repository, err
		}
		pause := wait
		if asked, ok := forge.RetryAfter(err); ok {
			pause = asked
		}
		log.WarnContext(ctx, "the forge does not answer", "err", err, "again_in", pause.String())
		select {
		case <-ctx.Done():
			return nil, nil //nolint:nilnil // it was asked to end
		case <-time.After(pause):
		}
	}
}

func (o options) connect(ctx context.Context, transport http.RoundTripper) (*gitops.Repository, error) {
	token, err := o.tokens(transport)
	if err != nil {
		return nil, err
	}
	repository, err := connect.Repository(ctx, o.repository, connect.Options{Token: token, Login: o.login, Transport: transport})
	if err != nil {
		return nil, err
	}
	r := &gitops.Repository{
		Forge: repository, Base: o.branch, Dir: o.dir,
		Remote: propose.Remote{URL: o.repository, Token: token, CAFile: o.caFile, Name: "OmniVision steward", Email: "steward@omnivision.invalid"},
	}
	if o.source == "" {
		return r, nil
	}
	if o.sourceToken.file != "" {
		token = forge.TokenFile(o.sourceToken.file)
	}
	source, err := connect.Repository(ctx, o.source, connect.Options{Token: token, Login: o.login, Transport: transport})
	if err != nil {
		return nil, err
	}
	r.Source = source
	return r, nil
}

// tokens is where the token comes from. An App's is for the two repositories alone.
func (o options) tokens(transport http.RoundTripper) (forge.TokenSource, error) {
	c := o.token
	if c.app == "" {
		return forge.TokenFile(c.file), nil
	}
	key, err := os.ReadFile(c.key)
	if err != nil {
		return nil, fmt.Errorf("reading --github-key-file: %w", err)
	}
	app := github.App{ClientID: c.app, InstallationID: c.installation, PrivateKey: key, Transport: transport}
	for _, address := range []string{o.repository, o.source} {
		if address == "" || address == o.source && o.sourceToken.file != "" {
			continue
		}
		root, name, err := forge.ParseURL(address)
		if err != nil {
			return nil, err
		}
		if !strings.EqualFold(root.Host, "github.com") {
			app.URL = root.JoinPath("api", "v3").String() + "/"
		}
		app.Repositories = append(app.Repositories, name.Repository)
	}
	return github.AppToken(app)
}

func (o options) transport() (http.RoundTripper, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	if o.caFile == "" {
		return transport, nil
	}
	data, err := os.ReadFile(o.caFile)
	if err != nil {
		return nil, fmt.Errorf("reading --ca-file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("--ca-file %s holds no certificate: give PEM", o.caFile)
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return transport, nil
}

func notifier(o options) steward.Notifier {
	if o.notifyFile == "" {
		return nil
	}
	return notify.Webhook{URL: func(context.Context) (string, error) {
		data, err := os.ReadFile(o.notifyFile)
		return strings.TrimSpace(string(data)), err
	}}
}
