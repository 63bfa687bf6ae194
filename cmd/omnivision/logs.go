package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/omnivision/omnivision/logs/lines"
	"github.com/omnivision/omnivision/logs/loki"
	"github.com/spf13/cobra"
)

// logFlags are the flags of `omnivision logs`.
type logFlags struct {
	fleetFlags
	clusters  []string
	selection lines.Selection
	since     time.Duration
	limit     int
	follow    bool
	output    string
}

const (
	// lokiPatience is how long one Loki may take for one answer.
	lokiPatience = 30 * time.Second
	// followEvery is how often each Loki is asked for new lines. followOverlap is how late they may be: a sidecar
	// delivers within a second or two while all is well.
	followEvery, followOverlap = time.Second, 15 * time.Second
)

func newLogsCommand() *cobra.Command {
	var flags logFlags
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Read the logs of all clusters from their Lokis",
		Long: `Read log lines from each cluster's own Loki, merged by time: what every Pod of a
namespace labelled logging=enabled wrote, those that are gone included. Each Loki
is reached by its cluster's API server; it takes the right to get services/proxy
in namespace logging.

As text, control characters are escaped and the further lines of a stack trace are
indented; -o json has each line to the letter, as one JSON object with all labels.

With -f, lines are shown as they arrive, those that come at most 15 s late
included, until interrupted.

A cluster that does not answer is told on standard error, the others' lines are
shown all the same, and the exit status is 1.`,
		Example: `  omnivision logs                                     # the last ten minutes of everything
  omnivision logs -c cluster-aws --app omnivision-worker -f
  omnivision logs --since 1h --grep 'Xid 79'
  omnivision logs -n omnivision --pod omnivision-ui-7d4b9c-x2x9k --container ui --limit 50
  omnivision logs --app omnivision-worker -o json | jq -r '.line | fromjson? | .msg'
  omnivision logs --context cluster-aws=my-eks-context --since 30m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return flags.run(cmd) },
	}
	flags.add(cmd)
	flags.contextFlag(cmd)
	flags.clustersFlag(cmd, &flags.clusters)
	outputFlag(cmd, &flags.output)
	set := cmd.Flags()
	set.StringVar(&flags.selection.App, "app", "", "name of the Deployment, Rollout, StatefulSet, DaemonSet or CronJob")
	set.StringVarP(&flags.selection.Namespace, "namespace", "n", "", "namespace (default: every one)")
	set.StringVar(&flags.selection.Pod, "pod", "", "name of the Pod")
	set.StringVar(&flags.selection.Container, "container", "", "name of the container")
	set.StringVar(&flags.selection.Grep, "grep", "", "text that lines contain, to the letter")
	set.DurationVar(&flags.since, "since", 10*time.Minute, "how far back")
	set.IntVar(&flags.limit, "limit", 1000, "how many lines at most, the newest, of all clusters together; with -f, to begin with")
	set.BoolVarP(&flags.follow, "follow", "f", false, "show lines as they arrive, until interrupted")
	cmd.AddCommand(newLogsCoverageCommand())
	return cmd
}

func (f *logFlags) run(cmd *cobra.Command) error {
	if f.since <= 0 || f.limit <= 0 {
		return codedError{exitUsage, errors.New("--since and --limit have to be more than nothing, such as --since 10m --limit 1000")}
	}
	reader, err := f.reader(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	write, since := f.writer(cmd.OutOrStdout()), time.Now().Add(-f.since)
	var silent int
	if f.follow {
		silent, err = reader.Follow(cmd.Context(), since, f.limit, lines.Pace{Every: followEvery, Overlap: followOverlap}, write)
	} else {
		silent, err = f.once(cmd.Context(), reader, since, write)
	}
	if err == nil && silent > 0 {
		err = fmt.Errorf("%d of %d clusters did not answer: see above; 'omnivision status' shows whether their Application loki is Healthy", silent, len(reader.Sources))
	}
	return err
}

func (f *logFlags) once(ctx context.Context, reader *lines.Reader, since time.Time, write func([]lines.Line) error) (silent int, err error) {
	found, silent := reader.Latest(ctx, since, f.limit)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return silent, write(found)
}

func (f *logFlags) reader(problems io.Writer) (*lines.Reader, error) {
	names, configs, err := f.reach(f.clusters...)
	if err != nil {
		return nil, err
	}
	r := &lines.Reader{Selection: f.selection, Patience: lokiPatience, Report: func(p lines.Problem) {
		if p.Err == nil {
			fmt.Fprintf(problems, "%s: answers again\n", p.Cluster)
			return
		}
		fmt.Fprintf(problems, "%s: %v\n", p.Cluster, p.Err)
	}}
	for _, name := range names {
		client, err := loki.InCluster(configs[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		r.Sources = append(r.Sources, lines.Source{Cluster: name, Loki: client})
	}
	return r, nil
}

// writer writes lines that belong together at once.
func (f *logFlags) writer(out io.Writer) func([]lines.Line) error {
	write := lines.WriteText
	switch {
	case f.output == "json":
		write = lines.WriteJSON
	case isTerminal(out):
		write = lines.WriteColours
	}
	return func(all []lines.Line) error {
		buffered := bufio.NewWriter(out)
		for l := range slices.Values(all) {
			if err := write(buffered, l); err != nil {
				return err
			}
		}
		return buffered.Flush()
	}
}
