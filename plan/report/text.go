package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/omnivision/omnivision/plan"
)

// colours of a terminal; all empty without one.
type colours struct{ bold, red, green, yellow, cyan, off string }

func palette(on bool) colours {
	if !on {
		return colours{}
	}
	return colours{bold: "\x1b[1m", red: "\x1b[31m", green: "\x1b[32m", yellow: "\x1b[33m", cyan: "\x1b[36m", off: "\x1b[0m"}
}

const wide = 2000 // characters of a line that is not part of a diff

// Text writes the plan for people: first what happens to each cluster, then every change
// with the clusters that get it.
func Text(w io.Writer, p *plan.Plan, coloured bool) error {
	t := text{bufio.NewWriter(w), palette(coloured)}
	t.summary(p)
	for _, g := range groups(p) {
		t.group(g)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	return nil
}

type text struct {
	*bufio.Writer
	colours
}

func (t text) printf(format string, args ...any) { fmt.Fprintf(t.Writer, format, args...) }

func (t text) summary(p *plan.Plan) {
	t.printf("%s%s%s\n", t.bold, headline(p), t.off)
	t.printf("from %s to %s, %s\n\n", line(sideName(p.Base), wide), line(sideName(p.Head), wide), number(len(p.Files), "file"))
	for _, c := range p.Clusters {
		colour, sign := t.yellow, "~"
		switch c.Status {
		case plan.Untouched:
			colour, sign = "", "="
		case plan.Failed, plan.Removed:
			colour, sign = t.red, "!"
		case plan.Added:
			colour, sign = t.green, "+"
		}
		t.printf("%s%s %s%s  %s, wave %d: %s\n", colour, sign, line(c.Name, wide), t.off, line(c.DisplayName, wide), c.Wave, c.Status)
		for _, a := range c.Applications {
			t.printf("    %s: %s\n", line(a.Name, wide), counts(a))
		}
		if c.Note != "" {
			t.printf("    %s\n", line(c.Note, wide))
		}
	}
	for _, warning := range p.Warnings {
		t.printf("\n%swarning%s  %s\n", t.yellow, t.off, line(warning, wide))
	}
}

func (t text) group(g group) {
	t.printf("\n%s%s%s in %s\n", t.bold, line(g.Name, wide), t.off, line(strings.Join(g.clusters, ", "), wide))
	if g.Error != "" {
		t.printf("  %scannot be rendered%s\n", t.red, t.off)
		for l := range strings.SplitSeq(strings.TrimSpace(clean(g.Error)), "\n") {
			t.printf("    %s\n", l)
		}
	}
	for _, note := range g.Notes {
		t.printf("  note: %s\n", line(note, wide))
	}
	quote := func(s string) string { return line(s, wide) }
	for _, s := range g.Sources {
		t.printf("  %s~%s %s\n", t.yellow, t.off, sourceLine(s, quote))
	}
	before, after := images(g.Application)
	for i := range before {
		t.printf("  image %s\n     to %s\n", line(before[i], wide), line(after[i], wide))
	}
	for _, o := range g.Objects {
		t.object(o)
	}
}

func (t text) object(o plan.Object) {
	t.printf("\n  %s %s%s%s%s\n", mark(o.Change), t.bold, line(o.ID, wide), t.off, aside(o))
	for l := range strings.SplitSeq(strings.TrimSuffix(clean(o.Diff), "\n"), "\n") {
		colour := ""
		switch {
		case strings.HasPrefix(l, "@@"):
			colour = t.cyan
		case strings.HasPrefix(l, "+"):
			colour = t.green
		case strings.HasPrefix(l, "-"):
			colour = t.red
		}
		off := t.off
		if colour == "" {
			off = ""
		}
		t.printf("    %s%s%s\n", colour, l, off)
	}
}

// aside is what else is to be said of an object.
func aside(o plan.Object) string {
	text := ""
	if o.Hook != "" {
		text += "  hook: " + line(o.Hook, wide)
	}
	if o.Note != "" {
		text += "  " + line(o.Note, wide)
	}
	return text
}
