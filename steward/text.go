package steward

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
)

// Bounds of what is shown; GitHub refuses texts of more than 65,536 characters.
const (
	maxValues = 20
	maxLines  = 30
	maxText   = 40_000 // bytes of evidence
	maxRows   = 12     // of one log line, such as a stack trace
	maxLogs   = 10_000 // bytes of log lines
)

// revertText is title, body and date of the pull request that takes an image back. What it
// says already stays: its branch then is the same commit whichever steward writes it.
func (s *story) revertText(bad fleet.Release, entry fleet.Quarantined, pull *Pull, abort *Abort) (title, body string, at time.Time) {
	if pull != nil && pull.Title != "" && !pull.Foreign {
		return pull.Title, pull.Body, entry.Since
	}
	title = fmt.Sprintf("Take %s %s back and quarantine it", s.app.Name, bad.Tag)
	var b strings.Builder
	fmt.Fprintf(&b, "The canary of %s in %s was aborted. This goes back to what ran before, and puts the image on the quarantine list, so that no cluster runs it.\n\n", propose.Code(bad.Tag), propose.Code(entry.Cluster))
	fmt.Fprintf(&b, "- Image: %s\n- Reason: %s\n- Aborted: %s\n\n", propose.Code(bad.Digest), propose.Code(entry.Reason), entry.Since.UTC().Format(time.RFC3339))
	if abort != nil {
		b.WriteString(evidenceText(s.Cluster, *abort) + "\n")
	}
	fmt.Fprintf(&b, "Closing this changes nothing about the cluster: while the Rollout is aborted it is opened again. A newer release replaces it. To let this image run after all, merge it, and then remove its entry from %s by a pull request that says why.\n", propose.Code(fleet.QuarantineFile))
	fmt.Fprintf(&b, "\n%s: %s %s %s", propose.RevertTrailer, s.app.Name, bad.Tag, bad.Digest)
	return title, b.String(), entry.Since
}

// evidenceText shows why a canary was aborted, as Markdown.
func evidenceText(cluster string, a Abort) string {
	var b strings.Builder
	fmt.Fprintf(&b, "### Evidence from %s\n\n", propose.Code(cluster))
	if len(a.Evidence.Metrics) == 0 {
		b.WriteString("No analysis failed; the Rollout says why it was aborted.\n")
	}
	for _, m := range a.Evidence.Metrics {
		metricText(&b, m)
	}
	list(&b, "Pods of the canary", a.Evidence.Pods)
	logsText(&b, a.Evidence.Logs)
	return b.String()
}

// logsText shows what the canary's containers wrote, or says that nobody has it.
func logsText(b *strings.Builder, l Logs) {
	switch {
	case b.Len() > maxText || l.Source == "" && l.Missing == "":
		return
	case len(l.Lines) == 0:
		fmt.Fprintf(b, "\nLog lines of the canary are missing: %s\n", propose.Code(l.Missing))
		return
	}
	fmt.Fprintf(b, "\nLog lines of the canary, from %s:\n\n", l.Source)
	var lines []string
	size := 0
	for _, line := range l.Lines[max(0, len(l.Lines)-maxLines):] {
		head := fmt.Sprintf("%s %s/%s  ", line.At.UTC().Format("15:04:05.000"), line.Pod, line.Container)
		rows := strings.Split(line.Text, "\n")
		for i, row := range rows[:min(len(rows), maxRows)] {
			if i > 0 {
				head = "    "
			}
			if size += len(row); size > maxLogs {
				break
			}
			lines = append(lines, head+row)
		}
		if more := len(rows) - maxRows; more > 0 {
			lines = append(lines, fmt.Sprintf("    (and %d lines more)", more))
		}
	}
	b.WriteString(propose.Block(lines))
}

func metricText(b *strings.Builder, m Metric) {
	if b.Len() > maxText {
		return
	}
	fmt.Fprintf(b, "**%s**: %s", propose.Code(m.Name), propose.Code(m.Phase))
	if m.Message != "" {
		fmt.Fprintf(b, ", %s", propose.Code(m.Message))
	}
	b.WriteString("\n\n")
	windowText(b, m.Window)
	if len(m.Values) == 0 {
		return
	}
	b.WriteString("| at | value | verdict |\n|---|---|---|\n")
	for _, v := range m.Values[max(0, len(m.Values)-maxValues):] {
		fmt.Fprintf(b, "| %s | %s | %s |\n", v.At.UTC().Format(time.RFC3339), cell(v.Value), cell(v.Phase))
	}
	b.WriteString("\n")
}

// windowText draws a window as one line of text.
func windowText(b *strings.Builder, w Window) {
	switch {
	case w.Missing != "":
		fmt.Fprintf(b, "How it went is missing: %s\n\n", propose.Code(w.Missing))
	case len(w.Points) > 0:
		low, high, line := sparkline(w.Points)
		until := w.From.Add(time.Duration(len(w.Points)-1) * w.Step)
		fmt.Fprintf(b, "`%s` from %s to %s UTC, a sign for each %s; the lowest is %s, the highest %s.\n\n", line,
			w.From.UTC().Format(time.TimeOnly), until.UTC().Format(time.TimeOnly), w.Step, number(low), number(high))
	}
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// sparkline draws points by eighths of a line's height, and a dot where there is none.
func sparkline(points []float64) (low, high float64, line string) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, p := range points {
		if !math.IsNaN(p) && !math.IsInf(p, 0) {
			low, high = min(low, p), max(high, p)
		}
	}
	levels := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, p := range points {
		switch {
		case math.IsNaN(p) || math.IsInf(p, 0):
			b.WriteRune('·')
		case high == low:
			b.WriteRune(levels[0])
		default:
			b.WriteRune(levels[int(math.Round((p-low)/(high-low)*float64(len(levels)-1)))])
		}
	}
	return low, high, b.String()
}

// cell is text in a table, where a bar would end it even in a code span.
func cell(text string) string { return propose.Code(strings.ReplaceAll(text, "|", "¦")) }

func list(b *strings.Builder, title string, lines []string) {
	if len(lines) == 0 || b.Len() > maxText {
		return
	}
	fmt.Fprintf(b, "\n%s:\n\n", title)
	for _, line := range lines[:min(len(lines), maxLines)] {
		fmt.Fprintf(b, "- %s\n", propose.Code(line))
	}
	if more := len(lines) - maxLines; more > 0 {
		fmt.Fprintf(b, "- and %d more\n", more)
	}
}

// promotionText is title and body of a wave's pull request; only what every steward sees
// alike is in it.
func (s *story) promotionText(r fleet.Release, wave, next []fleet.Cluster) (title, body string) {
	title = fmt.Sprintf("Release %s %s to %s", s.app.Name, r.Tag, names(next))
	var b strings.Builder
	for _, cluster := range next {
		from := s.git.Wanted[cluster.Name].Release
		what := propose.Code(from.Tag)
		if from.Empty() {
			what = "nothing"
		}
		fmt.Fprintf(&b, "- %s: %s → %s\n", propose.Code(cluster.Name), what, propose.Code(r.Tag))
	}
	fmt.Fprintf(&b, "- Image: %s\n- Wave before: %s ran it without a fault for %s\n", propose.Code(r.Digest), propose.Code(names(wave)), s.Git.Fleet.Handover(wave[0].Wave).Soak)
	if source := s.git.Sources[r.Digest]; source != "" {
		fmt.Fprintf(&b, "- %s: %s\n", propose.SourceFact, propose.Code(source))
	}
	fmt.Fprintf(&b, "\n%s: %s %s %s", propose.ReleaseTrailer, s.app.Name, r.Tag, r.Digest)
	return title, b.String()
}

// Trailer reads what a pull request's text brings or takes back.
func Trailer(body string) (kind Kind, app string, r fleet.Release, ok bool) {
	lines := strings.Split(strings.ReplaceAll(body, "\r\n", "\n"), "\n")
	for _, line := range slices.Backward(lines) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		fields := strings.Fields(value)
		if len(fields) != 3 {
			continue
		}
		switch name {
		case propose.ReleaseTrailer:
			kind = Release
		case propose.RevertTrailer:
			kind = Revert
		default:
			continue
		}
		return kind, fields[0], fleet.Release{Tag: fields[1], Digest: fields[2]}, true
	}
	return "", "", fleet.Release{}, false
}
