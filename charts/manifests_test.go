package charts

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/apis/v1alpha1"
)

const (
	workerRollout = "Rollout.argoproj.io/omnivision-platform-worker"
	uiRollout     = "Rollout.argoproj.io/omnivision-platform-ui"
)

var rollouts = []string{workerRollout, uiRollout}

// check compares values at paths of one object.
func check(t *testing.T, o *unstructured.Unstructured, want map[string]any) {
	t.Helper()
	for path, value := range want {
		if got := at(t, o, path); fmt.Sprint(got) != fmt.Sprint(value) {
			t.Errorf("%s/%s: %s is %v, want %v", o.GetKind(), o.GetName(), path, got, value)
		}
	}
}

func TestWorkersRunOnTheGPUNodesOfTheirCloud(t *testing.T) {
	const terms = "spec.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
	for scenario, want := range map[string][2]string{
		"aws-minimal": {"eks.amazonaws.com/nodegroup", "[gpu-workers]"},
		"gcp-minimal": {"cloud.google.com/gke-accelerator", "[nvidia-tesla-t4]"},
		"aws-full":    {"eks.amazonaws.com/nodegroup", "[gpu-workers gpu-workers-spot]"},
		"gcp-full":    {"cloud.google.com/gke-accelerator", "[nvidia-l4]"},
	} {
		result := mustRender(t, scenario, "")
		worker := find(t, result, workerRollout)
		check(t, worker, map[string]any{
			terms + ".0.matchExpressions.0.key":      want[0],
			terms + ".0.matchExpressions.0.operator": "In",
			terms + ".0.matchExpressions.0.values":   want[1],
			terms + ".1":                             nil,
			"spec.template.spec.tolerations.0.key":   "nvidia.com/gpu",
		})
		if at(t, worker, "spec.template.spec.containers.0.resources.limits.nvidia~com/gpu") == nil {
			t.Errorf("%s: the worker asks for no GPU", scenario)
		}
		check(t, find(t, result, uiRollout), map[string]any{"spec.template.spec.affinity": nil, "spec.template.spec.tolerations": nil})
	}
}

func TestImagesArePinnedByTagAndDigest(t *testing.T) {
	worker := find(t, mustRender(t, "gcp-minimal", ""), workerRollout)
	digest := "sha256:" + strings.Repeat("a", 64)
	check(t, worker, map[string]any{
		"spec.template.spec.containers.0.image":       "europe-west1-docker.pkg.dev/omnivision/images/omnivision-worker:0.1.0@" + digest,
		"spec.template.spec.containers.0.env.2.name":  "OMNIVISION_IMAGE_DIGEST",
		"spec.template.spec.containers.0.env.2.value": digest,
	})
	unpinned := find(t, mustRender(t, "gcp-minimal", "{global: {requireDigest: false}, aiWorker: {digest: ''}}"), workerRollout)
	check(t, unpinned, map[string]any{"spec.template.spec.containers.0.image": "europe-west1-docker.pkg.dev/omnivision/images/omnivision-worker:0.1.0"})
}

func TestCanaryDefaults(t *testing.T) {
	check(t, find(t, mustRender(t, "aws-minimal", ""), workerRollout), map[string]any{
		"spec.strategy.canary.steps":                           "[map[setWeight:5] map[pause:map[duration:10m]] map[setWeight:50] map[pause:map[duration:30m]]]",
		"spec.strategy.canary.analysis.templates":              "[map[templateName:gpu-health-check]]",
		"spec.strategy.canary.analysis.startingStep":           0,                                                                         // P18
		"spec.strategy.canary.trafficRouting":                  "map[traefik:map[weightedTraefikServiceName:omnivision-platform-worker]]", // P10
		"spec.strategy.canary.dynamicStableScale":              false,
		"spec.progressDeadlineAbort":                           true, // P15
		"spec.rollbackWindow.revisions":                        3,    // P21
		"metadata.annotations.omnivision~ai/effective-weights": "setWeight 5 is 5% of requests, by 1 of 3 Pods, setWeight 50 is 50% of requests, by 1 of 3 Pods",
	})
	check(t, find(t, mustRender(t, "aws-minimal", "aiWorker: {canary: {trafficRouting: none}}"), workerRollout), map[string]any{
		"spec.strategy.canary.maxSurge":                        0, // P15
		"spec.strategy.canary.maxUnavailable":                  1, // P15
		"spec.strategy.canary.trafficRouting":                  nil,
		"spec.strategy.canary.dynamicStableScale":              nil,
		"metadata.annotations.omnivision~ai/effective-weights": "setWeight 5 is 1 of 2 Pods (50%), setWeight 50 is 1 of 2 Pods (50%)", // P10
	})
}

// P15: how much room a canary takes is told before it is missing.
func TestNotesTellHowManyPodsACanaryNeeds(t *testing.T) {
	for name, c := range map[string]struct{ values, want string }{
		"requests are shifted":            {"{replicas: 4}", "up to 8 Pods at a time, with 1 GPU(s) each"},
		"the stable version shrinks":      {"{replicas: 4, canary: {dynamicStableScale: true}}", "up to 6 Pods at a time"}, // at 50 %: 2 come before the 4 go, later 4 before 2 go
		"the stable version shrinks, 10":  {"{replicas: 10, canary: {dynamicStableScale: true, steps: [{setWeight: 90}, {setWeight: 95}]}}", "up to 19 Pods at a time"},
		"Pods are replaced":               {"{replicas: 4, canary: {trafficRouting: none}}", "up to 4 Pods at a time"},
		"Pods are replaced, with a surge": {"{replicas: 4, canary: {trafficRouting: none, maxSurge: '26%'}}", "up to 6 Pods at a time"},
	} {
		t.Run(name, func(t *testing.T) {
			if notes := mustRender(t, "aws-minimal", "aiWorker: "+c.values).Notes; !strings.Contains(notes, c.want) {
				t.Errorf("the notes lack %q:\n%s", c.want, notes)
			}
		})
	}
}

// The fields that Argo Rollouts v1.10.2 and its plugin look for, and objects that have them.
func TestOtherRoutersSplitRequestsBetweenStableAndCanary(t *testing.T) {
	for _, name := range []string{"omnivision-platform-worker", "omnivision-platform-ui"} {
		alb := mustRender(t, "aws-alb", "")
		check(t, find(t, alb, "Rollout.argoproj.io/"+name), map[string]any{
			"spec.strategy.canary.trafficRouting.alb": "map[ingress:" + name + " rootService:" + name + " servicePort:8080]",
		})
		check(t, find(t, alb, "Ingress.networking.k8s.io/"+name), map[string]any{
			"spec.ingressClassName":                               "alb",
			"spec.rules.0.http.paths.0.backend.service.name":      name,
			"spec.rules.0.http.paths.0.backend.service.port.name": "use-annotation",
		})
		gateway := mustRender(t, "gcp-gateway", "")
		check(t, find(t, gateway, "Rollout.argoproj.io/"+name), map[string]any{
			"spec.strategy.canary.trafficRouting.plugins.argoproj-labs/gatewayAPI": "map[httpRoute:" + name + " namespace:omnivision]",
		})
		check(t, find(t, gateway, "HTTPRoute.gateway.networking.k8s.io/"+name), map[string]any{
			"spec.rules.0.backendRefs": "[map[name:" + name + "-stable port:8080 weight:100] map[name:" + name + "-canary port:8080 weight:0]]",
		})
	}
	for _, scenario := range []string{"aws-alb", "gcp-gateway"} {
		check(t, find(t, mustRender(t, scenario, ""), uiRollout), map[string]any{"spec.template.spec.containers.0.env.3.value": "http://workers.internal.example.com"})
	}
}

func TestNotesTellTheEffectiveWeights(t *testing.T) {
	notes := mustRender(t, "aws-minimal", "aiWorker: {replicas: 4, canary: {trafficRouting: none}}").Notes
	if !strings.Contains(notes, "setWeight 5 is 1 of 4 Pods (25%)") {
		t.Errorf("the notes are:\n%s", notes)
	}
	if notes = mustRender(t, "gcp-full", "").Notes; !strings.Contains(notes, "setWeight 5 is 5% of requests, by 1 of 5 Pods") {
		t.Errorf("the notes are:\n%s", notes)
	}
}

func TestReplicasAreTheHPAsWhenThereIsOne(t *testing.T) {
	for _, id := range rollouts {
		check(t, find(t, mustRender(t, "aws-full", ""), id), map[string]any{"spec.replicas": nil}) // P9
		check(t, find(t, mustRender(t, "aws-minimal", ""), id), map[string]any{"spec.replicas": 2})
	}
}

func TestTraefikSplitsRequestsBetweenStableAndCanary(t *testing.T) {
	result := mustRender(t, "gcp-full", "")
	for _, name := range []string{"omnivision-platform-worker", "omnivision-platform-ui"} {
		rollout := find(t, result, "Rollout.argoproj.io/"+name)
		check(t, rollout, map[string]any{
			"spec.strategy.canary.trafficRouting.traefik.weightedTraefikServiceName": name,
			"spec.strategy.canary.stableService":                                     name + "-stable",
			"spec.strategy.canary.canaryService":                                     name + "-canary",
		})
		check(t, find(t, result, "TraefikService.traefik.io/"+name), map[string]any{
			"spec.weighted.services.0.name":   name + "-stable",
			"spec.weighted.services.0.weight": 100,
			"spec.weighted.services.1.name":   name + "-canary",
			"spec.weighted.services.1.weight": 0,
		})
		check(t, find(t, result, "IngressRoute.traefik.io/"+name), map[string]any{
			"spec.routes.0.services": "[map[kind:TraefikService name:" + name + "]]",
		})
		for _, service := range []string{"-stable", "-canary"} {
			check(t, find(t, result, "Service/"+name+service), map[string]any{"spec.ports.0.name": "http"})
		}
	}
	// The UI's requests pass Traefik too: by a name that leads there, and a route for it.
	check(t, find(t, result, uiRollout), map[string]any{
		"spec.template.spec.containers.0.env.3.value": "http://omnivision-platform-worker-routed:8082",
	})
	check(t, find(t, result, "Service/omnivision-platform-worker-routed"), map[string]any{
		"spec.externalName": "traefik-internal.traefik.svc.cluster.local",
	})
	check(t, find(t, result, "IngressRoute.traefik.io/omnivision-platform-worker"), map[string]any{
		"spec.routes.0.match": "Host(`omnivision-platform-worker-routed`)",
		"spec.entryPoints":    "[internal]",
	})
}

func TestGracePeriodCoversTheDrain(t *testing.T) {
	for _, id := range rollouts {
		pod := find(t, mustRender(t, "aws-minimal", "{aiWorker: {drain: {delaySeconds: 7, timeoutSeconds: 100, marginSeconds: 3}}, ui: {drain: {delaySeconds: 7, timeoutSeconds: 100, marginSeconds: 3}}}"), id)
		check(t, pod, map[string]any{"spec.template.spec.terminationGracePeriodSeconds": 110})
		args := fmt.Sprint(at(t, pod, "spec.template.spec.containers.0.args"))
		for _, want := range []string{"--drain-delay=7s", "--drain-timeout=100s"} {
			if !strings.Contains(args, want) {
				t.Errorf("%s lacks %s: %s", id, want, args)
			}
		}
	}
}

func TestPrometheusFindsThePods(t *testing.T) {
	for _, id := range rollouts {
		check(t, find(t, mustRender(t, "aws-minimal", ""), id), map[string]any{
			"spec.template.metadata.annotations.prometheus~io/scrape":                "true",
			"spec.template.metadata.annotations.prometheus~io/port":                  "9090",
			"spec.template.metadata.annotations.prometheus~io/path":                  "/metrics",
			"spec.template.spec.containers.0.ports.1.containerPort":                  9090,
			"spec.template.spec.automountServiceAccountToken":                        false,
			"spec.template.spec.containers.0.securityContext.readOnlyRootFilesystem": true,
		})
	}
}

func TestIdentityIsThatOfTheCloud(t *testing.T) {
	const both = "aiWorker: {serviceAccount: {awsRoleARN: 'arn:aws:iam::123456789012:role/w', gcpServiceAccount: w@p.iam.gserviceaccount.com}}"
	for scenario, want := range map[string]map[string]any{
		"aws-minimal": {"eks~amazonaws~com/role-arn": "arn:aws:iam::123456789012:role/w", "iam~gke~io/gcp-service-account": nil},
		"gcp-minimal": {"eks~amazonaws~com/role-arn": nil, "iam~gke~io/gcp-service-account": "w@p.iam.gserviceaccount.com"},
	} {
		account := find(t, mustRender(t, scenario, both), "ServiceAccount/omnivision-platform-worker")
		for key, value := range want {
			check(t, account, map[string]any{"metadata.annotations." + key: value})
		}
	}
}

func TestCacheUsesTheCloudsStorageClass(t *testing.T) {
	for scenario, want := range map[string]string{"aws-minimal": "gp3", "gcp-minimal": "premium-rwo"} {
		worker := find(t, mustRender(t, scenario, "aiWorker: {cache: {type: ephemeral}}"), workerRollout)
		check(t, worker, map[string]any{"spec.template.spec.volumes.1.ephemeral.volumeClaimTemplate.spec.storageClassName": want})
		worker = find(t, mustRender(t, scenario, "aiWorker: {cache: {type: ephemeral, storageClassName: own}}"), workerRollout)
		check(t, worker, map[string]any{"spec.template.spec.volumes.1.ephemeral.volumeClaimTemplate.spec.storageClassName": "own"})
	}
}

// A new chart version alone must not replace a single Pod.
func TestPodsDoNotNameTheChartVersion(t *testing.T) {
	for _, id := range rollouts {
		labels := at(t, find(t, mustRender(t, "aws-full", ""), id), "spec.template.metadata.labels").(map[string]any)
		if _, has := labels["helm.sh/chart"]; has {
			t.Errorf("%s has the chart's version in its Pods", id)
		}
	}
}

// Selectors of Services, budgets and spreads hit the Pods they are meant for.
func TestSelectorsMatchTheirPods(t *testing.T) {
	result := mustRender(t, "gcp-full", "")
	for component, id := range map[string]string{"worker": workerRollout, "ui": uiRollout} {
		rollout := find(t, result, id)
		labels := at(t, rollout, "spec.template.metadata.labels").(map[string]any)
		selectors := map[string]any{"its own": at(t, rollout, "spec.selector.matchLabels")}
		name := "omnivision-platform-" + component
		for _, service := range []string{name, name + "-stable", name + "-canary"} {
			selectors[service] = at(t, find(t, result, "Service/"+service), "spec.selector")
		}
		selectors["budget"] = at(t, find(t, result, "PodDisruptionBudget.policy/"+name), "spec.selector.matchLabels")
		selectors["spread"] = at(t, rollout, "spec.template.spec.topologySpreadConstraints.0.labelSelector.matchLabels")
		for what, selector := range selectors {
			for key, value := range selector.(map[string]any) {
				if labels[key] != value {
					t.Errorf("%s, %s: selects %s=%v, the Pods have %v", component, what, key, value, labels[key])
				}
			}
			if !reflect.DeepEqual(selector, selectors["its own"]) {
				t.Errorf("%s: %s selects other Pods than the Rollout", component, what)
			}
		}
	}
}

func TestWhatIsOffIsNotRendered(t *testing.T) {
	for _, o := range mustRender(t, "aws-gateway", "").Objects {
		if o.GetLabels()["app.kubernetes.io/component"] == "worker" {
			t.Errorf("the worker is off, yet there is %s", o.ID())
		}
	}
	off := mustRender(t, "aws-minimal", "{networkPolicy: {enabled: false}, tests: {enabled: false}, ui: {pdb: {enabled: false}, expose: {type: None}}}")
	for _, o := range slices.Concat(off.Objects, off.Hooks) {
		if slices.Contains([]string{"NetworkPolicy", "Pod", "Ingress"}, o.GetKind()) || o.GetKind() == "PodDisruptionBudget" && strings.HasSuffix(o.GetName(), "-ui") {
			t.Errorf("it is off, yet there is %s", o.ID())
		}
	}
}

// What admission lets run is what the Rollouts run, and it is told before they come (P32).
func TestAdmissionIsHeldToTheImagesOfTheValues(t *testing.T) {
	const id = "ReleasePolicy.omnivision.ai/omnivision-platform"
	for scenario := range scenarios(t) {
		result := mustRender(t, scenario, "")
		object := find(t, result, id)
		text, err := object.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		policy, err := v1alpha1.DecodeReleasePolicy(text)
		if err != nil {
			t.Fatalf("%s: the gate cannot read it: %v", scenario, err)
		}
		var run []string
		for _, o := range result.Objects {
			if o.GetKind() == "Rollout" {
				run = append(run, at(t, o.Unstructured, "spec.template.spec.containers.0.image").(string))
			}
		}
		if wave := object.GetAnnotations()["argocd.argoproj.io/sync-wave"]; wave != "-1" || !policy.Spec.GitOnly || len(run) == 0 || len(policy.Spec.Admitted) != len(run) || len(policy.Spec.Images) != len(run) {
			t.Fatalf("%s: in wave %q, for the images %q: %+v", scenario, wave, run, policy.Spec)
		}
		for i, image := range run {
			admitted := slices.IndexFunc(policy.Spec.Admitted, func(d v1alpha1.ImageDigest) bool {
				return strings.Contains(image, "/"+d.Repository+":") && strings.HasSuffix(image, "@"+d.Digest)
			})
			covered := slices.ContainsFunc(policy.Spec.Images, func(p v1alpha1.ImagePattern) bool {
				return strings.Contains(image, strings.Trim(p.Glob, "*")+":")
			})
			if admitted < 0 || !covered {
				t.Errorf("%s: Rollout %d runs %s, and admission is told %+v", scenario, i, image, policy.Spec)
			}
		}
	}
	half := find(t, mustRender(t, "gcp-minimal", "{global: {requireDigest: false}, aiWorker: {digest: ''}}"), id)
	if images := at(t, half, "spec.images").([]any); len(images) != 1 {
		t.Errorf("of a worker without a digest nothing can be demanded: %v", images)
	}
	for _, values := range []string{"{admission: {gitOnly: false}}", "{global: {requireDigest: false}, aiWorker: {digest: ''}, ui: {digest: ''}}"} {
		for _, o := range mustRender(t, "gcp-minimal", values).Objects {
			if o.GetKind() == "ReleasePolicy" {
				t.Errorf("with %s there is %s", values, o.ID())
			}
		}
	}
}

// Missing data has to stop the canary before the step that would take it further (P16).
func TestMissingDataStopsTheCanaryWithinTheFirstPause(t *testing.T) {
	result := mustRender(t, "aws-minimal", "")
	duration := func(v any) time.Duration {
		d, err := time.ParseDuration(fmt.Sprint(v))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	pause := duration(at(t, find(t, result, workerRollout), "spec.strategy.canary.steps.1.pause.duration"))
	template := find(t, result, "AnalysisTemplate.argoproj.io/gpu-health-check")
	for i, m := range at(t, template, "spec.metrics").([]any) {
		metric := m.(map[string]any)
		start, interval := duration(metric["initialDelay"]), duration(metric["interval"])
		for _, limit := range []string{"inconclusiveLimit", "consecutiveErrorLimit"} {
			if after := start + interval*time.Duration(metric[limit].(int64)); after >= pause {
				t.Errorf("metric %d, %v: %s is reached after %s, the next step comes after %s", i, metric["name"], limit, after, pause)
			}
		}
		if metric["successCondition"] == "" || metric["failureCondition"] == "" {
			t.Errorf("metric %v lacks a condition: it could not be inconclusive", metric["name"])
		}
	}
}

// A hook of a sync waits for the Rollouts' health, which a paused canary does not have (P19). Argo CD runs none of
// `helm test`.
func TestTheOnlyHookIsOfHelmTest(t *testing.T) {
	for scenario := range scenarios(t) {
		result := mustRender(t, scenario, "")
		for _, o := range slices.Concat(result.Objects, result.Hooks) {
			annotations := o.GetAnnotations()
			if hook, ok := annotations["helm.sh/hook"]; ok && hook != "test" {
				t.Errorf("%s: %s is a hook of %s", scenario, o.ID(), hook)
			}
			if hook, ok := annotations["argocd.argoproj.io/hook"]; ok {
				t.Errorf("%s: %s is Argo CD's hook of %s", scenario, o.ID(), hook)
			}
		}
	}
}
