package charts

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Each refusal names the key and says what to write instead.
func TestRefusedValues(t *testing.T) {
	cases := map[string]struct {
		scenario string
		values   string
		want     []string
	}{
		"unknown cloud":         {"aws-minimal", "global: {cloudProvider: azure}", []string{"/global/cloudProvider", "'aws', 'gcp'"}},
		"no cloud":              {"aws-minimal", "global: {cloudProvider: ''}", []string{"/global/cloudProvider", "'aws', 'gcp'"}},
		"no registry":           {"aws-minimal", "global: {imageRegistry: ''}", []string{"/global/imageRegistry", "such as europe-west1-docker.pkg.dev"}},
		"registry with scheme":  {"aws-minimal", "global: {imageRegistry: 'https://ghcr.io/x'}", []string{"/global/imageRegistry", "without https://"}},
		"no region":             {"aws-minimal", "global: {region: ''}", []string{"/global/region", "it has no default"}},
		"no cluster":            {"aws-minimal", "global: {cluster: ''}", []string{"/global/cluster", "it has no default"}},
		"mistyped at the top":   {"aws-minimal", "aiworker: {}", []string{"'aiworker' not allowed", "nothing else than", " aiWorker,"}},
		"mistyped below global": {"aws-minimal", "global: {cloudprovider: aws}", []string{"/global", "'cloudprovider' not allowed", "nothing else than cloudProvider,"}},
		"mistyped in worker":    {"aws-minimal", "aiWorker: {replcias: 3}", []string{"/aiWorker", "'replcias' not allowed", "nothing else than", " replicas,"}},
		"mistyped deep":         {"aws-minimal", "ui: {canary: {maxsurge: 1}}", []string{"/ui/canary", "'maxsurge' not allowed", "nothing else than maxSurge,"}},
		"GPU below requests":    {"aws-minimal", "aiWorker: {resources: {requests: {nvidia.com/gpu: 1}}}", []string{"/aiWorker/resources/requests", "'nvidia.com/gpu' not allowed"}},
		"tag latest":            {"aws-minimal", "aiWorker: {tag: latest}", []string{"/aiWorker/tag", `a version such as "0.1.0"`}},
		"tag latest of the ui":  {"aws-minimal", "ui: {tag: latest}", []string{"/ui/tag", `a version such as "0.1.0"`}},
		"tag became a number":   {"aws-minimal", "aiWorker: {tag: 1.10}", []string{"/aiWorker/tag", "a quoted string", "1.1"}},
		"tag with digest":       {"aws-minimal", "aiWorker: {tag: '1.0@sha256:00'}", []string{"/aiWorker/tag", "the digest has its own key"}},
		"no tag":                {"aws-minimal", "ui: {tag: ''}", []string{"ui.tag is empty", "0.1.0"}},
		"short digest":          {"aws-minimal", "aiWorker: {digest: 'sha256:abc'}", []string{"/aiWorker/digest", "64 lower-case hexadecimal digits", "crane digest"}},
		"digest without sha256": {"aws-minimal", "ui: {digest: '" + strings.Repeat("a", 64) + "'}", []string{"/ui/digest", "sha256: and 64"}},
		"upper-case digest":     {"aws-minimal", "ui: {digest: 'sha256:" + strings.Repeat("A", 64) + "'}", []string{"/ui/digest", "lower-case"}},
		"no digest":             {"aws-minimal", "aiWorker: {digest: ''}", []string{"aiWorker.digest is empty", "crane digest 123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:0.1.0", "global.requireDigest: false"}},
		"image with tag":        {"aws-minimal", "aiWorker: {image: 'omnivision-worker:1'}", []string{"/aiWorker/image", "without tag and digest"}},

		// P11
		"no canary Pod for one replica":      {"aws-minimal", "aiWorker: {replicas: 1, canary: {trafficRouting: none}}", []string{"/aiWorker/canary/maxSurge", "1 with 1 replica, or replicas 2"}},
		"nor for the ui":                     {"aws-minimal", "ui: {replicas: 1, canary: {trafficRouting: none, maxSurge: '0%', maxUnavailable: 1}}", []string{"/ui/canary/maxSurge", "1 with 1 replica, or replicas 2"}},
		"no canary Pod at the HPA's minimum": {"aws-minimal", "aiWorker: {canary: {trafficRouting: none}, hpa: {enabled: true, minReplicas: 1}}", []string{"aiWorker.canary.steps[0].setWeight 5 of 1 replica(s)", "aiWorker.canary.maxSurge: 1", "aiWorker.hpa.minReplicas: 2"}},
		"a weight rounded to no Pod":         {"aws-minimal", "aiWorker: {canary: {trafficRouting: none, steps: [{setWeight: 5}, {setWeight: 75}]}}", []string{"aiWorker.canary.steps[1].setWeight 75 of 2 replica(s)", "aiWorker.canary.maxSurge: 1", "setWeight: 74"}},
		"weights are all 0":                  {"aws-minimal", "aiWorker: {canary: {steps: [{setWeight: 0}, {pause: {}}]}}", []string{"aiWorker.canary.steps never set a weight", "setWeight: 5"}},
		"only pauses":                        {"aws-minimal", "ui: {canary: {steps: [{pause: {duration: 1m}}]}}", []string{"ui.canary.steps never set a weight", "setWeight: 5"}},
		"no steps":                           {"aws-minimal", "aiWorker: {canary: {steps: []}}", []string{"/aiWorker/canary/steps", "minItems"}},
		"neither surge nor unavailable":      {"aws-minimal", "aiWorker: {canary: {trafficRouting: none, maxSurge: 0, maxUnavailable: '0%'}}", []string{"aiWorker.canary.maxSurge and aiWorker.canary.maxUnavailable are both 0", "maxUnavailable: 1"}},
		"surge of nonsense":                  {"aws-minimal", "aiWorker: {canary: {maxSurge: some}}", []string{"/aiWorker/canary/maxSurge", `a percentage such as "25%"`}},
		"canary scale without a router":      {"aws-minimal", "aiWorker: {canary: {trafficRouting: none, steps: [{setCanaryScale: {replicas: 1}}, {setWeight: 5}]}}", []string{"aiWorker.canary.steps[0].setCanaryScale", "aiWorker.canary.trafficRouting"}},
		"unknown step":                       {"aws-minimal", "aiWorker: {canary: {steps: [{setweight: 5}]}}", []string{"/aiWorker/canary/steps/0", "'setweight'", "nothing else than setWeight,"}},
		"weight above 100":                   {"aws-minimal", "aiWorker: {canary: {steps: [{setWeight: 101}]}}", []string{"/aiWorker/canary/steps/0/setWeight", "100"}},
		"pause of nonsense":                  {"aws-minimal", "aiWorker: {canary: {steps: [{setWeight: 5}, {pause: {duration: long}}]}}", []string{"/aiWorker/canary/steps/1/pause/duration", "10m"}},

		"a scale of no Pod":                {"aws-minimal", "aiWorker: {canary: {steps: [{setCanaryScale: {replicas: 0}}, {setWeight: 5}]}}", []string{"aiWorker.canary.steps[1] leaves the canary no Pod for its 5% of requests", "setCanaryScale: {replicas: 1}"}},
		"a scale that the stable overruns": {"aws-minimal", "aiWorker: {canary: {dynamicStableScale: true, steps: [{setCanaryScale: {replicas: 1}}, {setWeight: 5}]}}", []string{"aiWorker.canary.dynamicStableScale", "dynamicStableScale: false"}},
		"an ALB of another cloud":          {"gcp-minimal", "ui: {canary: {trafficRouting: alb}, expose: {type: Ingress}}", []string{"ui.canary.trafficRouting alb is a load balancer of aws"}},
		"an ALB that holds no Ingress":     {"aws-minimal", "ui: {canary: {trafficRouting: alb}}", []string{"ui.canary.trafficRouting alb", "ui.expose.type: Ingress,"}},
		"a plugin that holds no route":     {"aws-minimal", "ui: {canary: {trafficRouting: gatewayAPI}}", []string{"ui.expose.type: HTTPRoute,"}},
		"workers behind no Gateway":        {"gcp-minimal", "aiWorker: {canary: {trafficRouting: gatewayAPI}}", []string{"aiWorker.route.gateway.name is empty", "ui.workerURL is empty", "aiWorker.networkPolicy.extraIngress is empty", "let the Gateway through"}},
		"workers behind an ALB":            {"aws-minimal", "aiWorker: {canary: {trafficRouting: alb}}", []string{"ui.workerURL is empty", "let the ALB through"}},

		"a template that is not made":     {"aws-minimal", "gpuHealthCheck: {enabled: false}", []string{"aiWorker.canary.analysis.templates", "gpuHealthCheck.enabled: true"}},
		"router that has no hold":         {"aws-minimal", "ui: {expose: {type: Ingress}}", []string{"ui.canary.trafficRouting", "ui.expose.type: IngressRoute"}},
		"unknown router":                  {"aws-minimal", "ui: {canary: {trafficRouting: istio}}", []string{"/ui/canary/trafficRouting", "'traefik', 'alb', 'gatewayAPI', 'none'"}},
		"route without gateway":           {"aws-minimal", "ui: {canary: {trafficRouting: none}, expose: {type: HTTPRoute}}", []string{"ui.expose.gateway.name is empty", "Gateway"}},
		"ui without workers":              {"aws-minimal", "aiWorker: {enabled: false}", []string{"ui.workerURL is empty", "Set ui.workerURL"}},
		"workers behind the policy":       {"aws-minimal", "ui: {workerURL: 'https://w.example.com'}", []string{"ui.networkPolicy.extraEgress is empty", "Add an egress rule"}},
		"HPA upside down":                 {"aws-minimal", "ui: {hpa: {enabled: true, minReplicas: 9}}", []string{"ui.hpa.minReplicas (9)", "raise maxReplicas"}},
		"rollback to what is gone":        {"aws-minimal", "ui: {rollbackWindow: 9}", []string{"ui.revisionHistoryLimit (5)", "Raise revisionHistoryLimit"}},
		"deadline that cannot be kept":    {"aws-minimal", "ui: {minReadySeconds: 300}", []string{"ui.progressDeadlineSeconds (300)", "Raise it"}},
		"budget that blocks every drain":  {"aws-minimal", "aiWorker: {pdb: {maxUnavailable: 0}}", []string{"aiWorker.pdb.maxUnavailable is 0", "Set it to 1"}},
		"no GPU":                          {"aws-minimal", `aiWorker: {resources: {limits: {nvidia.com/gpu: 0}}}`, []string{"/aiWorker/resources/limits/nvidia.com~1gpu", "1 or more"}},
		"half a GPU":                      {"aws-minimal", `aiWorker: {resources: {limits: {nvidia.com/gpu: 0.5}}}`, []string{"/aiWorker/resources/limits/nvidia.com~1gpu", "a whole number of GPUs"}},
		"role that is no ARN":             {"aws-minimal", "aiWorker: {serviceAccount: {awsRoleARN: worker}}", []string{"/aiWorker/serviceAccount/awsRoleARN", "arn:aws:iam::123456789012:role/"}},
		"Google account that is none":     {"gcp-minimal", "aiWorker: {serviceAccount: {gcpServiceAccount: worker}}", []string{"/aiWorker/serviceAccount/gcpServiceAccount", "iam.gserviceaccount.com"}},
		"several problems are told once":  {"aws-minimal", "{aiWorker: {digest: ''}, ui: {digest: ''}}", []string{"2 problem(s)", "aiWorker.digest", "ui.digest"}},
		"worker URL that is no URL":       {"aws-minimal", "ui: {workerURL: workers}", []string{"/ui/workerURL", "http or https URL"}},
		"failures in percent":             {"aws-minimal", "gpuHealthCheck: {comparison: {errorRate: {maxExcess: 2}}}", []string{"/gpuHealthCheck/comparison/errorRate/maxExcess", "0.02 for two percentage points"}},
		"a p99 closer than it is known":   {"aws-minimal", "gpuHealthCheck: {comparison: {latency: {maxRatio: 1.1}}}", []string{"/gpuHealthCheck/comparison/latency/maxRatio", "1.5 or more"}},
		"measurement interval of nothing": {"aws-minimal", "gpuHealthCheck: {interval: 0s}", []string{"/gpuHealthCheck/interval", "30s"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := with(t, c.scenario, c.values)
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the message lacks %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestAcceptedValues(t *testing.T) {
	for name, values := range map[string]string{
		"one replica that may surge":        "aiWorker: {replicas: 1, canary: {trafficRouting: none, maxSurge: 1, maxUnavailable: 0}}",
		"one replica that surges a percent": "aiWorker: {replicas: 1, canary: {trafficRouting: none, maxSurge: '25%', maxUnavailable: 0}}",
		"one replica, requests routed":      "aiWorker: {replicas: 1}",
		"one replica of what is off":        "{aiWorker: {enabled: false, replicas: 1, canary: {trafficRouting: none}}, ui: {workerURL: 'http://w', networkPolicy: {extraEgress: [{}]}}}",
		"one replica that is the HPA's":     "aiWorker: {replicas: 1, canary: {trafficRouting: none}, hpa: {enabled: true}}",
		"no digest where it is allowed":     "{global: {requireDigest: false}, aiWorker: {digest: ''}, ui: {digest: ''}}",
		"workers elsewhere, nothing denied": "{aiWorker: {enabled: false}, ui: {workerURL: 'http://w'}, networkPolicy: {enabled: false}}",
		"a pause without end":               "aiWorker: {canary: {steps: [{setWeight: 5}, {pause: {}}]}}",
		"a whole GPU written as 1.0":        "aiWorker: {resources: {limits: {nvidia.com/gpu: 1.0}}}",
	} {
		t.Run(name, func(t *testing.T) { mustRender(t, "aws-minimal", values) })
	}
}

type valuesSchema struct {
	AdditionalProperties any `json:"additionalProperties"`
	If                   *struct{ PropertyNames struct{ Enum []string } }
	Else                 struct{ Const string }
	Properties           map[string]*valuesSchema `json:"properties"`
	Ref                  string                   `json:"$ref"`
	Definitions          map[string]*valuesSchema `json:"definitions"`
}

func readSchema(t *testing.T) *valuesSchema {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s valuesSchema
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// Every object with keys of its own refuses others, and lists its own.
func TestSchemaIsClosed(t *testing.T) {
	var walk func(path string, s *valuesSchema)
	walk = func(path string, s *valuesSchema) {
		if len(s.Properties) > 0 {
			names := slices.Sorted(maps.Keys(s.Properties))
			if s.AdditionalProperties != false || s.If == nil {
				t.Errorf("%s accepts unknown keys", path)
			} else if listed := slices.Sorted(slices.Values(s.If.PropertyNames.Enum)); !slices.Equal(names, listed) {
				t.Errorf("%s: propertyNames has %v, properties %v", path, listed, names)
			} else if want := "a mapping with nothing else than " + strings.Join(s.If.PropertyNames.Enum, ", "); s.Else.Const != want {
				t.Errorf("%s: a mistyped key is answered with %q, want %q", path, s.Else.Const, want)
			}
		}
		for name, p := range s.Properties {
			walk(path+"/"+name, p)
		}
		for name, p := range s.Definitions {
			walk(path+"#"+name, p)
		}
	}
	walk("", readSchema(t))
}

// values.yaml and the schema know the same keys, so neither can be forgotten.
func TestSchemaAndValuesHaveTheSameKeys(t *testing.T) {
	root := readSchema(t)
	data, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		t.Fatal(err)
	}
	// Keys that are allowed and have no default.
	optional := []string{"cpu", "ephemeral-storage"}
	var compare func(path string, s *valuesSchema, v map[string]any)
	compare = func(path string, s *valuesSchema, v map[string]any) {
		if name, is := strings.CutPrefix(s.Ref, "#/definitions/"); is {
			s = root.Definitions[name]
		}
		if s == nil || len(s.Properties) == 0 {
			return
		}
		for key := range s.Properties {
			if _, has := v[key]; !has && !(strings.Contains(path, "/resources/") && slices.Contains(optional, key)) {
				t.Errorf("values.yaml lacks %s/%s, which the schema has", path, key)
			}
		}
		for key, value := range v {
			below, has := s.Properties[key]
			if !has {
				t.Errorf("the schema lacks %s/%s, which values.yaml has", path, key)
			} else if m, is := value.(map[string]any); is {
				compare(path+"/"+key, below, m)
			}
		}
	}
	compare("", root, values)
}
