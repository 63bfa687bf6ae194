package fleet

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// FuzzLoad looks for a fleet.yaml that is taken with something missing or
// twice, refused without a place to look at, or read in two ways.
func FuzzLoad(f *testing.F) {
	f.Add(tree(f)[File].Data)
	for _, seed := range []string{
		"", "---\n", "a: 1", "[]", "apiVersion: omnivision.ai/v1\nkind: Fleet\n", "clusters: [{name: a}, {name: a}]", "clusters: {}", "apps: [~]",
		"a: &a [*a]\n", "clusters: &c [{name: x}]\napps: *c\n", "kind: Fleet\nkind: Fleet\n", "kind: Fleet\n---\nkind: Fleet\n", "clusters: [{wave: 9999999999999999999}]",
		"? {a: b}\n: c\n", "\xff\xfe", "kind: !!binary Zg==\n", "<<: {kind: Fleet}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		files := fstest.MapFS{File: {Data: src}}
		got, err := Load(files)
		if _, again := Load(files); (err == nil) != (again == nil) || err != nil && err.Error() != again.Error() {
			t.Fatalf("read twice: %v, then %v", err, again)
		}
		if err != nil {
			var p Problem
			if !errors.As(err, &p) || p.File != File || p.Message == "" {
				t.Fatalf("refused with %#v, want file and message", err)
			}
			return
		}
		if got.Repository == "" || got.Branch == "" || len(got.Clusters) == 0 {
			t.Fatalf("taken with something missing: %+v", got)
		}
		var names []string
		for _, wave := range got.Waves() {
			for _, c := range wave {
				names = append(names, c.Name)
				if !namePattern.MatchString(c.Name) || strings.Contains(c.Dir(), "..") || c.Wave < 1 || c.Cloud != "aws" && c.Cloud != "gcp" {
					t.Fatalf("taken: %+v", c)
				}
			}
		}
		slices.Sort(names)
		if len(names) != len(got.Clusters) || len(slices.Compact(names)) != len(got.Clusters) {
			t.Fatalf("the waves have the clusters %v of %d", names, len(got.Clusters))
		}
	})
}

// FuzzParseRelease looks for a release file whose image a cluster would read
// otherwise, and for one that a release cannot be written into.
func FuzzParseRelease(f *testing.F) {
	app := App{Name: "omnivision-ui", Repository: "ui", ValuePath: "ui"}
	digest := "sha256:" + strings.Repeat("0a", 32)
	for _, seed := range []string{
		"ui:\n  tag: \"1.0.0\" # why\n  digest: \"" + digest + "\"\n", "ui: {tag: '', digest: ''}\n", "ui: {tag: 1.10, digest: ''}\n", "ui: {tag: latest, digest: ''}\n",
		"ui: {tag: \"\", digest: \"" + digest + "\"}\n", "a: &a {tag: 'x', digest: ''}\nui: *a\n", "ui: [tag]\n", "", "ui: {tag: 'x', tag: 'y', digest: ''}\n", "ui: {tag: !!str 1, digest: ''}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		got, err := ParseRelease("apps/omnivision-ui/a.yaml", src, app)
		if err != nil {
			if p := (Problem{}); !errors.As(err, &p) || p.File == "" || p.Message == "" {
				t.Fatalf("refused with %#v, want file and message", err)
			}
			return
		}
		if got.problem() != "" || got.Digest != "" && !digestPattern.MatchString(got.Digest) {
			t.Fatalf("taken: %+v", got)
		}
		want := Release{Tag: "2.0.0", Digest: "sha256:" + strings.Repeat("1b", 32)}
		changed, err := SetRelease(src, app, want)
		if err != nil {
			return // what a person should look at: FuzzSet is about these
		}
		if back, err := ParseRelease("a.yaml", changed, app); err != nil || back != want {
			t.Fatalf("%q became %q, which reads as %+v (%v)", src, changed, back, err)
		}
	})
}
