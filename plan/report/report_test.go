package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/diff"
)

var update = flag.Bool("update", false, "write golden files")

const commit = "0123456789abcdef0123456789abcdef01234567"

// example has one of everything.
func example() *plan.Plan {
	image := func(tag string) string { return "registry.example.com/worker:" + tag }
	release := plan.Application{Name: "omnivision-platform", Status: plan.Changed, Objects: []plan.Object{{
		ID: "omnivision/Rollout.argoproj.io/worker", APIVersion: "argoproj.io/v1alpha1", Kind: "Rollout", Namespace: "omnivision", Name: "worker",
		Change: diff.Changed, Fields: []diff.Field{{Path: "spec.template.spec.containers[worker].image", Change: diff.Changed, Before: image("1"), After: image("2")}},
		Diff: "@@ -1,3 +1,3 @@\n containers:\n-- image: " + image("1") + "\n+- image: " + image("2") + "\n   name: worker\n",
	}}}
	root := plan.Application{Name: "omnivision-root", Status: plan.Changed, Objects: []plan.Object{{
		ID: "Namespace/old", APIVersion: "v1", Kind: "Namespace", Name: "old", Change: diff.Removed,
		Note: "it goes when a person confirms it: Prune=confirm", Diff: "@@ -1 +0,0 @@\n-kind: Namespace\n",
	}, {
		ID: "omnivision/Job.batch/migrate", APIVersion: "batch/v1", Kind: "Job", Namespace: "omnivision", Name: "migrate", Change: diff.Added,
		Hook: "pre-upgrade", Diff: "@@ -0,0 +1 @@\n+kind: Job\n",
	}}}
	third := plan.Application{Name: "traefik", Status: plan.Changed, Sources: []plan.Source{
		{Repository: "https://github.com/traefik/traefik.git", What: "docs", Change: diff.Changed, Before: "v1", After: "v2", Reason: "it comes from another repository"},
		{Repository: "https://github.com/traefik/other.git", What: "a", Change: diff.Added, After: "v1", Reason: "it comes from another repository"},
		{Repository: "https://github.com/traefik/other.git", What: "b", Change: diff.Removed, Before: "v1", Reason: "it comes from another repository"},
		{Repository: "https://github.com/traefik/same.git", What: "c", Change: diff.Changed, Before: "v1", After: "v1", Reason: "it comes from another repository"},
	}}
	failed := plan.Application{Name: "omnivision-platform", Status: plan.Failed, Error: "rendering the chart:\nui.digest is empty"}
	gone := plan.Application{Name: "prometheus", Status: plan.Removed, Notes: []string{"what it brought keeps running, unmanaged: the Application has no finalizer"}}
	return &plan.Plan{
		Base: plan.Side{Name: "origin/main", Commit: commit}, Head: plan.Side{Name: "the working tree"},
		Files: []string{"a.yaml", "b.yaml"}, Charts: []plan.Chart{{Reference: "ghcr.io/x:0.1.0", Origin: "cache", Digest: "sha256:00"}},
		Warnings: []string{"chart x was sha256:00 and is sha256:01 now: its tag has moved (P3)"},
		Clusters: []plan.Cluster{
			{Name: "cluster-aws", DisplayName: "Oregon", Wave: 1, Status: plan.Changed, Applications: []plan.Application{release, root, gone}},
			{Name: "cluster-eu", DisplayName: "Frankfurt", Wave: 1, Status: plan.Changed, Applications: []plan.Application{release, third}},
			{Name: "cluster-asia", DisplayName: "Tokyo", Wave: 2, Status: plan.Failed, Applications: []plan.Application{failed}},
			{Name: "cluster-gcp", DisplayName: "Belgium", Wave: 2, Status: plan.Untouched, Applications: []plan.Application{}},
			{Name: "cluster-old", DisplayName: "Old", Wave: 3, Status: plan.Removed, Note: "it is no longer in fleet.yaml", Applications: []plan.Application{}},
		},
	}
}

func untouched() *plan.Plan {
	return &plan.Plan{
		Base: plan.Side{Name: commit, Commit: commit}, Head: plan.Side{Name: "HEAD", Commit: commit}, Charts: []plan.Chart{}, Warnings: []string{},
		Clusters: []plan.Cluster{{Name: "cluster-aws", DisplayName: "Oregon", Wave: 1, Status: plan.Untouched}},
	}
}

func show(t *testing.T, p *plan.Plan, coloured bool) string {
	t.Helper()
	var b bytes.Buffer
	if err := Text(&b, p, coloured); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	var asJSON bytes.Buffer
	if err := JSON(&asJSON, example()); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{
		"plan.txt": show(t, example(), false), "plan-coloured.txt": show(t, example(), true), "plan.md": Markdown(example(), 0),
		"plan.json": asJSON.String(), "untouched.txt": show(t, untouched(), false), "untouched.md": Markdown(untouched(), 0),
	} {
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is different: look at it, and if it is intended run go test ./plan/report -update\n%s", golden, got)
		}
	}
}

func TestColoursAreForTerminals(t *testing.T) {
	if strings.Contains(show(t, example(), false), "\x1b") {
		t.Error("text without colours has escape sequences")
	}
	if !strings.Contains(show(t, example(), true), "\x1b[32m+- image") {
		t.Error("added lines are not green")
	}
}

func TestTheSameChangeIsShownOnce(t *testing.T) {
	if got := strings.Count(show(t, example(), false), "+- image"); got != 1 {
		t.Errorf("the change that two clusters have in common is shown %d times", got)
	}
	if !strings.Contains(show(t, example(), false), "omnivision-platform in cluster-aws, cluster-eu") {
		t.Error("it does not say which clusters get it")
	}
}

// many is a fleet whose clusters all change, each in its own way.
func many(clusters, objects, size int) *plan.Plan {
	p := example()
	p.Clusters = nil
	for i := range clusters {
		app := plan.Application{Name: strings.Repeat("application", 5), Status: plan.Changed}
		for j := range objects {
			app.Objects = append(app.Objects, plan.Object{ID: fmt.Sprintf("ns/ConfigMap/%d-%d", i, j), Change: diff.Changed, Diff: strings.Repeat("+ a line of text\n", size)})
		}
		p.Clusters = append(p.Clusters, plan.Cluster{Name: fmt.Sprintf("cluster-%04d-%s", i, strings.Repeat("x", 40)), Status: plan.Changed, Applications: []plan.Application{app}})
	}
	return p
}

func TestMarkdownFitsAndItsSummaryIsWhole(t *testing.T) {
	for name, p := range map[string]*plan.Plan{
		"small": example(), "large diffs": many(3, 20, 1000), "many clusters": many(100, 3, 20), "very many": many(3000, 1, 3),
		"one enormous object": many(1, 1, 100000), "many Applications": func() *plan.Plan {
			p := many(300, 2, 10)
			for i := range p.Clusters {
				p.Clusters[i].Applications[0].Name = fmt.Sprintf("%s-%d", strings.Repeat("|`<&", 40), i)
				p.Clusters[i].Note = strings.Repeat("`", 300)
			}
			p.Warnings = make([]string, 500)
			for i := range p.Warnings {
				p.Warnings[i] = strings.Repeat("`", 1000)
			}
			return p
		}(),
	} {
		got := Markdown(p, 0)
		if len(got) > CommentLimit {
			t.Errorf("%s: %d bytes", name, len(got))
		}
		if !strings.HasPrefix(got, Marker+"\n### Plan: "+headline(p)) {
			t.Errorf("%s: the summary is cut", name)
		}
		if strings.Count(got, "<details>") != strings.Count(got, "</details>") {
			t.Errorf("%s: a section is left open", name)
		}
	}
	if got := Markdown(many(3, 20, 1000), 0); !strings.Contains(got, "of 60 differences not shown**") || !strings.Contains(got, "omnivision plan --base "+commit) {
		t.Errorf("it does not say what is left out: %s", got[max(0, len(got)-400):])
	}
}

func TestUntrustedTextStaysInItsPlace(t *testing.T) {
	const evil = "```\n</details><script>alert(1)</script> @team #1 | \x1b[2J \u202e ````` [x](javascript:1)\n````\n"
	p := example()
	p.Base.Name, p.Warnings = evil, []string{evil}
	c := &p.Clusters[0]
	c.Name, c.DisplayName, c.Note = evil, evil, evil
	c.Applications = []plan.Application{{
		Name: evil, Status: plan.Failed, Error: evil, Notes: []string{evil},
		Sources: []plan.Source{{Repository: evil, What: evil, Change: diff.Changed, Before: evil, After: evil + "x", Reason: evil}},
		Objects: []plan.Object{{ID: evil, Change: diff.Changed, Note: evil, Hook: evil, Diff: " " + evil, Fields: []diff.Field{{Path: "a.image", Before: evil, After: evil + "x"}}}},
	}}
	markdown := Markdown(p, 0)
	for _, found := range outsideOfCode(markdown) {
		if strings.Contains(found, "script") || strings.Contains(found, "@team") || strings.Contains(found, "javascript") {
			t.Errorf("outside of code: %q", found)
		}
	}
	for name, text := range map[string]string{"Markdown": markdown, "text": show(t, p, false)} {
		if strings.ContainsAny(text, "\x1b\u202e") {
			t.Errorf("%s holds control characters", name)
		}
	}
}

// outsideOfCode removes fences and code spans as CommonMark defines them.
func outsideOfCode(markdown string) []string {
	var outside []string
	fence := ""
	for l := range strings.SplitSeq(markdown, "\n") {
		ticks := l[:len(l)-len(strings.TrimLeft(l, "`"))]
		switch {
		case fence != "":
			if len(ticks) >= len(fence) && strings.TrimSpace(l[len(ticks):]) == "" {
				fence = ""
			}
		case len(ticks) >= 3 && !strings.Contains(l[len(ticks):], "`"):
			fence = ticks
		case strings.HasPrefix(l, "<details>"): // HTML, in which nothing is Markdown
			outside = append(outside, codeElement.ReplaceAllString(l, ""))
		default:
			outside = append(outside, withoutSpans(l))
		}
	}
	return outside
}

func withoutSpans(l string) string {
	var b strings.Builder
	for l != "" {
		start := strings.IndexByte(l, '`')
		if start < 0 {
			break
		}
		b.WriteString(l[:start])
		l = l[start:]
		n := len(l) - len(strings.TrimLeft(l, "`"))
		end := closing(l[n:], n)
		if end < 0 {
			b.WriteString(l[:n])
			l = l[n:]
			continue
		}
		l = l[n+end+n:]
	}
	b.WriteString(l)
	return b.String()
}

// codeElement ends at the first tag, whatever that is.
var codeElement = regexp.MustCompile(`<code>[^<]*</code>`)

// closing finds a row of exactly n backticks.
func closing(l string, n int) int {
	for i := 0; i < len(l); {
		if l[i] != '`' {
			i++
			continue
		}
		row := len(l[i:]) - len(strings.TrimLeft(l[i:], "`"))
		if row == n {
			return i
		}
		i += row
	}
	return -1
}

func FuzzFenceHolds(f *testing.F) {
	f.Add("```\nout", "a`b")
	f.Add("~~~\n\x00\u202e", "``")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, content, name string) {
		block := fence("diff", content)
		first, rest, _ := strings.Cut(block, "\n")
		ticks := strings.TrimSuffix(first, "diff")
		for l := range strings.SplitSeq(strings.TrimSuffix(rest, "\n"+ticks+"\n"), "\n") {
			if trimmed := strings.TrimSpace(l); len(trimmed) >= len(ticks) && strings.Trim(trimmed, "`") == "" {
				t.Errorf("the line %q ends the fence %s", l, ticks)
			}
		}
		if outside := withoutSpans(code(name)); outside != "" {
			t.Errorf("of %q this is outside of code: %q", name, outside)
		}
	})
}

func TestJSONIsReadBackAsItWas(t *testing.T) {
	var b bytes.Buffer
	if err := JSON(&b, example()); err != nil {
		t.Fatal(err)
	}
	var back plan.Plan
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if show(t, &back, true) != show(t, example(), true) {
		t.Error("a plan that was read from JSON is another")
	}
}
