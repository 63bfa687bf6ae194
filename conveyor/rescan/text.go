package rescan

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/omnivision/omnivision/conveyor/scan"
)

// WriteText writes the report for people: one line for each cluster and app, then once
// for each image what is wrong with it.
func (r Report) WriteText(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLUSTER\tAPP\tIMAGE\tSTATUS\tSTATED\tFINDINGS\tWHAT TO DO")
	for _, d := range r.Deployed {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Cluster, d.App, d.image(), d.Status, cmp.Or(d.Attested, "-"), d.counts(), cmp.Or(scan.Plain(d.Todo), "nothing"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if r.Scanner != "" {
		fmt.Fprintf(out, "\n%s, database of %s\n", r.Scanner, r.Database.UpdatedAt.Format(time.RFC3339))
	}
	said := map[string]bool{}
	for _, d := range r.Deployed {
		if text := d.detail(); text != "" && !said[text] {
			said[text] = true
			if _, err := fmt.Fprintf(out, "\n%s\n", text); err != nil {
				return err
			}
		}
	}
	return nil
}

// image is the tag with the digest's beginning, as people compare them.
func (d Deployed) image() string {
	if d.Empty() {
		return "-"
	}
	_, hex, _ := strings.Cut(d.Digest, ":")
	return d.Tag + "@" + hex[:min(12, len(hex))]
}

func (d Deployed) counts() string {
	if d.Status != Clean && d.Status != Vulnerable {
		return "-"
	}
	var counts []string
	for _, severity := range scan.Severities {
		if n := d.Counts[severity]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, strings.ToLower(string(severity))))
		}
	}
	if len(d.Excepted) > 0 {
		counts = append(counts, fmt.Sprintf("%d excepted", len(d.Excepted)))
	}
	return cmp.Or(strings.Join(counts, ", "), "none")
}

// detail of a vulnerable image is the same wherever it is deployed.
func (d Deployed) detail() string {
	switch {
	case d.Status == Vulnerable:
		return fmt.Sprintf("%s %s has %s", d.App, d.image(), d.table)
	case d.Problem != "":
		var lines []string // of a program's output, perhaps
		for line := range strings.Lines(d.Problem) {
			lines = append(lines, scan.Plain(line))
		}
		return fmt.Sprintf("%s in %s: %s", d.App, d.Cluster, strings.Join(lines, "\n  "))
	}
	return ""
}
