package main

import (
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
	return child.Run()
}
