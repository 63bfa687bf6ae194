package logconfig

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// definitions are the schemas of upstream's CRDs, by kind.
func definitions(t *testing.T) map[string]apiextensions.JSONSchemaProps {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/fluent/fluent-operator/v3").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "config/crd/bases/fluentbit.fluent.io_*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs in the operator's module: %v", err)
	}
	found := map[string]apiextensions.JSONSchemaProps{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var definition apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(text, &definition); err != nil {
			t.Fatal(err)
		}
		for _, version := range definition.Spec.Versions {
			if version.Name != "v1alpha2" {
				continue
			}
			var internal apiextensions.JSONSchemaProps
			if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &internal, nil); err != nil {
				t.Fatal(err)
			}
			found[definition.Spec.Names.Kind] = internal
		}
	}
	return found
}

// The API server takes the CRs as they are, and its defaults add nothing to them: what is rendered of the files is what is
// rendered in a cluster.
func TestCRsAreValidAndCompleteByUpstreamsDefinitions(t *testing.T) {
	schemas := definitions(t)
	files, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var object map[string]any
		if err := yaml.Unmarshal(text, &object); err != nil {
			t.Fatal(err)
		}
		kind, _ := object["kind"].(string)
		if object["apiVersion"] != "fluentbit.fluent.io/v1alpha2" {
			continue
		}
		schema, known := schemas[kind]
		if !known {
			t.Errorf("%s: upstream has no %s", file, kind)
			continue
		}
		checked++
		validator, _, err := validation.NewSchemaValidator(&schema)
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range validation.ValidateCustomResource(nil, object, validator) {
			t.Errorf("%s: %v", filepath.Base(file), problem)
		}
		structural, err := structuralschema.NewStructural(&schema)
		if err != nil {
			t.Fatal(err)
		}
		completed := runtime.DeepCopyJSON(jsonNumbers(object).(map[string]any))
		defaulting.Default(completed, structural)
		if kind != "FluentBit" && !reflect.DeepEqual(completed, jsonNumbers(object)) {
			t.Errorf("%s: the API server adds defaults, so that the recorded rendering is not the cluster's: %v", filepath.Base(file), completed["spec"])
		}
	}
	if checked < 6 {
		t.Errorf("only %d CRs were checked", checked)
	}
}

// jsonNumbers makes the numbers what DeepCopyJSON knows.
func jsonNumbers(value any) any {
	switch v := value.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, item := range v {
			out[key] = jsonNumbers(item)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = jsonNumbers(item)
		}
		return out
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return value
}
