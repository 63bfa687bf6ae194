package main

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// runInPlace runs a program with this command's input and output. Ctrl-C
// reaches it too, and its exit code becomes this command's.
func runInPlace(cmd *cobra.Command, program string, args []string) error {
	return runChild(cmd, exec.CommandContext(cmd.Context(), program, args...), func(start func() error) error { return start() })
}

// runChild is runInPlace for a command that somebody else has put together; where it is
// started, start decides.
func runChild(cmd *cobra.Command, child *exec.Cmd, start func(func() error) error) error {
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 5 * time.Second
	if err := start(child.Start); err != nil {
		return fmt.Errorf("starting %s: %w", child.Path, err)
	}
	err := child.Wait()
	var exited *exec.ExitError
	if errors.As(err, &exited) && exited.ExitCode() > 0 {
		return exitedError{exited.ExitCode()}
	}
	return err
}

// exitedError is how a program ended that was run in this command's place.
type exitedError struct{ code int }

func (e exitedError) Error() string { return fmt.Sprintf("exit code %d", e.code) }
