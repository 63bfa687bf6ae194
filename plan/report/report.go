// Package report shows a plan: to a person at a terminal, as a comment of a pull request,
// and as JSON for programs. What comes from a tree is never trusted to be what it should:
// control characters are shown as text, and nothing leaves its code span or fence.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/diff"
)

// JSON writes the plan for programs.
func JSON(w io.Writer, p *plan.Plan) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return fmt.Errorf("writing the plan as JSON: %w", err)
	}
	return nil
}

// group is a change that several clusters have in common, to be shown once.
type group struct {
	plan.Application
	clusters []string
}

// groups are the changes of all clusters, in the order of the first cluster that has each.
func groups(p *plan.Plan) []group {
	var found []group
	at := map[string]int{}
	for _, cluster := range p.Clusters {
		for _, app := range cluster.Applications {
			key, err := json.Marshal(app)
			if err != nil { // then it is a group of its own
				key = []byte(cluster.Name + "/" + app.Name)
			}
			if i, known := at[string(key)]; known {
				found[i].clusters = append(found[i].clusters, cluster.Name)
				continue
			}
			at[string(key)] = len(found)
			found = append(found, group{app, []string{cluster.Name}})
		}
	}
	return found
}

// images are the moves of container images in an Application, once each.
func images(app plan.Application) (before, after []string) {
	seen := map[string]bool{}
	for _, o := range app.Objects {
		for _, f := range o.Fields {
			was, had := f.Before.(string)
			is, has := f.After.(string)
			if !strings.HasSuffix(f.Path, ".image") || !had || !has || seen[was+"\n"+is] {
				continue
			}
			seen[was+"\n"+is] = true
			before, after = append(before, was), append(after, is)
		}
	}
	return before, after
}

// counts says in a few words what happens in an Application.
func counts(app plan.Application) string {
	var words []string
	switch app.Status {
	case plan.Failed:
		words = append(words, "cannot be rendered")
	case plan.Removed:
		words = append(words, "the Application goes")
	case plan.Added:
		words = append(words, "the Application is new")
	}
	for _, kind := range []diff.Kind{diff.Changed, diff.Added, diff.Removed} {
		n := 0
		for _, o := range app.Objects {
			if o.Change == kind {
				n++
			}
		}
		if n > 0 {
			words = append(words, fmt.Sprintf("%s %s", number(n, "object"), kind))
		}
	}
	if n := len(app.Sources); n > 0 {
		words = append(words, number(n, "source")+" not rendered")
	}
	if len(words) == 0 {
		return "cannot be compared"
	}
	return strings.Join(words, ", ")
}

func number(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func headline(p *plan.Plan) string {
	touched := 0
	for _, c := range p.Clusters {
		if c.Status != plan.Untouched {
			touched++
		}
	}
	if touched == 0 {
		return fmt.Sprintf("no cluster changes (%d looked at)", len(p.Clusters))
	}
	text := fmt.Sprintf("%d of %s", touched, number(len(p.Clusters), "cluster"))
	if touched == 1 {
		text += " changes"
	} else {
		text += " change"
	}
	if n := len(p.Failures()); n > 0 {
		text += ", " + number(n, "Application") + " cannot be rendered"
	}
	return text
}

// sourceLine says how a source moves that is not rendered.
func sourceLine(s plan.Source, quote func(string) string) string {
	where := quote(s.Repository) + " " + quote(s.What)
	why := " (not rendered: " + quote(s.Reason) + ")"
	switch {
	case s.Change == diff.Added:
		return where + ": new, at " + quote(s.After) + why
	case s.Change == diff.Removed:
		return where + ": no longer, was at " + quote(s.Before) + why
	case s.Before == s.After:
		return where + ": other options at " + quote(s.After) + why
	}
	return where + ": " + quote(s.Before) + " → " + quote(s.After) + why
}

func mark(kind diff.Kind) string {
	switch kind {
	case diff.Added:
		return "+"
	case diff.Removed:
		return "-"
	}
	return "~"
}

func sideName(s plan.Side) string {
	const shown = 8
	if len(s.Commit) > shown && !strings.HasPrefix(s.Commit, s.Name) {
		return s.Name + " (" + s.Commit[:shown] + ")"
	}
	return s.Name
}

// clean shows what a terminal or a browser would obey as text: control characters, and
// those that turn the direction of writing.
func clean(text string) string {
	if !strings.ContainsFunc(text, obeyed) {
		return strings.ToValidUTF8(text, "\uFFFD")
	}
	var b strings.Builder
	for _, r := range text {
		if obeyed(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func obeyed(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case unicode.IsControl(r), r >= 0x200e && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
		return true
	}
	return false
}

// line is clean text in one line, cut to a bearable length.
func line(text string, limit int) string {
	text = strings.Join(strings.Fields(clean(text)), " ")
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return text
}
