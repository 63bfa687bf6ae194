package coverage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/logs/loki"
)

// Delivery says which containers' lines arrived in Loki.
type Delivery interface {
	Delivered(ctx context.Context, namespace string, within time.Duration) (map[loki.Source]bool, error)
}

// Defaults of a Survey.
const (
	DefaultWithin = 5 * time.Minute
	DefaultSettle = 30 * time.Second
)

// pageSize is how many Pods are listed at once.
const pageSize = 500

// Survey looks at every labelled namespace of a cluster once: it costs a list of namespaces, and for each of them a list
// of Pods by pages and one question to Loki. It needs list on namespaces and pods.
type Survey struct {
	// Reader has no cache, as NewClient's: a cache would give a page for the whole.
	Reader   client.Reader
	Delivery Delivery
	// Within is what counts as lately, Settle how old a Pod must be to count. Zero values are the defaults.
	Within, Settle time.Duration

	page int64 // pageSize unless a test wants less
}

// NewClient is a client without a cache that knows Pods, namespaces and evictions.
func NewClient(config *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), policyv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("make the client that measures log coverage: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make the client that measures log coverage: %w", err)
	}
	return c, nil
}

// namespaces are those that have logging enabled.
func (s Survey) namespaces(ctx context.Context) ([]corev1.Namespace, error) {
	var list corev1.NamespaceList
	if err := s.Reader.List(ctx, &list, client.MatchingLabels{inject.NamespaceLabel: inject.NamespaceEnabled}); err != nil {
		return nil, fmt.Errorf("list the namespaces with logging enabled: %w", err)
	}
	return list.Items, nil
}

// Namespace measures one. Without Loki's answer the sidecars are measured all the same.
func (s Survey) Namespace(ctx context.Context, name string, now time.Time) (Report, error) {
	within, settle, page := cmp.Or(s.Within, DefaultWithin), cmp.Or(s.Settle, DefaultSettle), cmp.Or(s.page, pageSize)
	delivered, lokiErr := s.Delivery.Delivered(ctx, name, within)
	report := newReport(name)
	for next := ""; ; {
		var pods corev1.PodList
		if err := s.Reader.List(ctx, &pods, client.InNamespace(name), client.Limit(page), client.Continue(next)); err != nil {
			return Report{}, fmt.Errorf("list the Pods of namespace %s: %w", name, err)
		}
		for i := range pods.Items {
			report.add(&pods.Items[i], delivered, now, settle)
		}
		if next = pods.Continue; next == "" {
			break
		}
	}
	report.sort()
	if lokiErr != nil {
		report.Delivered, report.Quiet, report.Unknown = 0, []Container{}, lokiErr.Error()
	}
	return report, nil
}

// All measures every labelled namespace.
func (s Survey) All(ctx context.Context, now time.Time) ([]Report, error) {
	namespaces, err := s.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	reports := []Report{}
	for _, n := range namespaces {
		report, err := s.Namespace(ctx, n.Name, now)
		if err != nil {
			return nil, err
		}
		reports = append(reports, report)
	}
	return reports, nil
}

// Sum is a cluster's coverage in numbers of containers.
type Sum struct {
	Namespaces int `json:"namespaces"`
	Running    int `json:"running"`
	Covered    int `json:"covered"`
	Delivered  int `json:"delivered"`
	OptedOut   int `json:"optedOut"`
	// Missing are neither covered nor opted out.
	Missing int `json:"missing"`
	// Unknown says why Loki could not be asked.
	Unknown string `json:"deliveryUnknown,omitempty"`
}

// Add up reports.
func Add(reports []Report) (s Sum) {
	for _, r := range reports {
		s.Namespaces++
		s.Running += r.Running
		s.Covered += r.Covered
		s.Delivered += r.Delivered
		s.OptedOut += r.OptedOut
		s.Missing += len(r.Gaps) - r.OptedOut
		if r.Unknown != "" {
			s.Unknown = r.Unknown
		}
	}
	return s
}

// Percent is how much of what did not opt out is covered, rounded down, so that 100 is all of it.
func (s Sum) Percent() int {
	if asked := s.Running - s.OptedOut; asked > 0 {
		return 100 * s.Covered / asked
	}
	return 100
}

// String is one line for people.
func (s Sum) String() string {
	if s.Namespaces == 0 {
		return fmt.Sprintf("no namespace is labelled %s=%s", inject.NamespaceLabel, inject.NamespaceEnabled)
	}
	delivered := fmt.Sprintf("%d delivered lately", s.Delivered)
	if s.Unknown != "" {
		delivered = "what was delivered is not known"
	}
	return fmt.Sprintf("%d %% of %d running containers are covered, %d missing, %d opted out, %s", s.Percent(), s.Running, s.Missing, s.OptedOut, delivered)
}
