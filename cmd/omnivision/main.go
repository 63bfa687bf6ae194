// Command omnivision takes an AI platform from a commit to every cluster of a
// fleet, and rehearses all of it on one machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/omnivision/omnivision/internal/version"
	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx))
}

// Exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnhealthy   = 3 // what was asked about is not as it should be
	exitInterrupted = 130
)

// codedError carries the exit code of an error that is not a plain failure.
type codedError struct {
	code int
	err  error
}

func (e codedError) Error() string { return e.err.Error() }
func (e codedError) Unwrap() error { return e.err }

func run(ctx context.Context) int {
	err := newRootCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exited exitedError
	if errors.As(err, &exited) { // a program that was run in our place has said why
		return exited.code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "interrupted; run the same command again to go on, or 'omnivision down' to clean up")
		return exitInterrupted
	}
	fmt.Fprintln(os.Stderr, "Error:", err)
	var coded codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "omnivision",
		Short: "Deliver an AI platform from a commit to every cluster of a fleet",
		Long: `Deliver an AI platform from a commit to every cluster of a fleet, and rehearse
all of it on one machine: real Kubernetes clusters, each synced by its own
Argo CD from one Git repository, without a cloud account.`,
		Example: `  omnivision up                        # bring the whole fleet up on this machine
  omnivision status                    # what runs, and where to look at it
  omnivision kubectl -c cluster-aws -- get pods -A
  omnivision down                      # leave nothing behind`,
		Version:       version.Get().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return codedError{exitUsage, fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(
		newUpCommand(), newDownCommand(), newStatusCommand(), newDoctorCommand(),
		newKubeconfigCommand(), newKubectlCommand(), newGPUCommand(), newNodeCommand(), newEnginesCommand(), newInsideCommand(),
		newPlanCommand(), newReleaseCommand(), newVerifyCommand(), newChartCommand(), newRescanCommand(), newCanaryCommand(), newGateCommand(), newLogsCommand(), newToolsCommand(),
		newEdgeCommand(), newModulesCommand(), newJobsCommand(), newIssuerCommand(), newVouchCommand(),
	)
	root.AddCommand(newStageCommands()...)
	return root
}
