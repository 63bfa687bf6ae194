package charts

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/omnivision/omnivision/plan/render"
)

func policies(t *testing.T, result *render.Result) *matcher.Policy {
	t.Helper()
	var all []*networkingv1.NetworkPolicy
	for _, o := range result.Objects {
		if o.GetKind() != "NetworkPolicy" {
			continue
		}
		text, err := json.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		var p networkingv1.NetworkPolicy
		if err := json.Unmarshal(text, &p); err != nil {
			t.Fatal(err)
		}
		all = append(all, &p)
	}
	return matcher.BuildNetworkPolicies(false, all)
}

// peers of the tests: Pods by namespace, and addresses.
func peers(t *testing.T, result *render.Result) map[string]*matcher.TrafficPeer {
	t.Helper()
	pod := func(namespace string, labels map[string]string) *matcher.TrafficPeer {
		return &matcher.TrafficPeer{IP: "10.1.2.3", Internal: &matcher.InternalPeer{
			Namespace: namespace, NamespaceLabels: map[string]string{"kubernetes.io/metadata.name": namespace}, PodLabels: labels,
		}}
	}
	own := func(id, path string) *matcher.TrafficPeer {
		labels := map[string]string{"rollouts-pod-template-hash": "abc"}
		for key, value := range at(t, find(t, result, id), path).(map[string]any) {
			labels[key] = value.(string)
		}
		return pod(namespace, labels)
	}
	return map[string]*matcher.TrafficPeer{
		"worker":     own(workerRollout, "spec.template.metadata.labels"),
		"ui":         own(uiRollout, "spec.template.metadata.labels"),
		"test":       own("Pod/omnivision-platform-test", "metadata.labels"),
		"stranger":   pod(namespace, map[string]string{"app": "stranger"}),
		"traefik":    pod("traefik", map[string]string{"app.kubernetes.io/name": "traefik"}),
		"prometheus": pod("monitoring", map[string]string{"app.kubernetes.io/name": "prometheus"}),
		"dns":        pod("kube-system", map[string]string{"k8s-app": "kube-dns"}),
		"loki":       pod("logging", map[string]string{"app.kubernetes.io/name": "loki"}),
		"system":     pod("kube-system", map[string]string{"k8s-app": "kube-proxy"}),
		"elsewhere":  pod("default", map[string]string{"app.kubernetes.io/component": "ui", "app.kubernetes.io/name": "omnivision-platform", "app.kubernetes.io/instance": "omnivision-platform"}),
		"gateway":    pod("gateways", map[string]string{"app": "gateway"}),
		"alb":        {IP: "10.20.1.2"},
		"internet":   {IP: "203.0.113.7"},
		"metadata":   {IP: "169.254.169.254"},
		"gkeToken":   {IP: "169.254.169.252"},
		"dnsCache":   {IP: "169.254.20.10"},
	}
}

type flow struct {
	from, to string
	port     string
}

func (f flow) String() string { return f.from + " -> " + f.to + ":" + f.port }

var ports = map[string]struct {
	number   int
	name     string
	protocol corev1.Protocol
}{
	"http": {8080, "http", corev1.ProtocolTCP}, "metrics": {9090, "metrics", corev1.ProtocolTCP},
	"dns": {53, "dns", corev1.ProtocolUDP}, "dns-tcp": {53, "dns-tcp", corev1.ProtocolTCP},
	"https": {443, "", corev1.ProtocolTCP}, "web": {80, "", corev1.ProtocolTCP}, "internal": {8082, "internal", corev1.ProtocolTCP},
	"token": {988, "", corev1.ProtocolTCP}, "ssh": {22, "", corev1.ProtocolTCP}, "loki": {3100, "", corev1.ProtocolTCP},
}

// TestNetworkPolicies says for every pair of peers and every port whether
// traffic passes: what is not listed must not.
func TestNetworkPolicies(t *testing.T) {
	// Requests to the workers pass Traefik, and nothing goes around it.
	routed := []flow{{"ui", "traefik", "internal"}, {"test", "traefik", "internal"}, {"traefik", "worker", "http"}}
	always := []flow{
		{"traefik", "ui", "http"}, {"prometheus", "ui", "metrics"}, {"prometheus", "worker", "metrics"},
		{"test", "ui", "http"}, {"test", "worker", "http"},
		// Everybody's log sidecar.
		{"ui", "loki", "loki"}, {"worker", "loki", "loki"}, {"test", "loki", "loki"}, {"stranger", "loki", "loki"},
		{"ui", "dns", "dns"}, {"ui", "dns", "dns-tcp"}, {"worker", "dns", "dns"}, {"worker", "dns", "dns-tcp"}, {"test", "dns", "dns"}, {"test", "dns", "dns-tcp"},
	}
	for scenario, more := range map[string][]flow{
		"aws-minimal": routed,
		"gcp-minimal": routed,
		"aws-alb": {
			{"alb", "ui", "http"}, {"alb", "worker", "http"}, {"ui", "alb", "web"},
		},
		"gcp-gateway": {
			{"gateway", "ui", "http"}, {"gateway", "worker", "http"}, {"ui", "gateway", "web"},
		},
		"aws-full": {
			{"ui", "worker", "http"},
			// STS is somewhere on the internet; so is everything else on 443.
			{"ui", "internet", "https"}, {"worker", "internet", "https"},
			{"ui", "metadata", "https"}, {"worker", "metadata", "https"}, {"ui", "gkeToken", "https"}, {"worker", "gkeToken", "https"},
			{"ui", "dnsCache", "https"}, {"worker", "dnsCache", "https"},
			{"ui", "dnsCache", "dns"}, {"ui", "dnsCache", "dns-tcp"}, {"worker", "dnsCache", "dns"}, {"worker", "dnsCache", "dns-tcp"}, {"test", "dnsCache", "dns"}, {"test", "dnsCache", "dns-tcp"},
			// An address range covers Pods of the cluster too; theirs is 10.1.2.3.
			{"ui", "traefik", "https"}, {"worker", "traefik", "https"}, {"ui", "prometheus", "https"}, {"worker", "prometheus", "https"},
			{"ui", "dns", "https"}, {"worker", "dns", "https"}, {"ui", "system", "https"}, {"worker", "system", "https"}, {"ui", "elsewhere", "https"}, {"worker", "elsewhere", "https"}, {"ui", "loki", "https"}, {"worker", "loki", "https"},
			{"ui", "gateway", "https"}, {"worker", "gateway", "https"}, {"ui", "alb", "https"}, {"worker", "alb", "https"},
		},
		"gcp-full": append([]flow{
			{"ui", "metadata", "web"}, {"ui", "gkeToken", "token"}, {"worker", "metadata", "web"}, {"worker", "gkeToken", "token"},
		}, routed...),
	} {
		t.Run(scenario, func(t *testing.T) {
			result := mustRender(t, scenario, "")
			policy, all := policies(t, result), peers(t, result)
			want := map[flow]bool{}
			for _, f := range append(always, more...) {
				want[f] = true
			}
			// Only flows that touch the namespace are the chart's business.
			ours := func(name string) bool {
				return all[name].Internal != nil && all[name].Internal.Namespace == namespace
			}
			var wrong []string
			for from := range all {
				for to := range all {
					for port, p := range ports {
						f := flow{from, to, port}
						if !ours(from) && !ours(to) {
							continue
						}
						allowed := policy.IsTrafficAllowed(&matcher.Traffic{
							Source: all[from], Destination: all[to], ResolvedPort: p.number, ResolvedPortName: p.name, Protocol: p.protocol,
						}).IsAllowed()
						if allowed && !want[f] {
							wrong = append(wrong, f.String()+" passes and must not")
						}
						if !allowed && want[f] {
							wrong = append(wrong, f.String()+" does not pass and must")
						}
					}
				}
			}
			if len(wrong) > 0 {
				t.Errorf("%d flows are wrong:\n%s", len(wrong), strings.Join(wrong, "\n"))
			}
		})
	}
}
