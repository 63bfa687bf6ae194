package coverage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Events hears of Pods whose logs are not shipped; a record.EventRecorder does.
type Events interface {
	Eventf(object runtime.Object, eventtype, reason, format string, args ...any)
}

// Options of a Watcher; the zero values are the defaults.
type Options struct {
	// Every is how often is measured; default a minute. Within is what counts as lately; default five minutes.
	Every, Within time.Duration
	// Settle is how old a Pod must be to count; default 30 s.
	Settle time.Duration
	Log    *slog.Logger
}

// RepairAnnotation with the value Evict on a labelled namespace has Pods evicted there that slipped through, one at a time,
// within their disruption budgets. Their controller makes new ones, which the webhook then sees.
const (
	RepairAnnotation = "logging.omnivision.ai/repair"
	Evict            = "evict"
)

const (
	// raiseAgain is how long a Pod's gap has to last for another Event.
	raiseAgain = 10 * time.Minute
	// leaveAlone is how long a controller is left alone whose new Pod slipped through as well: the webhook does not see
	// it, and evicting again would only do harm.
	leaveAlone = time.Hour
	// attempts is how many Pods of a namespace are tried until one may go.
	attempts = 3
)

// Watcher measures again and again. It needs list on pods and namespaces, create and patch on events and, to evict,
// create on pods/eviction. Only one of a cluster should run: it says so to a manager by NeedLeaderElection.
type Watcher struct {
	survey  Survey
	client  client.Client
	events  Events
	options Options

	containers *prometheus.GaugeVec
	failures   *prometheus.CounterVec
	evictions  *prometheus.CounterVec

	known   map[string]bool         // namespaces that are exported
	raised  map[types.UID]time.Time // when a Pod last got an Event
	tried   map[types.UID]time.Time // when a Pod was last to be evicted
	evicted map[types.UID]time.Time // when a controller last lost a Pod to us
}

// NewWatcher makes a Watcher; Start runs it. The client must not have a cache, as NewClient's has none.
func NewWatcher(c client.Client, delivery Delivery, events Events, options Options, registerer prometheus.Registerer) (*Watcher, error) {
	if options.Every == 0 {
		options.Every = time.Minute
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{
		survey: Survey{Reader: c, Delivery: delivery, Within: options.Within, Settle: options.Settle},
		client: c, events: events, options: options,
		known: map[string]bool{}, raised: map[types.UID]time.Time{}, tried: map[types.UID]time.Time{}, evicted: map[types.UID]time.Time{},
		containers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "omnivision_log_coverage_containers",
			Help: "Running containers of namespaces with logging enabled, by state: running (all), covered (a sidecar runs), delivered (lines arrived lately), and each reason for a gap.",
		}, []string{"namespace", "state"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_log_coverage_failures_total", Help: "Measurements that failed, in part or as a whole.",
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

// Start measures until ctx is done. Then it exports nothing any more: another replica may measure now.
func (w *Watcher) Start(ctx context.Context) error {
	defer w.containers.Reset()
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
	namespaces, err := w.survey.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	var reports, repairs []Report
	for _, n := range namespaces {
		report, err := w.survey.Namespace(ctx, n.Name, now)
		if err != nil {
			w.fail(n.Name, err)
			continue
		}
		if report.Unknown != "" {
			w.fail(n.Name, errors.New(report.Unknown))
		}
		reports = append(reports, report)
		if n.Annotations[RepairAnnotation] == Evict {
			repairs = append(repairs, report)
		}
	}
	w.export(reports)
	w.raise(reports, now)
	for _, report := range repairs {
		w.repair(ctx, report, now)
	}
	return reports, nil
}

func (w *Watcher) fail(namespace string, err error) {
	w.failures.WithLabelValues(namespace).Inc()
	w.options.Log.Error("measure log coverage", "namespace", namespace, "error", err)
}

// export sets what was measured, and takes away what was not: no number is better than an old one.
func (w *Watcher) export(reports []Report) {
	gone := w.known
	w.known = map[string]bool{}
	for _, r := range reports {
		w.known[r.Namespace] = true
		delete(gone, r.Namespace)
		w.exportOne(r)
	}
	for namespace := range gone {
		w.containers.DeletePartialMatch(prometheus.Labels{"namespace": namespace})
	}
}

func (w *Watcher) exportOne(r Report) {
	set := func(state string, n int) { w.containers.WithLabelValues(r.Namespace, state).Set(float64(n)) }
	set("running", r.Running)
	set("covered", r.Covered)
	if r.Unknown == "" {
		set("delivered", r.Delivered)
	} else {
		w.containers.DeleteLabelValues(r.Namespace, "delivered") // nobody measured it
	}
	gaps := map[Reason]int{Missing: 0, OptedOut: 0, NotInjectable: 0, SidecarDown: 0}
	for _, c := range r.Gaps {
		gaps[c.Reason]++
	}
	for reason, n := range gaps {
		set(string(reason), n)
	}
}

// raise writes an Event for each Pod with a gap that nobody asked for, again only if it lasts.
func (w *Watcher) raise(reports []Report, now time.Time) {
	raised := map[types.UID]time.Time{}
	for _, r := range reports {
		for _, c := range r.Gaps {
			pod := r.pods[c.Pod]
			if pod == nil {
				continue // it opted out
			}
			if _, done := raised[pod.UID]; done {
				continue // for another of its containers
			}
			last, was := w.raised[pod.UID]
			if !was || now.Sub(last) >= raiseAgain {
				w.events.Eventf(pod, corev1.EventTypeWarning, "LogsNotShipped", "%s: %s", c.Reason, c.Detail)
				last = now
			}
			raised[pod.UID] = last
		}
	}
	w.raised = raised
}

// repair evicts one Pod that slipped through, if its controller makes a new one and has all its others ready.
func (w *Watcher) repair(ctx context.Context, r Report, now time.Time) {
	for i, pod := range w.candidates(r, now) {
		if i == attempts {
			return
		}
		w.tried[pod.UID] = now
		eviction := &policyv1.Eviction{DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}}
		if err := w.client.SubResource("eviction").Create(ctx, pod, eviction); err != nil {
			// By its budget, most likely; another measurement tries again.
			w.evictions.WithLabelValues(pod.Namespace, "refused").Inc()
			w.options.Log.Warn("evict a Pod without a log sidecar", "namespace", pod.Namespace, "pod", pod.Name, "error", err)
			continue
		}
		w.evictions.WithLabelValues(pod.Namespace, "evicted").Inc()
		w.evicted[metav1.GetControllerOf(pod).UID] = now
		w.events.Eventf(pod, corev1.EventTypeNormal, "EvictedForLogging", "evicted to get a log sidecar")
		return
	}
}

// candidates are the Pods that may be evicted, those first that were not tried, or longest ago.
func (w *Watcher) candidates(r Report, now time.Time) (pods []*corev1.Pod) {
	for owner, at := range w.evicted {
		if now.Sub(at) >= leaveAlone {
			delete(w.evicted, owner)
		}
	}
	for uid, at := range w.tried {
		if now.Sub(at) >= leaveAlone {
			delete(w.tried, uid)
		}
	}
	futile := w.futile(r)
	for _, c := range r.Gaps {
		pod := r.pods[c.Pod]
		if c.Reason != Missing || slices.Contains(pods, pod) {
			continue
		}
		// A Job's Pod would lose its work.
		if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind != "Job" && !r.unsteady[owner.UID] && !futile[owner.UID] {
			pods = append(pods, pod)
		}
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return w.tried[a.UID].Compare(w.tried[b.UID]) })
	return pods
}

// futile are the controllers whose Pods were made anew after an eviction, without a sidecar again.
func (w *Watcher) futile(r Report) map[types.UID]bool {
	found := map[types.UID]bool{}
	for _, pod := range r.pods {
		owner := metav1.GetControllerOf(pod)
		if owner == nil {
			continue
		}
		if at, evicted := w.evicted[owner.UID]; evicted && !pod.CreationTimestamp.Time.Before(at.Truncate(time.Second)) {
			found[owner.UID] = true
		}
	}
	return found
}
