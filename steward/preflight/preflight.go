// Package preflight asks the questions of a canary's analysis without a canary, so that a
// broken query or a missing exporter is found before a release meets it (P16).
//
// It also counts whether there are GPUs for a canary (P15).
//
// It reads the AnalysisTemplate that the cluster has, and reaches Prometheus through the API
// server, so it works wherever kubectl does. It judges nothing: the conditions are the
// analysis's.
package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// Template is the AnalysisTemplate that judges workers.
const Template = "gpu-health-check"

// Answer is what one question gave.
type Answer struct {
	Metric  string   `json:"metric"`
	Values  []string `json:"values"` // of the series that it found; empty is no data
	Success string   `json:"successCondition,omitempty"`
	Failure string   `json:"failureCondition,omitempty"`
	Query   string   `json:"query"`
	Error   string   `json:"error,omitempty"`
	// Presence says that the question is whether there is data at all.
	Presence bool `json:"presence"`
}

// Bad reports whether a canary would meet this without a fault of its own.
func (a Answer) Bad() bool { return a.Error != "" || a.Presence && len(a.Values) == 0 }

// Report is what a cluster's Prometheus says.
type Report struct {
	Cluster string   `json:"cluster"`
	Rollout string   `json:"rollout"`
	Hash    string   `json:"podTemplateHash"` // that was asked about: the one that runs
	Answers []Answer `json:"answers"`
	// Room is nil where workers ask for no GPU.
	Room *Room `json:"room,omitempty"`
}

// Bad reports whether an answer is, or room is missing.
func (r Report) Bad() bool {
	return slices.ContainsFunc(r.Answers, Answer.Bad) || r.Room != nil && !r.Room.Enough()
}

// Check asks every question of the template about the revision that a Rollout runs now.
func Check(ctx context.Context, config *rest.Config, cluster, namespace string) (Report, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return Report{}, err
	}
	argo := func(resource string) dynamic.ResourceInterface {
		return client.Resource(schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: resource}).Namespace(namespace)
	}
	template, err := argo("analysistemplates").Get(ctx, Template, metav1.GetOptions{})
	if err != nil {
		return Report{}, fmt.Errorf("reading AnalysisTemplate %s of %s: %w; is the platform installed?", Template, namespace, err)
	}
	rollouts, err := argo("rollouts").List(ctx, metav1.ListOptions{})
	if err != nil {
		return Report{}, fmt.Errorf("listing Rollouts of %s: %w", namespace, err)
	}
	report := Report{Cluster: cluster}
	rollout, hash := judged(rollouts.Items)
	if report.Rollout, report.Hash = rollout.GetName(), hash; hash == "" {
		return Report{}, fmt.Errorf("no Rollout of %s is judged by %s and runs: release something first", namespace, Template)
	}
	prometheus, err := newProxy(config)
	if err != nil {
		return Report{}, err
	}
	metrics, _, _ := unstructured.NestedSlice(template.Object, "spec", "metrics")
	for _, m := range metrics {
		if metric, ok := m.(map[string]any); ok {
			report.Answers = append(report.Answers, ask(ctx, prometheus, metric, report.Hash))
		}
	}
	report.Room, err = room(ctx, client, rollout)
	return report, err
}

// judged finds the Rollout whose canaries the template judges, and the revision it runs.
func judged(rollouts []unstructured.Unstructured) (rollout unstructured.Unstructured, hash string) {
	for _, r := range rollouts {
		templates, _, _ := unstructured.NestedSlice(r.Object, "spec", "strategy", "canary", "analysis", "templates")
		for _, t := range templates {
			if entry, ok := t.(map[string]any); ok && entry["templateName"] == Template {
				hash, _, _ := unstructured.NestedString(r.Object, "status", "currentPodHash")
				return r, hash
			}
		}
	}
	return unstructured.Unstructured{}, ""
}

func ask(ctx context.Context, p *proxy, metric map[string]any, hash string) Answer {
	text := func(path ...string) string {
		value, _, _ := unstructured.NestedString(metric, path...)
		return value
	}
	a := Answer{Metric: text("name"), Success: text("successCondition"), Failure: text("failureCondition")}
	a.Presence = strings.HasSuffix(a.Metric, "-reports")
	// Without a canary the running version stands for both sides of a comparison.
	args := strings.NewReplacer("{{args.canary-hash}}", hash, "{{args.stable-hash}}", hash)
	a.Query = strings.TrimSpace(args.Replace(text("provider", "prometheus", "query")))
	var err error
	if a.Values, err = p.query(ctx, text("provider", "prometheus", "address"), a.Query); err != nil {
		a.Error = err.Error()
	}
	return a
}

// proxy reaches Services through the API server.
type proxy struct{ client rest.Interface }

func newProxy(config *rest.Config) (*proxy, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &schema.GroupVersion{Version: "v1"}, "/api", noSerializer
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("making the client of the API server: %w", err)
	}
	return &proxy{client}, nil
}

// query asks for an instant vector: https://prometheus.io/docs/prometheus/latest/querying/api/
func (p *proxy) query(ctx context.Context, address, query string) ([]string, error) {
	service, namespace, port, err := parseService(address)
	if err != nil {
		return nil, err
	}
	data, err := p.client.Get().Namespace(namespace).Resource("services").Name("http:"+service+":"+port).SubResource("proxy").
		Suffix("api/v1/query").Param("query", query).DoRaw(ctx)
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	if decoded := json.Unmarshal(data, &answer); decoded != nil || answer.Status == "" {
		if err != nil {
			return nil, fmt.Errorf("asking Prometheus at %s through the API server: %w", address, err)
		}
		return nil, fmt.Errorf("%s does not answer like Prometheus", address)
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("refused by Prometheus: %s", answer.Error)
	}
	values := []string{}
	for _, r := range answer.Data.Result {
		values = append(values, fmt.Sprint(r.Value[1]))
	}
	return values, nil
}

// parseService takes an address such as http://prometheus.monitoring.svc:9090 apart.
func parseService(address string) (service, namespace, port string, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" {
		return "", "", "", fmt.Errorf("%q is no http address of a Service: global.prometheus.address says where to ask", address)
	}
	parts := strings.Split(u.Hostname(), ".")
	if len(parts) < 3 || parts[2] != "svc" {
		return "", "", "", fmt.Errorf("%q is no Service of the cluster, such as http://prometheus.monitoring.svc:9090: ask it by yourself", address)
	}
	port = u.Port()
	if port == "" {
		port = "80"
	}
	return parts[0], parts[1], port, nil
}

// Write shows a report as a table.
func (r Report) Write(w io.Writer) error {
	fmt.Fprintf(w, "%s: %s of %s (%s)\n\n", r.Cluster, Template, r.Rollout, r.Hash)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "QUESTION\tANSWER\tSUCCESS IF\tFAILURE IF")
	for _, a := range r.Answers {
		answer := strings.Join(a.Values, ", ")
		switch {
		case a.Error != "":
			answer = "ERROR: " + a.Error
		case answer == "" && a.Presence:
			answer = "NO DATA"
		case answer == "":
			answer = "no data"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.Metric, answer, a.Success, a.Failure)
	}
	if err := table.Flush(); err != nil || r.Room == nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", r.Room)
	return err
}
