package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/gate/logconfig"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/logs/coverage"
	"github.com/omnivision/omnivision/logs/loki"
)

// logging is what the gate does for logs: every replica injects; one of them keeps the sidecars' configuration in step
// and measures coverage.
type logging struct {
	injectors []webhook.Mutator
	run       func(ctx context.Context) error // until the context ends
}

// newLogging connects it. Trouble with logs never keeps the gate from admitting: without a usable sidecar nothing is
// injected, and coverage tells.
func newLogging(o options, rc *rest.Config, events coverage.Events, registry prometheus.Registerer, log *slog.Logger) (logging, error) {
	if o.sidecar == "" {
		log.Warn("no Pod gets a log sidecar: --sidecar-image names none")
		return logging{run: untilDone}, nil
	}
	reader, err := newReader(rc)
	if err != nil {
		return logging{}, err
	}
	sidecar := inject.DefaultConfig()
	sidecar.Image, sidecar.Cluster, sidecar.Region = o.sidecar, o.cluster, o.region
	injector, err := inject.New(sidecar, inject.Reader{Reader: reader}, log, registry)
	if err != nil {
		log.Error("no Pod gets a log sidecar", "error", err.Error())
		return logging{run: untilDone}, nil
	}
	watcher, err := newWatcher(o, rc, events, registry, log)
	if err != nil {
		return logging{}, err
	}
	return logging{injectors: []webhook.Mutator{injector}, run: func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return reader.Start(ctx) })
		group.Go(func() error { return leading(ctx, o, rc, watcher, log) })
		return group.Wait()
	}}, nil
}

// newWatcher makes what measures coverage.
func newWatcher(o options, rc *rest.Config, events coverage.Events, registry prometheus.Registerer, log *slog.Logger) (*coverage.Watcher, error) {
	uncached, err := coverage.NewClient(rc)
	if err != nil {
		return nil, err
	}
	return coverage.NewWatcher(uncached, &loki.Client{URL: o.loki}, events, coverage.Options{Log: log}, registry)
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// newReader caches what injecting asks for with each Pod.
func newReader(rc *rest.Config) (cache.Cache, error) {
	reader, err := cache.New(rc, cache.Options{
		Scheme:                      scheme.Scheme,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ReaderFailOnMissingInformer: true,
	})
	if err != nil {
		return nil, fmt.Errorf("making a cache of namespaces: %w", err)
	}
	for _, kind := range []client.Object{&corev1.Namespace{}, &storagev1.CSIDriver{}} {
		if _, err := reader.GetInformer(context.Background(), kind, cache.BlockUntilSynced(false)); err != nil {
			return nil, fmt.Errorf("watching %T: %w", kind, err)
		}
	}
	return reader, nil
}

// Leading is tried again so soon after it was lost; a replica admits Pods all the while.
const leadingAgain = 5 * time.Second

// leading keeps trying to lead, and leads, until the context ends.
func leading(ctx context.Context, o options, rc *rest.Config, watcher *coverage.Watcher, log *slog.Logger) error {
	for ctx.Err() == nil {
		if err := lead(ctx, o, rc, watcher); err != nil && ctx.Err() == nil {
			log.Error("keeping the configuration of log sidecars", "error", err.Error())
		}
		select {
		case <-ctx.Done():
		case <-time.After(leadingAgain):
		}
	}
	return nil
}

func lead(ctx context.Context, o options, rc *rest.Config, watcher *coverage.Watcher) error {
	yes := true
	manager, err := ctrl.NewManager(rc, ctrl.Options{
		Scheme: scheme.Scheme, Logger: klog.Background(),
		LeaderElection: true, LeaderElectionID: "omnivision-gate-logging", LeaderElectionNamespace: o.namespace, LeaderElectionReleaseOnCancel: true,
		Metrics: server.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Controller: config.Controller{SkipNameValidation: &yes},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			// Of all Secrets those of one name are asked for, and no right is needed to see others.
			ByObject: map[client.Object]cache.ByObject{&corev1.Secret{}: {Field: fields.OneTermEqualSelector("metadata.name", inject.SecretName)}},
		},
	})
	if err != nil {
		return fmt.Errorf("making the manager: %w", err)
	}
	if err := (&logconfig.Reconciler{Client: manager.GetClient()}).SetupWithManager(manager); err != nil {
		return fmt.Errorf("making the reconciler: %w", err)
	}
	if err := manager.Add(watcher); err != nil {
		return fmt.Errorf("adding the watcher of coverage: %w", err)
	}
	return manager.Start(ctx)
}
