package coverage

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/logs/loki"
)

// Delivery says what arrived in Loki.
type Delivery interface {
	Delivered(ctx context.Context, namespace string, within time.Duration) (map[loki.Source]int, error)
}

// Options of a Watcher; the zero values are the defaults.
type Options struct {
	// Every is how often is measured; default a minute. Within is what counts as lately; default five minutes.
	Every, Within time.Duration
	// Settle is how old a Pod must be to count; default 30 s.
	Settle time.Duration
	// Evict has Pods evicted that slipped through, one in each namespace at a time, within their disruption budgets.
	// Their controller makes new ones, which the webhook then sees. Off by default.
	Evict bool
	Log   *slog.Logger
}

// Watcher measures again and again. It needs get, list and watch on pods and namespaces, create on events and, to evict,
// create on pods/eviction.
type Watcher struct {
	client   client.Client
	delivery Delivery
	events   record.EventRecorder
	options  Options

	containers *prometheus.GaugeVec
	failures   *prometheus.CounterVec
	evictions  *prometheus.CounterVec
}

// NewWatcher makes a Watcher; Start runs it. Only the leader should.
func NewWatcher(c client.Client, delivery Delivery, events record.EventRecorder, options Options, registerer prometheus.Registerer) (*Watcher, error) {
	for d, otherwise := range map[*time.Duration]time.Duration{&options.Every: time.Minute, &options.Within: 5 * time.Minute, &options.Settle: 30 * time.Second} {
		if *d == 0 {
			*d = otherwise
		}
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{
		client: c, delivery: delivery, events: events, options: options,
		containers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "omnivision_log_coverage_containers",
			Help: "Running containers of namespaces with logging enabled, by state: running (all), covered (a sidecar runs), delivered (lines arrived lately), and each reason for a gap.",
		}, []string{"namespace", "state"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_log_coverage_failures_total", Help: "Measurements that failed.",
		}, []string{"namespace"}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_log_coverage_evictions_total", Help: "Pods evicted to get a sidecar, by result.",
		}, []string{"namespace", "result"}),
	}
	for _, collector := range []prometheus.Collector{w.containers, w.failures, w.evictions} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("register the metrics of log coverage: %w", err)
		}
	}
	return w, nil
}

// NeedLeaderElection has a manager run it on the leader alone.
func (w *Watcher) NeedLeaderElection() bool { return true }

// Start measures until ctx is done.
func (w *Watcher) Start(ctx context.Context) error {
	tick := time.NewTicker(w.options.Every)
	defer tick.Stop()
	for {
		if _, err := w.Measure(ctx, time.Now()); err != nil && ctx.Err() == nil {
			w.options.Log.Error("measure log coverage", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Measure looks once at every labelled namespace, and acts on what it finds.
func (w *Watcher) Measure(ctx context.Context, now time.Time) ([]Report, error) {
	ctx, cancel := context.WithTimeout(ctx, max(w.options.Every, 10*time.Second))
	defer cancel()
	var namespaces corev1.NamespaceList
	if err := w.client.List(ctx, &namespaces, client.MatchingLabels{inject.NamespaceLabel: inject.NamespaceEnabled}); err != nil {
		return nil, fmt.Errorf("list the namespaces with logging enabled: %w", err)
	}
	w.containers.Reset()
	var reports []Report
	for _, n := range namespaces.Items {
		report, err := w.namespace(ctx, n.Name, now)
		if err != nil {
			w.failures.WithLabelValues(n.Name).Inc()
			w.options.Log.Error("measure log coverage", "namespace", n.Name, "error", err)
			continue
		}
		reports = append(reports, report)
	}
	return reports, nil
}

func (w *Watcher) namespace(ctx context.Context, name string, now time.Time) (Report, error) {
	var pods corev1.PodList
	if err := w.client.List(ctx, &pods, client.InNamespace(name)); err != nil {
		return Report{}, fmt.Errorf("list Pods: %w", err)
	}
	// Without Loki's answer the sidecars are measured all the same.
	delivered, lokiErr := w.delivery.Delivered(ctx, name, w.options.Within)
	report := Assess(name, pods.Items, delivered, now, w.options.Settle)
	w.export(report, lokiErr == nil)
	w.raise(report, pods.Items)
	if w.options.Evict {
		w.repair(ctx, report, pods.Items)
	}
	return report, lokiErr
}

func (w *Watcher) export(r Report, withDelivery bool) {
	set := func(state string, n int) { w.containers.WithLabelValues(r.Namespace, state).Set(float64(n)) }
	set("running", r.Running)
	set("covered", r.Covered)
	if withDelivery { // no number is better than a zero that nobody measured
		set("delivered", r.Delivered)
	}
	gaps := map[Reason]int{Missing: 0, OptedOut: 0, NotInjectable: 0, SidecarDown: 0}
	for _, c := range r.Gaps {
		gaps[c.Reason]++
	}
	for reason, n := range gaps {
		set(string(reason), n)
	}
}

// gapsByPod are the Pods with gaps that nobody asked for.
func gapsByPod(r Report) map[string]Container {
	found := map[string]Container{}
	for _, c := range r.Gaps {
		if _, known := found[c.Pod]; !known && c.Reason != OptedOut {
			found[c.Pod] = c
		}
	}
	return found
}

func (w *Watcher) raise(r Report, pods []corev1.Pod) {
	gaps := gapsByPod(r)
	for i := range pods {
		if gap, has := gaps[pods[i].Name]; has {
			w.events.Eventf(&pods[i], corev1.EventTypeWarning, "LogsNotShipped", "%s: %s", gap.Reason, gap.Detail)
		}
	}
}

// repair evicts one Pod without a sidecar whose controller will make a new one.
func (w *Watcher) repair(ctx context.Context, r Report, pods []corev1.Pod) {
	gaps := gapsByPod(r)
	for i := range pods {
		pod := &pods[i]
		if gap, has := gaps[pod.Name]; !has || gap.Reason != Missing || metav1.GetControllerOf(pod) == nil {
			continue
		}
		eviction := &policyv1.Eviction{DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}}
		err := w.client.SubResource("eviction").Create(ctx, pod, eviction)
		result := "evicted"
		if err != nil {
			result = "refused" // by its budget, most likely; the next measurement tries again
			w.options.Log.Warn("evict a Pod without a log sidecar", "namespace", pod.Namespace, "pod", pod.Name, "error", err)
		} else {
			w.events.Eventf(pod, corev1.EventTypeNormal, "EvictedForLogging", "evicted to get a log sidecar")
		}
		w.evictions.WithLabelValues(pod.Namespace, result).Inc()
		return
	}
}
