package propose

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/omnivision/omnivision/conveyor/source"
)

// Text is what the pull request says beside the release itself.
type Text struct {
	// Facts are the evidence: scan, signer, provenance.
	Facts []Fact
	// Commits are the newest since the last release, Total all of them.
	Commits []source.Commit
	Total   int
	// Plan is what each cluster would change, as Markdown of our own making with its
	// heading, at most MaxPlan bytes.
	Plan string
}

// Fact is one line of evidence. The value may come from anywhere and is shown as it is;
// the name is ours.
type Fact struct{ Name, Value string }

// SourceFact names the fact that holds the source's commit, in full: where a steward reports
// the release's progress.
const SourceFact = "Source commit"

// MaxPlan is how long a plan may be. GitHub refuses texts of more than 65,536 characters.
const MaxPlan = 33_000

const (
	maxFacts   = 14_000 // bytes of evidence
	maxCommits = 50     // that are listed
	maxListed  = 30_000 // bytes of the text up to the plan
	maxValue   = 300    // characters
)

// message is the text of the commit, and so of the pull request.
func (r Request) message(v *view) string {
	var b strings.Builder
	var names []string
	for _, place := range v.target.Places {
		names = append(names, place.Name)
	}
	fmt.Fprintf(&b, "Release %s %s to %s\n\n", r.App, r.Release.Tag, strings.Join(names, ", "))
	for _, name := range names {
		from := v.released[name]
		what := Code(from.Tag)
		if from.Empty() {
			what = "nothing"
		}
		fmt.Fprintf(&b, "- %s: %s → %s\n", Code(name), what, Code(r.Release.Tag))
	}
	fmt.Fprintf(&b, "- Image: %s\n", Code(r.Release.Digest))
	r.Text.facts(&b)
	r.Text.commits(&b)
	r.Text.plan(&b)
	fmt.Fprintf(&b, "\n%s\n", r.trailer())
	return b.String()
}

func (t Text) facts(b *strings.Builder) {
	for i, fact := range t.Facts {
		if b.Len() > maxFacts {
			fmt.Fprintf(b, "- and %d more lines of evidence\n", len(t.Facts)-i)
			return
		}
		fmt.Fprintf(b, "- %s: %s\n", fact.Name, Code(fact.Value))
	}
}

func (t Text) commits(b *strings.Builder) {
	if t.Total == 0 {
		return
	}
	fmt.Fprintf(b, "\n### Commits since the last release: %d\n\n", t.Total)
	shown := 0
	for _, c := range t.Commits[:min(len(t.Commits), maxCommits)] {
		line := fmt.Sprintf("- %s %s, %s\n", Code(short(c.SHA)), Code(c.Subject), Code(c.Author))
		if b.Len()+len(line) > maxListed {
			break
		}
		b.WriteString(line)
		shown++
	}
	if more := t.Total - shown; more > 0 {
		fmt.Fprintf(b, "- and %d more\n", more)
	}
}

func (t Text) plan(b *strings.Builder) {
	switch {
	case t.Plan == "":
	case len(t.Plan) > MaxPlan:
		// Cutting Markdown would leave what is open in it open.
		fmt.Fprintf(b, "\n### Plan\n\nIt has %d characters, too many for this text: see the plan's own comment.\n", len(t.Plan))
	default:
		fmt.Fprintf(b, "\n%s\n", strings.TrimSpace(t.Plan))
	}
}

// trailer names the release to machines, in the commit and in the pull request.
func (r Request) trailer() string {
	return fmt.Sprintf("%s: %s %s %s", ReleaseTrailer, r.App, r.Release.Tag, r.Release.Digest)
}

// named reports whether a pull request's text is of this release.
func (r Request) named(body string) bool {
	for line := range strings.Lines(body) {
		if strings.TrimSpace(line) == r.trailer() {
			return true
		}
	}
	return false
}

// Code shows text that may be anybody's as what it is: no link, no mention, no image, no
// HTML, no end of the line, and no character that hides or reorders others.
func Code(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r) || unicode.IsControl(r):
			return ' '
		case unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > maxValue {
		text = string(runes[:maxValue-1]) + "…"
	}
	if text == "" {
		return "none"
	}
	// https://spec.commonmark.org/0.31.2/#code-spans: a span ends at a run of as many
	// backticks as it began with.
	fence := strings.Repeat("`", longestRun(text)+1)
	if len(fence) > 1 {
		return fence + " " + text + " " + fence
	}
	return fence + text + fence
}

func longestRun(text string) int {
	longest, run := 0, 0
	for _, r := range text {
		if r != '`' {
			run = 0
			continue
		}
		run++
		longest = max(longest, run)
	}
	return longest
}
