package diff

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func object(t testing.TB, text string) map[string]any {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestFieldsNamesThePlace(t *testing.T) {
	cases := map[string]struct{ before, after, want string }{
		"nothing":                     {"{a: 1}", "{a: 1}", ""},
		"a value":                     {"{a: {b: x}}", "{a: {b: z}}", "changed a.b x z"},
		"a key more":                  {"{a: {}}", "{a: {b: z}}", "added a.b <nil> z"},
		"a key less":                  {"{a: {b: x}}", "{a: {}}", "removed a.b x <nil>"},
		"null is not nothing":         {"{a: null}", "{}", "removed a <nil> <nil>"},
		"a key with dots":             {"{a: {app.io/x: 1}}", "{a: {app.io/x: 2}}", `changed a["app.io/x"] 1 2`},
		"another type":                {`{a: "1"}`, "{a: 1}", "changed a 1 1"},
		"containers by name":          {"{c: [{name: w, image: a}, {name: u}]}", "{c: [{name: w, image: b}, {name: u}]}", "changed c[w].image a b"},
		"an item in front":            {"{c: [{name: w, image: a}]}", "{c: [{name: s}, {name: w, image: a}]}", "added c[s] <nil> map[name:s]"},
		"order alone":                 {"{c: [{name: w}, {name: u}]}", "{c: [{name: u}, {name: w}]}", "reordered c <nil> <nil>"},
		"names twice go by index":     {"{c: [{name: w, v: 1}, {name: w, v: 2}]}", "{c: [{name: w, v: 1}, {name: w, v: 3}]}", "changed c[1].v 2 3"},
		"plain items":                 {"{c: [a, b]}", "{c: [a]}", "removed c[1] b <nil>"},
		"ports by number":             {"{p: [{port: 80, t: x}]}", "{p: [{port: 80, t: z}]}", "changed p[80].t x z"},
		"a list in place of a map":    {"{a: {}}", "{a: []}", "changed a map[] []"},
		"a name that would be misled": {"{c: [{name: 'a]b', v: 1}]}", "{c: [{name: 'a]b', v: 2}]}", `changed c["a]b"].v 1 2`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range Fields(object(t, c.before), object(t, c.after)) {
				got = append(got, fmt.Sprintf("%s %s %v %v", f.Change, f.Path, f.Before, f.After))
			}
			if strings.Join(got, "; ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestUnifiedReadsLikeDiff(t *testing.T) {
	numbers := func(from, to int, changed ...int) string {
		var b strings.Builder
		for i := from; i <= to; i++ {
			mark := ""
			for _, c := range changed {
				if c == i {
					mark = " changed"
				}
			}
			fmt.Fprintf(&b, "%d%s\n", i, mark)
		}
		return b.String()
	}
	cases := map[string]struct{ before, after, want string }{
		"nothing":         {"a\n", "a\n", ""},
		"from nothing":    {"", "a\nb\n", "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		"to nothing":      {"a\n", "", "@@ -1 +0,0 @@\n-a\n"},
		"one line":        {"a\nb\nc\n", "a\nB\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"},
		"three around it": {numbers(1, 20), numbers(1, 20, 10), "@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+10 changed\n 11\n 12\n 13\n"},
		"two places":      {numbers(1, 20), numbers(1, 20, 4, 17), "@@ -1,7 +1,7 @@\n 1\n 2\n 3\n-4\n+4 changed\n 5\n 6\n 7\n@@ -14,7 +14,7 @@\n 14\n 15\n 16\n-17\n+17 changed\n 18\n 19\n 20\n"},
		"close together":  {numbers(1, 9), numbers(1, 9, 2, 8), "@@ -1,9 +1,9 @@\n 1\n-2\n+2 changed\n 3\n 4\n 5\n 6\n 7\n-8\n+8 changed\n 9\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Unified(c.before, c.after); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// apply is what `patch` does with the edits.
func apply(edits []edit) (before, after []string) {
	for _, e := range edits {
		if e.op != '+' {
			before = append(before, e.text)
		}
		if e.op != '-' {
			after = append(after, e.text)
		}
	}
	return before, after
}

func FuzzScriptLeadsFromOneTextToTheOther(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nc\nd\n")
	f.Add("", "x")
	f.Add("a\na\na\nb", "a\nb\na\nb\n\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		from, to := lines(a), lines(b)
		before, after := apply(script(from, to))
		if strings.Join(before, "\n") != strings.Join(from, "\n") || strings.Join(after, "\n") != strings.Join(to, "\n") {
			t.Fatalf("the script of %q and %q leads from %q to %q", a, b, before, after)
		}
		Unified(a, b)
	})
}

func TestVeryDifferentTextsAreReplaced(t *testing.T) {
	var a, b strings.Builder
	for i := range 4 * maxEdits {
		fmt.Fprintf(&a, "a%d\n", i)
		fmt.Fprintf(&b, "b%d\n", i)
	}
	before, after := apply(script(lines(a.String()), lines(b.String())))
	if !reflect.DeepEqual(before, lines(a.String())) || !reflect.DeepEqual(after, lines(b.String())) {
		t.Error("the script does not lead from one to the other")
	}
}

func FuzzFieldsFindsADifferenceIffThereIsOne(f *testing.F) {
	f.Add("{a: [{name: x}, {name: y}]}", "{a: [{name: y}, {name: x}]}")
	f.Add("{a: 1}", "{a: 1.5}")
	f.Fuzz(func(t *testing.T, a, b string) {
		var before, after map[string]any
		if yaml.Unmarshal([]byte(a), &before) != nil || yaml.Unmarshal([]byte(b), &after) != nil {
			t.Skip()
		}
		found := len(Fields(before, after)) > 0
		differ := !(len(before) == 0 && len(after) == 0) && !reflect.DeepEqual(before, after)
		if found != differ {
			t.Fatalf("differ is %v, and Fields says %v", differ, Fields(before, after))
		}
	})
}
