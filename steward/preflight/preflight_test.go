package preflight

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// An API server that has the template and the Rollout, and a Prometheus behind its proxy.
func server(t *testing.T, answers map[string]string) *rest.Config {
	t.Helper()
	const argo = "/apis/argoproj.io/v1alpha1/namespaces/omnivision/"
	metric := func(name, query string) string {
		return `{"name":"` + name + `","successCondition":"len(result) == 1","provider":{"prometheus":{"address":"http://prometheus.monitoring.svc:9090","query":"` + query + `"}}}`
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case argo + "analysistemplates/gpu-health-check":
			_, _ = w.Write([]byte(`{"apiVersion":"argoproj.io/v1alpha1","kind":"AnalysisTemplate","metadata":{"name":"gpu-health-check"},"spec":{"metrics":[` +
				metric("worker-reports", "count(x{pod=~'worker-{{args.canary-hash}}-.*'})") + "," + metric("worker-cuda-errors", "sum(x)") + "," +
				metric("error-rate-reports", "count(y{pod=~'worker-{{args.canary-hash}}-.*'}) and count(y{pod=~'worker-{{args.stable-hash}}-.*'})") + `]}}`))
		case argo + "rollouts":
			_, _ = w.Write([]byte(`{"apiVersion":"argoproj.io/v1alpha1","kind":"RolloutList","items":[{"apiVersion":"argoproj.io/v1alpha1","kind":"Rollout","metadata":{"name":"worker"},
				"spec":{"strategy":{"canary":{"analysis":{"templates":[{"templateName":"gpu-health-check"}]}}}},"status":{"currentPodHash":"abc"}}]}`))
		case "/api/v1/namespaces/monitoring/services/http:prometheus:9090/proxy/api/v1/query":
			answer, ok := answers[r.URL.Query().Get("query")]
			if !ok {
				t.Errorf("asked is %q", r.URL.Query().Get("query"))
			}
			if strings.Contains(answer, `"error"`) {
				w.WriteHeader(http.StatusBadRequest)
			}
			_, _ = w.Write([]byte(answer))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL}
}

func TestCheckAsksWhatTheAnalysisAsks(t *testing.T) {
	const some, none = `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"2"]}]}}`, `{"status":"success","data":{"resultType":"vector","result":[]}}`
	const presence, errors = "count(x{pod=~'worker-abc-.*'})", "sum(x)"
	const both = "count(y{pod=~'worker-abc-.*'}) and count(y{pod=~'worker-abc-.*'})"
	for _, test := range []struct {
		name    string
		answers map[string]string
		bad     bool
		want    string
	}{
		{"all is there", map[string]string{presence: some, errors: some, both: some}, false, "worker-reports      2 "},
		{"no errors yet", map[string]string{presence: some, errors: none, both: some}, false, "worker-cuda-errors  no data"},
		{"no exporter", map[string]string{presence: none, errors: none, both: some}, true, "worker-reports      NO DATA"},
		{"a side that does not report", map[string]string{presence: some, errors: none, both: none}, true, "error-rate-reports  NO DATA"},
		{"a query that does not parse", map[string]string{presence: some, both: some, errors: `{"status":"error","errorType":"bad_data","error":"parse error"}`}, true, "ERROR: refused by Prometheus: parse error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			report, err := Check(t.Context(), server(t, test.answers), "cluster-aws", "omnivision")
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := report.Write(&out); err != nil {
				t.Fatal(err)
			}
			if report.Bad() != test.bad || !strings.Contains(out.String(), test.want) || report.Hash != "abc" {
				t.Errorf("bad is %v, the table\n%s\nwithout %q", report.Bad(), out.String(), test.want)
			}
			if data, err := json.Marshal(report); err != nil || !strings.Contains(string(data), `"podTemplateHash":"abc"`) {
				t.Errorf("as JSON it is %s, %v", data, err)
			}
		})
	}
}

func TestOnlyServicesOfTheClusterAreReached(t *testing.T) {
	for _, address := range []string{"", "https://prometheus.monitoring.svc:9090", "http://prometheus.example.com", "http://localhost:9090"} {
		if service, _, _, err := parseService(address); err == nil {
			t.Errorf("%q is the Service %q", address, service)
		}
	}
}
