package propose

import (
	"strings"
	"testing"
	"unicode"

	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/fleet"
)

func TestUntrustedTextStaysInItsSpan(t *testing.T) {
	for in, want := range map[string]string{
		"Draw faster":                         "`Draw faster`",
		"use `x`":                             "`` use `x` ``",
		"``` \n# Approved by @security":       "```` ``` # Approved by @security ````",
		"a\r\nOmniVision-Release: x 9 sha256": "`a OmniVision-Release: x 9 sha256`",
		"evil\u202etxt\u200b":                 "`eviltxt`",
		"\x1b[31mred\x00":                     "`[31mred`",
		" \t ":                                "none",
		"<img src=x onerror=alert(1)> [x](y)": "`<img src=x onerror=alert(1)> [x](y)`",
		strings.Repeat("é", 400):              "`" + strings.Repeat("é", 299) + "…`",
		"not UTF-8: \xff":                     "`not UTF-8:`",
	} {
		if got := Code(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func FuzzCode(f *testing.F) {
	for _, seed := range []string{"a", "`", "``a`", "a\n```\nb", " ` ", "\u2028", "\u202e"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := Code(in)
		if strings.ContainsFunc(out, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) {
			t.Fatalf("%q has a line end or a control character", out)
		}
		if out == "none" {
			return
		}
		fence := out[:len(out)-len(strings.TrimLeft(out, "`"))]
		inner, ok := strings.CutSuffix(strings.TrimPrefix(out, fence), fence)
		if fence == "" || !ok {
			t.Fatalf("%q is no code span", out)
		}
		if longestRun(inner) >= len(fence) || strings.HasPrefix(inner, "`") || strings.HasSuffix(inner, "`") {
			t.Fatalf("%q ends early", out)
		}
	})
}

func TestTextStaysBelowWhatForgesTake(t *testing.T) {
	r := request(57)
	long := strings.Repeat("`x ", 400)
	r.Text = Text{Plan: strings.Repeat("é", MaxPlan), Total: 5000}
	for range 200 {
		r.Text.Facts = append(r.Text.Facts, Fact{"Let pass", long})
		r.Text.Commits = append(r.Text.Commits, source.Commit{SHA: strings.Repeat("a", 40), Subject: long, Author: long})
	}
	text := r.message(&view{target: fleet.Target{Places: []fleet.Place{{Name: "cluster-aws"}}}})
	if n := len(text); n > 65000 {
		t.Errorf("the text has %d bytes", n)
	}
	if !strings.Contains(text, "more lines of evidence\n") || !strings.Contains(text, " more\n") || !strings.Contains(text, "too many for this text") || !r.named(text) {
		t.Errorf("what was left out is not said:\n%s", text)
	}
	r.Text = Text{Plan: strings.Repeat("p", MaxPlan), Total: 5000, Commits: r.Text.Commits, Facts: r.Text.Facts}
	if n := len(r.message(&view{target: fleet.Target{Places: []fleet.Place{{Name: "cluster-aws"}}}})); n > 65_000 {
		t.Errorf("the text has %d characters", n)
	}
}
