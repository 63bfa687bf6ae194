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
	child := exec.CommandContext(cmd.Context(), program, args...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 5 * time.Second
	err := child.Run()
	var exited *exec.ExitError
	if errors.As(err, &exited) && exited.ExitCode() > 0 {
		return exitedError{exited.ExitCode()}
	}
	return err
}

// exitedError is how a program ended that was run in this command's place.
type exitedError struct{ code int }

func (e exitedError) Error() string { return fmt.Sprintf("exit code %d", e.code) }
