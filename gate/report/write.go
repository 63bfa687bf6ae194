package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/omnivision/omnivision/internal/terminal"
)

// WriteTable writes reports for people: a line per workload and image, and sums below.
func WriteTable(out io.Writer, reports []Report) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLUSTER\tNAMESPACE\tWORKLOAD\tPODS\tIMAGE\tVERDICT\tREASON")
	for _, r := range reports {
		for _, f := range r.Findings {
			fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.Cluster, f.Namespace, terminal.Line(f.Workload), f.Pods, terminal.Line(f.Image), f.Verdict, terminal.Line(f.words()))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, r := range reports {
		if _, err := fmt.Fprintln(out, terminal.Line(r.sum())); err != nil {
			return err
		}
	}
	return nil
}

func (f Finding) words() string {
	all := f.Warnings
	if f.Reason != "" {
		all = append([]string{f.Reason}, all...)
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, "; ")
}

func (r Report) sum() string {
	if r.Error != "" {
		return r.Cluster + ": could not be asked: " + r.Error
	}
	return fmt.Sprintf("%s: of %d Pods the gate would refuse %d; %d could not be asked about, %d would be refused if all policies were enforced",
		r.Cluster, r.Pods, r.Refused, r.Unknown, r.Warned)
}

// WriteJSON writes {"clusters": […]}.
func WriteJSON(out io.Writer, reports []Report) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(struct {
		Clusters []Report `json:"clusters"`
	}{reports})
}
