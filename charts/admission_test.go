package charts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Where the schemas of the API servers come from: the published sources of the
// versions that the fleet runs.
const (
	kubernetesModule = "k8s.io/kubernetes@" + kubernetes
	rolloutsModule   = "github.com/argoproj/argo-rollouts@v1.10.2"
	traefikModule    = "github.com/traefik/traefik/v3@v3.6.12"
	gatewayModule    = "sigs.k8s.io/gateway-api@v1.4.0"
	ownTree          = "" // no module: what this repository defines itself
)

// crds names the file of each custom kind's definition.
var crds = map[schema.GroupVersionKind][2]string{
	{Group: "argoproj.io", Version: "v1alpha1", Kind: "Rollout"}:           {rolloutsModule, "manifests/crds/rollout-crd.yaml"},
	{Group: "argoproj.io", Version: "v1alpha1", Kind: "AnalysisTemplate"}:  {rolloutsModule, "manifests/crds/analysis-template-crd.yaml"},
	{Group: "traefik.io", Version: "v1alpha1", Kind: "IngressRoute"}:       {traefikModule, "docs/content/reference/dynamic-configuration/traefik.io_ingressroutes.yaml"},
	{Group: "traefik.io", Version: "v1alpha1", Kind: "TraefikService"}:     {traefikModule, "docs/content/reference/dynamic-configuration/traefik.io_traefikservices.yaml"},
	{Group: "gateway.networking.k8s.io", Version: "v1", Kind: "HTTPRoute"}: {gatewayModule, "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"},
	{Group: "omnivision.ai", Version: "v1alpha1", Kind: "ReleasePolicy"}:   {ownTree, "components/crds/manifests/releasepolicies.omnivision.ai.yaml"},
}

var (
	moduleDirs sync.Map
	schemas    sync.Map
)

// moduleDir finds a module in Go's module cache, and fetches it if need be.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	if dir, known := moduleDirs.Load(module); known {
		return dir.(string)
	}
	cache, err := exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatalf("asking go for its module cache: %v", err)
	}
	// None of these modules has capitals in its path, so none is escaped.
	dir := filepath.Join(strings.TrimSpace(string(cache)), filepath.FromSlash(module))
	if _, err := os.Stat(dir); err != nil {
		download(t, module)
	}
	moduleDirs.Store(module, dir)
	return dir
}

func download(t *testing.T, module string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module)
	cmd.Dir = t.TempDir() // outside of any module, or go.sum might change
	// A module may ask for a newer Go than this one.
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=auto")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fetching %s for its schemas: %v\n%s\nwith access to the module proxy once, run `go mod download %s`", module, err, out, module)
	}
}

func readModuleFile(t *testing.T, module, name string) []byte {
	t.Helper()
	dir := "../omnivision-gitops"
	if module != ownTree {
		dir = moduleDir(t, module)
	}
	data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestEveryObjectIsAcceptedByItsAPI validates what is rendered against the
// OpenAPI of Kubernetes and the definitions of the custom kinds, unknown fields
// included, as an API server with strict field validation does.
func TestEveryObjectIsAcceptedByItsAPI(t *testing.T) {
	for name := range scenarios(t) {
		t.Run(name, func(t *testing.T) {
			result := mustRender(t, name, "")
			for _, o := range slices.Concat(result.Objects, result.Hooks) {
				for _, problem := range problemsOf(t, o.Unstructured) {
					t.Errorf("%s (%s): %s", o.ID(), o.Source, problem)
				}
			}
		})
	}
}

// The validation itself must not be a rubber stamp.
func TestBrokenObjectsAreNotAccepted(t *testing.T) {
	result := mustRender(t, "gcp-full", "")
	for name, c := range map[string]struct {
		id   string
		set  []string
		to   any
		want string
	}{
		"unknown field of Kubernetes":  {"PodDisruptionBudget.policy/omnivision-platform-ui", []string{"spec", "maxUnavailble"}, int64(1), "maxUnavailble"},
		"wrong type of Kubernetes":     {"Service/omnivision-platform-ui", []string{"spec", "ports"}, "http", "ports"},
		"unknown field of a Rollout":   {workerRollout, []string{"spec", "progressDeadlineAbrt"}, true, "progressDeadlineAbrt"},
		"unknown field of its Pods":    {workerRollout, []string{"spec", "template", "spec", "tolleration"}, "x", "tolleration"},
		"wrong type of a Rollout":      {workerRollout, []string{"spec", "rollbackWindow", "revisions"}, "three", "revisions"},
		"unknown field of an analysis": {"AnalysisTemplate.argoproj.io/gpu-health-check", []string{"spec", "metriks"}, "x", "metriks"},
		"unknown field of a route":     {"IngressRoute.traefik.io/omnivision-platform-ui", []string{"spec", "entrypoint"}, "web", "entrypoint"},
		"wrong type of a split":        {"TraefikService.traefik.io/omnivision-platform-ui", []string{"spec", "weighted", "services"}, "all", "services"},
	} {
		t.Run(name, func(t *testing.T) {
			broken := find(t, result, c.id).DeepCopy()
			if err := unstructured.SetNestedField(broken.Object, c.to, c.set...); err != nil {
				t.Fatal(err)
			}
			if problems := problemsOf(t, broken); !strings.Contains(strings.Join(problems, "\n"), c.want) {
				t.Errorf("not found out; problems: %q", problems)
			}
		})
	}
}

func problemsOf(t *testing.T, o *unstructured.Unstructured) []string {
	t.Helper()
	gvk := o.GroupVersionKind()
	if _, custom := crds[gvk]; custom {
		return append(problemsByCRD(t, gvk, o), problemsOfPodTemplate(o)...)
	}
	return append(problemsByOpenAPI(t, gvk, o), problemsByType(o)...)
}

// problemsByType decodes strictly into Kubernetes' own Go types.
func problemsByType(o *unstructured.Unstructured) []string {
	typed, err := scheme.Scheme.New(o.GroupVersionKind())
	if err != nil {
		return []string{err.Error()}
	}
	return strict(o.Object, typed)
}

// problemsOfPodTemplate checks a Rollout's Pods, which are Kubernetes' type.
func problemsOfPodTemplate(o *unstructured.Unstructured) []string {
	template, found, _ := unstructured.NestedMap(o.Object, "spec", "template")
	if !found {
		return nil
	}
	return strict(template, &corev1.PodTemplateSpec{})
}

func strict(content any, into any) []string {
	text, err := json.Marshal(content)
	if err != nil {
		return []string{err.Error()}
	}
	unknown, err := kjson.UnmarshalStrict(text, into)
	if err != nil {
		unknown = append(unknown, err)
	}
	var problems []string
	for _, u := range unknown {
		problems = append(problems, u.Error())
	}
	return problems
}

func problemsByOpenAPI(t *testing.T, gvk schema.GroupVersionKind, o *unstructured.Unstructured) []string {
	t.Helper()
	compiled, known := schemas.Load(gvk)
	if !known {
		compiled = compileOpenAPI(t, gvk)
		schemas.Store(gvk, compiled)
	}
	text, err := json.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	content, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled.(*jsonschema.Schema).Validate(content); err != nil {
		return []string{err.Error()}
	}
	return nil
}

func compileOpenAPI(t *testing.T, gvk schema.GroupVersionKind) *jsonschema.Schema {
	t.Helper()
	file := fmt.Sprintf("api/openapi-spec/v3/apis__%s__%s_openapi.json", gvk.Group, gvk.Version)
	if gvk.Group == "" {
		file = fmt.Sprintf("api/openapi-spec/v3/api__%s_openapi.json", gvk.Version)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(readModuleFile(t, kubernetesModule, file)))
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	definitions := document.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any)
	for definition, content := range definitions {
		d := content.(map[string]any)
		// Go clients ignore unknown fields; strict validation does not.
		if _, open := d["additionalProperties"]; !open && d["properties"] != nil {
			d["additionalProperties"] = false
		}
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		for _, k := range kinds {
			kind := k.(map[string]any)
			if kind["group"] == gvk.Group && kind["version"] == gvk.Version && kind["kind"] == gvk.Kind {
				name = definition
			}
		}
	}
	if name == "" {
		t.Fatalf("Kubernetes %s has no %s", kubernetes, gvk)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("file:///"+filepath.Base(file), document); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("file:///" + filepath.Base(file) + "#/components/schemas/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

type crdSchema struct {
	structural *structuralschema.Structural
	validator  validation.SchemaValidator
}

func problemsByCRD(t *testing.T, gvk schema.GroupVersionKind, o *unstructured.Unstructured) []string {
	t.Helper()
	loaded, known := schemas.Load(gvk)
	if !known {
		loaded = loadCRD(t, gvk)
		schemas.Store(gvk, loaded)
	}
	crd := loaded.(crdSchema)
	var problems []string
	for _, problem := range validation.ValidateCustomResource(nil, o.Object, crd.validator) {
		problems = append(problems, problem.Error())
	}
	unknown := pruning.PruneWithOptions(o.DeepCopy().Object, crd.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	for _, path := range unknown {
		problems = append(problems, "unknown field "+path)
	}
	return problems
}

func loadCRD(t *testing.T, gvk schema.GroupVersionKind) crdSchema {
	t.Helper()
	where := crds[gvk]
	var definition apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(readModuleFile(t, where[0], where[1]), &definition); err != nil {
		t.Fatal(err)
	}
	for _, version := range definition.Spec.Versions {
		if version.Name != gvk.Version || definition.Spec.Names.Kind != gvk.Kind {
			continue
		}
		var internal apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &internal, nil); err != nil {
			t.Fatal(err)
		}
		structural, err := structuralschema.NewStructural(&internal)
		if err != nil {
			t.Fatal(err)
		}
		validator, _, err := validation.NewSchemaValidator(&internal)
		if err != nil {
			t.Fatal(err)
		}
		return crdSchema{structural, validator}
	}
	t.Fatalf("%s does not define %s", where[1], gvk)
	return crdSchema{}
}

// TestEveryPodFitsPodSecurityRestricted asks the admission plug-in itself.
func TestEveryPodFitsPodSecurityRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := podsecurity.LevelVersion{Level: podsecurity.LevelRestricted, Version: podsecurity.LatestVersion()}
	for name := range scenarios(t) {
		result := mustRender(t, name, "")
		pods := 0
		for _, o := range slices.Concat(result.Objects, result.Hooks) {
			var pod corev1.PodTemplateSpec
			content := o.Object
			if template, found, _ := unstructured.NestedMap(o.Object, "spec", "template"); found {
				content = template
			} else if o.GetKind() != "Pod" {
				continue
			}
			text, _ := json.Marshal(content)
			if err := json.Unmarshal(text, &pod); err != nil {
				t.Fatal(err)
			}
			pods++
			if got := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec)); !got.Allowed {
				t.Errorf("%s: %s: %s: %s", name, o.ID(), got.ForbiddenReason(), got.ForbiddenDetail())
			}
		}
		if pods == 0 {
			t.Errorf("%s has no Pods", name)
		}
	}
}
