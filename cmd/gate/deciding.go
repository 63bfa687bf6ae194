package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/credentials"
	"github.com/omnivision/omnivision/gate/judge"
	"github.com/omnivision/omnivision/gate/judge/configmap"
	"github.com/omnivision/omnivision/gate/policy"
	"github.com/omnivision/omnivision/gate/watch"
)

// deciding is the part of the gate that decides, as the part that serves needs it.
type deciding struct {
	judge      gate.Judge
	collectors []prometheus.Collector
	ready      func() error                    // nil once policies are read
	run        func(ctx context.Context) error // until the context ends
}

// decisions says what the gate decides by.
type decisions struct {
	namespace string
	admitted  string // ConfigMap that keeps what was admitted
	trust     []string
	cloud     credentials.Cloud
}

// Rights of the gate at the API server, apart from what admission itself costs: one look at a
// Secret for each new image, and statuses.
const (
	decidingQPS   = 50
	decidingBurst = 100
)

// newDeciding connects policies and verification: the one place that knows them all.
func newDeciding(d decisions, config *rest.Config, log *slog.Logger) (deciding, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = decidingQPS, decidingBurst
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return deciding{}, fmt.Errorf("making a client of the API server: %w", err)
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return deciding{}, fmt.Errorf("making a client for policies: %w", err)
	}
	keychain, err := d.cloud.Keychain()
	if err != nil {
		return deciding{}, err
	}
	report := func(err error) { log.Error("beside a decision", "error", err.Error()) }
	judges := judge.New(judge.Options{
		Registry: credentials.Registry{Secrets: credentials.FromAPI{Client: core.CoreV1()}, Cloud: keychain, Transport: credentials.NewTransport()},
		Store:    configmap.Store{Client: core.CoreV1().ConfigMaps(d.namespace), Name: d.admitted},
		Report:   report,
	})
	var read atomic.Bool
	policies := watch.Watch{
		Client: objects, Namespace: d.namespace, Report: report,
		TrustedRoots: func() ([][]byte, error) { return trustedRoots(d.trust) },
		Secret: func(ctx context.Context, name string) (map[string][]byte, error) {
			secret, err := core.CoreV1().Secrets(d.namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			return secret.Data, nil
		},
		Use: func(set *policy.Set) {
			judges.Use(set)
			read.Store(true)
		},
	}
	return deciding{
		judge:      judges,
		collectors: []prometheus.Collector{verifications(judges)},
		ready: func() error {
			if read.Load() {
				return nil
			}
			return errors.New("the policies are not read yet")
		},
		run: func(ctx context.Context) error {
			group, ctx := errgroup.WithContext(ctx)
			group.Go(func() error { judges.Run(ctx); return nil })
			group.Go(func() error { return policies.Run(ctx) })
			return group.Wait()
		},
	}, nil
}

func verifications(j *judge.Judge) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "omnivision_gate_verifications_total",
		Help: "Times that a registry was asked for the evidence of a digest.",
	}, func() float64 { return float64(j.Verifications()) })
}

// trustedRootFile is what each folder of trust may hold, beside authorities of registries.
const trustedRootFile = "trusted_root.json"

// trustedRoots reads the trusted root of every folder that has one.
func trustedRoots(dirs []string) ([][]byte, error) {
	var all [][]byte
	for _, dir := range dirs {
		file, err := os.ReadFile(filepath.Join(dir, trustedRootFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading a trusted root: %w", err)
		}
		all = append(all, file)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("none of the folders %v holds %s: nobody's keyless signature could count", dirs, trustedRootFile)
	}
	return all, nil
}
