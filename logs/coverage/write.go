package coverage

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/omnivision/omnivision/internal/terminal"
)

// Cluster is what was found in one: its sum and each namespace's report.
type Cluster struct {
	Cluster string `json:"cluster"`
	Sum
	Reports []Report `json:"reports"`
	// Error says why it could not be measured.
	Error string `json:"error,omitempty"`
}

// Of is what a Survey of a cluster found, or why it found nothing.
func Of(cluster string, reports []Report, err error) Cluster {
	c := Cluster{Cluster: cluster, Sum: Add(reports), Reports: reports}
	if err != nil {
		c.Error = err.Error()
	}
	if c.Reports == nil {
		c.Reports = []Report{}
	}
	return c
}

// WriteTable writes for people: a row for each container that is not covered, and each cluster's sum below.
func WriteTable(out io.Writer, clusters []Cluster) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	head := "CLUSTER\tNAMESPACE\tPOD\tCONTAINER\tREASON\tDETAIL\n"
	for _, c := range clusters {
		for _, r := range c.Reports {
			for _, gap := range r.Gaps {
				fmt.Fprintf(table, "%s%s\t%s\t%s\t%s\t%s\t%s\n", head, c.Cluster, gap.Namespace, gap.Pod, gap.Container, gap.Reason, terminal.Line(gap.Detail))
				head = ""
			}
		}
	}
	if head == "" {
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, c := range clusters {
		if _, err := fmt.Fprintf(out, "%s: %s\n", c.Cluster, terminal.Line(c.words())); err != nil {
			return err
		}
	}
	return nil
}

func (c Cluster) words() string {
	switch {
	case c.Error != "":
		return "not measured: " + c.Error
	case c.Unknown != "":
		return c.Sum.String() + ": " + c.Unknown
	}
	return c.Sum.String()
}

// WriteJSON writes {"clusters": […]}.
func WriteJSON(out io.Writer, clusters []Cluster) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(struct {
		Clusters []Cluster `json:"clusters"`
	}{clusters})
}
