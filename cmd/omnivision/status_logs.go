package main

import (
	"context"
	"sync"
	"time"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/logs/coverage"
	"github.com/omnivision/omnivision/logs/loki"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// logStatusTime bounds what status waits for logs: it runs beside the rest and must not make it slow.
const logStatusTime = 3 * time.Second

// measureLogs begins to measure each cluster's coverage, beside what else status asks, and returns what waits for it and
// writes it down. What goes wrong is written down as well, and never makes status fail.
func (f *fleetFlags) measureLogs(ctx context.Context, fleet *localfleet.Fleet) (finish func(*localfleet.Status)) {
	reach := func() ([]string, map[string]*rest.Config, error) { return reachFleet(fleet, nil) }
	if len(f.options.Contexts) > 0 {
		reach = func() ([]string, map[string]*rest.Config, error) { return f.reachContexts(nil) }
	}
	names, configs, err := reach()
	if err != nil {
		return func(*localfleet.Status) {} // the fleet is not up; status says so
	}
	ctx, cancel := context.WithTimeout(ctx, logStatusTime)
	measured := make([]*localfleet.LogStatus, len(names))
	var running sync.WaitGroup
	for i, name := range names {
		running.Go(func() { measured[i] = logStatus(ctx, configs[name]) })
	}
	return func(status *localfleet.Status) {
		running.Wait()
		cancel()
		for i, name := range names {
			for c := range status.Clusters {
				if cluster := &status.Clusters[c]; cluster.Name == name && cluster.Error == "" {
					cluster.Logs = measured[i]
				}
			}
		}
	}
}

// logStatus measures one cluster; nil where there is no Loki.
func logStatus(ctx context.Context, config *rest.Config) *localfleet.LogStatus {
	survey, err := newSurvey(config)
	if err != nil {
		return &localfleet.LogStatus{Error: err.Error()}
	}
	err = survey.Reader.Get(ctx, client.ObjectKey{Namespace: loki.Namespace, Name: loki.Service}, &corev1.Service{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	var reports []coverage.Report
	if err == nil {
		reports, err = survey.All(ctx, time.Now())
	}
	if err != nil {
		return &localfleet.LogStatus{Error: err.Error()}
	}
	return &localfleet.LogStatus{Sum: coverage.Add(reports)}
}

func newSurvey(config *rest.Config) (coverage.Survey, error) {
	reader, err := coverage.NewClient(config)
	if err != nil {
		return coverage.Survey{}, err
	}
	delivery, err := loki.InCluster(config)
	return coverage.Survey{Reader: reader, Delivery: delivery}, err
}

func logLine(logs *localfleet.LogStatus) string {
	if logs.Error != "" {
		return "not measured: " + logs.Error
	}
	return logs.Sum.String()
}
