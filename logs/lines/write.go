package lines

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"strings"
	"time"
	"unicode"
)

// Writer writes lines, each as a whole.
type Writer func(io.Writer, Line) error

// WriteText writes lines for people: time, cluster, namespace/Pod, container, and what was written. Control characters
// are escaped, so that no container has a hand on the terminal; the further lines of an entry are indented, so that
// none looks like another container's.
func WriteText(out io.Writer, l Line) error { return writeText(out, l, plain) }

// WriteColours is WriteText with a colour for each cluster and each Pod.
func WriteColours(out io.Writer, l Line) error { return writeText(out, l, coloured) }

func writeText(out io.Writer, l Line, colour func(of, text string) string) error {
	cluster, pod := printable(l.Cluster), printable(l.Labels["namespace"]+"/"+l.Labels["pod"])
	_, err := fmt.Fprintf(out, "%s %s %s %s  %s\n", l.At.UTC().Format("2006-01-02T15:04:05.000Z"), colour(cluster, cluster),
		colour(pod, pod), printable(l.Labels["container"]), strings.Join(escaped(l.Line), "\n    "))
	return err
}

func plain(_, text string) string { return text }

// colours are the six that are readable on black and on white.
var colours = []int{31, 32, 33, 34, 35, 36}

// coloured gives the same thing the same colour in each run.
func coloured(of, text string) string {
	sum := fnv.New32a()
	_, _ = io.WriteString(sum, of)
	return fmt.Sprintf("\033[%dm%s\033[0m", colours[sum.Sum32()%uint32(len(colours))], text) //nolint:gosec // six
}

// escaped are the lines of an entry, without what would move a terminal's cursor or change its state.
func escaped(entry string) (all []string) {
	for text := range strings.SplitSeq(strings.TrimRight(entry, "\r\n"), "\n") {
		var b strings.Builder
		for _, r := range strings.TrimSuffix(text, "\r") {
			if r == '\t' || unicode.IsPrint(r) {
				b.WriteRune(r)
			} else {
				b.WriteString(strings.Trim(fmt.Sprintf("%+q", string(r)), `"`))
			}
		}
		all = append(all, b.String())
	}
	return all
}

func printable(text string) string { return strings.Join(escaped(text), " ") }

// WriteJSON writes a line as one JSON object: time, cluster, line to the letter, and all labels.
func WriteJSON(out io.Writer, l Line) error {
	labels := maps.Clone(l.Labels)
	for _, name := range []string{"namespace", "pod", "container"} {
		delete(labels, name)
	}
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(struct {
		Time      time.Time         `json:"time"`
		Cluster   string            `json:"cluster"`
		Namespace string            `json:"namespace"`
		Pod       string            `json:"pod"`
		Container string            `json:"container"`
		Line      string            `json:"line"`
		Labels    map[string]string `json:"labels"`
	}{l.At.UTC(), l.Cluster, l.Labels["namespace"], l.Labels["pod"], l.Labels["container"], l.Line, labels})
}
