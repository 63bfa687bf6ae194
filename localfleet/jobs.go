package localfleet

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/story"
)

// JobsCommand is the hidden subcommand that waits for the first job.
const JobsCommand = "await-jobs"

const jobsDaemon = "await-jobs"

// How often the forge is asked for a job, and how long a failed start waits.
const (
	jobsInterval = 2 * time.Second
	jobsRetry    = 30 * time.Second
)

// awaitJobs starts the process that brings the conveyor up when it is needed: most fleets
// are up for other things, and do without BuildKit, Trivy and a Sigstore.
func (f *Fleet) awaitJobs(ctx context.Context, _ func(string)) error {
	if _, running := f.sup.Running(runnerDaemon); running {
		return nil
	}
	program, err := ownProgram()
	if err != nil {
		return err
	}
	_, err = f.sup.Start(ctx, process.Spec{
		Name: jobsDaemon, Path: program, StopGrace: 2 * time.Second,
		Args: []string{
			JobsCommand, "--state", f.StateDir, "--cache", f.CacheDir, "--source", f.Source, "--port-base", strconv.Itoa(f.PortBase),
		},
		Env: goEnvironment(), // the engines are built with the user's Go
	})
	return err
}

// AwaitJobs waits until the forge has a job for a runner, and starts the conveyor. The job
// waits meanwhile, as for any runner.
func (f *Fleet) AwaitJobs(ctx context.Context, watcher story.Watcher) error {
	server, err := f.openForge(ctx)
	if err != nil {
		return err
	}
	for {
		waiting, err := server.QueuedJobs(ctx)
		switch {
		case err != nil:
			fmt.Fprintln(os.Stderr, "asking the forge for jobs:", err)
		case waiting > 0:
			fmt.Fprintf(os.Stderr, "%d jobs are waiting\n", waiting)
			err = f.StartConveyor(ctx, watcher)
			if err == nil {
				return nil
			}
			fmt.Fprintln(os.Stderr, "starting the conveyor:", err)
		}
		pause := jobsInterval
		if err != nil {
			pause = jobsRetry
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
