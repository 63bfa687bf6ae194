package report

import (
	"fmt"
	"html"
	"strings"

	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/revision"
)

// CommentLimit is how many characters a comment on GitHub may have.
const CommentLimit = 65536

// Marker is the first line of the comment, by which the next run finds it.
const Marker = "<!-- omnivision-plan -->"

const (
	smallest = 32 << 10 // below this the summary might not fit
	name     = 100      // characters of a name that are shown
	reserved = 500      // for the words about what is left out
)

// Markdown is the plan as a comment of a pull request, at most limit characters long (0:
// CommentLimit). The summary is always whole; objects that do not fit are counted.
func Markdown(p *plan.Plan, limit int) string {
	if limit == 0 {
		limit = CommentLimit
	}
	limit = max(limit, smallest)
	var b strings.Builder
	b.WriteString(summaryThatFits(p, limit/2))
	left, shown := 0, 0
	for _, g := range groups(p) {
		text, fit, all := details(g, limit-reserved-b.Len())
		b.WriteString(text)
		shown, left = shown+fit, left+all-fit
	}
	if left > 0 {
		fmt.Fprintf(&b, "\n**%d of %s not shown**: a comment holds %d characters. See all of it with\n\n%s",
			left, number(left+shown, "difference"), limit, fence("", command(p)))
	}
	return b.String()
}

func command(p *plan.Plan) string {
	side := func(s plan.Side) string {
		if s.Commit != "" {
			return line(s.Commit, name)
		}
		return line(s.Name, name)
	}
	text := "omnivision plan --base " + side(p.Base)
	if p.Head.Commit != "" || p.Head.Name != revision.WorkingTreeName {
		text += " --head " + side(p.Head)
	}
	return text + "\n"
}

// summaryThatFits names every cluster if it can, then fewer of them.
func summaryThatFits(p *plan.Plan, limit int) string {
	text := ""
	for _, most := range []struct{ rows, names int }{{1000, 1000}, {100, 20}, {20, 5}, {5, 2}} {
		if text = summary(p, most.rows, most.names); len(text) <= limit {
			break
		}
	}
	return text
}

func summary(p *plan.Plan, rows, names int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n### Plan: %s\n\nFrom %s to %s, %s.\n", Marker, headline(p), code(sideName(p.Base)), code(sideName(p.Head)), number(len(p.Files), "file"))
	table(&b, p, rows, names)
	var untouched []string
	for _, c := range p.Clusters {
		if c.Status == plan.Untouched {
			untouched = append(untouched, c.Name)
		}
	}
	if len(untouched) > 0 {
		fmt.Fprintf(&b, "\nUntouched: %s.\n", listed(untouched, names, code))
	}
	for i, warning := range p.Warnings {
		if i == 10 {
			fmt.Fprintf(&b, "\n> and %s more\n", number(len(p.Warnings)-i, "warning"))
			break
		}
		fmt.Fprintf(&b, "\n> **Warning** %s\n", longCode(warning))
	}
	return b.String()
}

// row is what happens to the clusters to which the same happens.
type row struct {
	status   plan.Status
	what     string
	clusters []string
}

func table(b *strings.Builder, p *plan.Plan, most, names int) {
	var rows []*row
	at := map[string]*row{}
	for _, c := range p.Clusters {
		if c.Status == plan.Untouched {
			continue
		}
		what := cell(c)
		key := string(c.Status) + what
		if at[key] == nil {
			at[key] = &row{status: c.Status, what: what}
			rows = append(rows, at[key])
		}
		at[key].clusters = append(at[key].clusters, c.Name)
	}
	if len(rows) == 0 {
		return
	}
	b.WriteString("\n| cluster | | what changes |\n|---|---|---|\n")
	for i, r := range rows {
		if i == most {
			fmt.Fprintf(b, "| and others | | %s more |\n", number(len(rows)-i, "row"))
			return
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", listed(r.clusters, names, codeCell), r.status, r.what)
	}
}

func cell(c plan.Cluster) string {
	var apps []string
	for i, a := range c.Applications {
		if i == 8 {
			apps = append(apps, fmt.Sprintf("and %d more", len(c.Applications)-i))
			break
		}
		apps = append(apps, codeCell(a.Name)+": "+counts(a))
	}
	if c.Note != "" {
		apps = append(apps, codeCell(c.Note))
	}
	return strings.Join(apps, "<br>")
}

func listed(names []string, most int, quote func(string) string) string {
	shown := make([]string, 0, len(names))
	for i, n := range names {
		if i == most {
			return strings.Join(shown, ", ") + fmt.Sprintf(" and %d more", len(names)-i)
		}
		shown = append(shown, quote(n))
	}
	return strings.Join(shown, ", ")
}

// details shows a change within a number of bytes, and says how many of its differences
// it shows, out of how many.
func details(g group, limit int) (text string, shown, all int) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n<details><summary><code>%s</code> in %s: %s</summary>\n\n",
		html.EscapeString(line(g.Name, name)), listed(g.clusters, 5, htmlCode), counts(g.Application))
	const end = "\n</details>\n"
	blocks := blocksOf(g)
	for _, block := range blocks {
		if b.Len()+len(block)+len(end) > limit {
			continue // a later one may be smaller
		}
		b.WriteString(block)
		shown++
	}
	if b.Len()+len(end) > limit {
		return "", 0, len(blocks)
	}
	b.WriteString(end)
	return b.String(), shown, len(blocks)
}

func blocksOf(g group) []string {
	var blocks []string
	if g.Error != "" {
		blocks = append(blocks, "Cannot be rendered:\n\n"+fence("", cut(g.Error, 4000)))
	}
	for _, note := range g.Notes {
		blocks = append(blocks, "- "+longCode(note)+"\n")
	}
	for _, s := range g.Sources {
		blocks = append(blocks, "- "+sourceLine(s, code)+"\n")
	}
	before, after := images(g.Application)
	for i := range before {
		blocks = append(blocks, fmt.Sprintf("- image %s → %s\n", longCode(before[i]), longCode(after[i])))
	}
	for _, o := range g.Objects {
		title := "\n**" + string(o.Change) + "** " + code(o.ID)
		if about := aside(o); about != "" {
			title += " " + code(about)
		}
		blocks = append(blocks, title+"\n"+fence("diff", o.Diff))
	}
	return blocks
}

func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…\n"
}

// code is a code span, in which neither Markdown, HTML nor a mention means anything.
func code(text string) string { return span(line(text, name)) }

// longCode is code for what may take a few lines.
func longCode(text string) string { return span(line(text, 400)) }

// codeCell is code in a table, where a bar would end the cell even so.
func codeCell(text string) string { return strings.ReplaceAll(code(text), "|", `\|`) }

func htmlCode(text string) string {
	return "<code>" + html.EscapeString(line(text, name)) + "</code>"
}

func span(text string) string {
	if text == "" {
		text = " "
	}
	ticks := strings.Repeat("`", longest(text)+1)
	if strings.HasPrefix(text, "`") || strings.HasSuffix(text, "`") {
		text = " " + text + " "
	}
	return ticks + text + ticks
}

// fence is a code block that its content cannot end: the fence is longer than any row of
// backticks in it.
func fence(language, content string) string {
	content = strings.TrimSuffix(clean(content), "\n")
	ticks := strings.Repeat("`", max(3, longest(content)+1))
	return ticks + language + "\n" + content + "\n" + ticks + "\n"
}

// longest row of backticks.
func longest(text string) int {
	most, row := 0, 0
	for i := range len(text) {
		if text[i] != '`' {
			row = 0
			continue
		}
		row++
		most = max(most, row)
	}
	return most
}
