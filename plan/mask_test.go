package plan

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func parsed(t testing.TB, text string) map[string]any {
	t.Helper()
	if text == "" {
		return nil
	}
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestMaskShowsThatAValueChangedAndNotTheValue(t *testing.T) {
	cases := map[string]struct{ before, after, wantBefore, wantAfter string }{
		"changed":           {"{kind: Secret, data: {a: x, b: s}}", "{kind: Secret, data: {a: z, b: s}}", "{kind: Secret, data: {a: (masked), b: (masked)}}", `{kind: Secret, data: {a: "(masked, changed)", b: (masked)}}`},
		"added":             {"", "{kind: Secret, stringData: {a: x}}", "", "{kind: Secret, stringData: {a: (masked)}}"},
		"removed":           {"{kind: Secret, stringData: {a: x}}", "", "{kind: Secret, stringData: {a: (masked)}}", ""},
		"a key more":        {"{kind: Secret, data: {}}", "{kind: Secret, data: {a: x}}", "{kind: Secret, data: {}}", "{kind: Secret, data: {a: (masked)}}"},
		"no map":            {"{kind: Secret, data: x}", "{kind: Secret, data: z}", "{kind: Secret, data: (masked)}", `{kind: Secret, data: "(masked, changed)"}`},
		"a number":          {"{kind: Secret, data: {a: 1}}", "{kind: Secret, data: {a: 2}}", "{kind: Secret, data: {a: (masked)}}", `{kind: Secret, data: {a: "(masked, changed)"}}`},
		"kubectl's copy":    {"{kind: Secret, metadata: {annotations: {kubectl.kubernetes.io/last-applied-configuration: x}}}", "{kind: Secret, metadata: {annotations: {kubectl.kubernetes.io/last-applied-configuration: z}}}", "{kind: Secret, metadata: {annotations: {kubectl.kubernetes.io/last-applied-configuration: (masked)}}}", `{kind: Secret, metadata: {annotations: {kubectl.kubernetes.io/last-applied-configuration: "(masked, changed)"}}}`},
		"becomes a Secret":  {"{kind: ConfigMap, data: {a: x}}", "{kind: Secret, data: {a: x}}", "{kind: ConfigMap, data: {a: (masked)}}", "{kind: Secret, data: {a: (masked)}}"},
		"other kinds alone": {"{kind: ConfigMap, data: {a: x}}", "{kind: ConfigMap, data: {a: z}}", "{kind: ConfigMap, data: {a: x}}", "{kind: ConfigMap, data: {a: z}}"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before, after := parsed(t, c.before), parsed(t, c.after)
			gotBefore, gotAfter := mask(before, after)
			if !reflect.DeepEqual(gotBefore, parsed(t, c.wantBefore)) || !reflect.DeepEqual(gotAfter, parsed(t, c.wantAfter)) {
				t.Errorf("got %v and %v", gotBefore, gotAfter)
			}
			if !reflect.DeepEqual(before, parsed(t, c.before)) || !reflect.DeepEqual(after, parsed(t, c.after)) {
				t.Error("masking changed the objects themselves")
			}
		})
	}
}

func FuzzMaskHidesValuesAndKeepsDifferences(f *testing.F) {
	f.Add(`{"a":"secret-1"}`, `{"a":"secret-2"}`)
	f.Add(`["secret-1"]`, `{"a":{"b":["secret-2"]}}`)
	f.Add(`null`, `"secret-1"`)
	f.Fuzz(func(t *testing.T, one, two string) {
		var a, b any
		if json.Unmarshal([]byte(one), &a) != nil || json.Unmarshal([]byte(two), &b) != nil {
			t.Skip()
		}
		before := map[string]any{"kind": "Secret", "data": a}
		after := map[string]any{"kind": "Secret", "data": b}
		was, is := mask(before, after)
		if reflect.DeepEqual(before, after) != reflect.DeepEqual(was, is) {
			t.Errorf("a difference is lost or made up: %v, %v", was, is)
		}
		for _, shown := range []map[string]any{was, is} {
			for _, value := range leaves(shown["data"]) {
				if value != nil && value != masked && value != maskedChanged {
					t.Errorf("it shows %v", value)
				}
			}
		}
	})
}

func leaves(value any) []any {
	m, ok := value.(map[string]any)
	if !ok {
		return []any{value}
	}
	var all []any
	for _, item := range m {
		all = append(all, leaves(item)...)
	}
	return all
}

func TestCommasOfAParameterStayInIt(t *testing.T) {
	for value, want := range map[string]string{"a,b": `a\,b`, `a\,b`: `a\,b`, "{a,b}": "{a,b}", "a": "a"} {
		if got := escapeCommas(value); got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
	if strings.Contains(masked, ",") {
		t.Error("the two markers should be told apart at a glance")
	}
}
