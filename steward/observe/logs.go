package observe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/logs/loki"
	"github.com/omnivision/omnivision/logs/redact"
	"github.com/omnivision/omnivision/steward"
)

// Logs is where lines of a failed canary are asked for.
type Logs struct {
	// Loki is asked first: it has the lines of Pods that are gone. Nil does not ask it.
	Loki *loki.Client
	// Pods is the Kubernetes API, which has the lines of Pods that are still there. Nil does
	// not ask it.
	Pods typed.PodsGetter
}

// Bounds of what is read, and of what is kept for the evidence.
const (
	readLines = 500
	readBytes = 4 << 20 // of one container
	readPods  = 5
	keepLines = 30
	keepText  = 4000 // bytes of one line
)

// of returns what a canary wrote, or why nobody can tell.
func (l *Logs) of(ctx context.Context, c canary) steward.Logs {
	if l == nil || l.Loki == nil && l.Pods == nil {
		return steward.Logs{}
	}
	lines, lost := l.fromLoki(ctx, c)
	if len(lines) > 0 {
		return steward.Logs{Source: "Loki", Lines: telling(lines)}
	}
	lines, gone := l.fromPods(ctx, c)
	if len(lines) > 0 {
		return steward.Logs{Source: "the Kubernetes API", Lines: telling(lines)}
	}
	return steward.Logs{Missing: joined(lost, gone)}
}

func (l *Logs) fromLoki(ctx context.Context, c canary) ([]steward.LogLine, error) {
	if l.Loki == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lokiPatience)
	defer cancel()
	query := fmt.Sprintf("{namespace=%s, pod=~%s, container=~%s}", strconv.Quote(c.namespace),
		strconv.Quote(regexp.QuoteMeta(c.prefix)+"[a-z0-9]+"), strconv.Quote(strings.Join(quoted(c.containers), "|")))
	entries, err := l.Loki.Query(ctx, query, c.from, c.to, readLines, true)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("no answer of Loki within %s", lokiPatience)
	case err != nil:
		return nil, err
	case len(entries) == 0:
		return nil, errors.New("no lines of these Pods in Loki")
	}
	var lines []steward.LogLine
	for _, e := range entries {
		lines = append(lines, logLine(e.At, e.Labels["pod"], e.Labels["container"], e.Line))
	}
	return lines, nil
}

func quoted(names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = regexp.QuoteMeta(name)
	}
	return out
}

func (l *Logs) fromPods(ctx context.Context, c canary) ([]steward.LogLine, error) {
	if l.Pods == nil {
		return nil, nil
	}
	if len(c.pods) == 0 {
		return nil, errors.New("the Pods are gone, and their logs in the cluster with them")
	}
	ctx, cancel := context.WithTimeout(ctx, podsPatience)
	defer cancel()
	var lines []steward.LogLine
	var failed error
	for _, pod := range c.pods[:min(len(c.pods), readPods)] {
		for _, name := range c.containers {
			for _, previous := range []bool{true, false} {
				if previous && restarts(pod, name) == 0 {
					continue
				}
				read, err := l.fromPod(ctx, c, pod.GetName(), name, previous)
				lines = append(lines, read...)
				if err != nil {
					failed = fmt.Errorf("reading the logs of Pod %s: %w", pod.GetName(), err)
				}
			}
		}
	}
	if len(lines) == 0 && failed == nil {
		failed = errors.New("the Pods wrote nothing")
	}
	return lines, failed
}

func (l *Logs) fromPod(ctx context.Context, c canary, pod, container string, previous bool) ([]steward.LogLine, error) {
	tail, since := int64(readLines), metav1.NewTime(c.from)
	stream, err := l.Pods.Pods(c.namespace).GetLogs(pod, &core.PodLogOptions{
		Container: container, Previous: previous, Timestamps: true, TailLines: &tail, SinceTime: &since,
	}).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer stream.Close() //nolint:errcheck // read as far as needed
	return stamped(io.LimitReader(stream, readBytes), pod, container)
}

// stamped reads lines that begin with their time, as the kubelet writes it.
func stamped(r io.Reader, pod, container string) ([]steward.LogLine, error) {
	var lines []steward.LogLine
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, readBytes)
	for scanner.Scan() {
		stamp, line, _ := strings.Cut(scanner.Text(), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			line = scanner.Text()
		}
		lines = append(lines, logLine(at, pod, container, line))
	}
	return lines, scanner.Err()
}

func restarts(pod *unstructured.Unstructured, container string) int64 {
	for _, c := range fields.Objects(pod.Object, "status", "containerStatuses") {
		if c["name"] == container {
			n, _ := c["restartCount"].(int64)
			return n
		}
	}
	return 0
}

// logLine masks before it cuts: half a credential has no shape.
func logLine(at time.Time, pod, container, line string) steward.LogLine {
	line = redact.Text(line)
	return steward.LogLine{At: at, Pod: pod, Container: container, Text: strings.ToValidUTF8(line[:min(len(line), keepText)], "")}
}

// trouble is how lines look that speak of it.
var trouble = regexp.MustCompile(`(?i)\b(err|error|fatal|panic|exception|traceback|xid|cuda|oom|killed|fail|failed|failure|abort|aborted)\b`)

// telling keeps the newest lines, those that speak of trouble before others, in the order of
// time.
func telling(lines []steward.LogLine) []steward.LogLine {
	byTime := func(a, b steward.LogLine) int { return a.At.Compare(b.At) }
	slices.SortStableFunc(lines, byTime)
	var kept []steward.LogLine
	for _, wanted := range []bool{true, false} {
		for _, line := range slices.Backward(lines) {
			if len(kept) < keepLines && trouble.MatchString(line.Text) == wanted {
				kept = append(kept, line)
			}
		}
	}
	slices.Reverse(kept)
	slices.SortStableFunc(kept, byTime)
	return kept
}
