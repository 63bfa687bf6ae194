package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/localfleet"
)

func newInsideCommand() *cobra.Command {
	var flags fleetFlags
	cmd := &cobra.Command{
		Use:   "inside -- COMMAND [ARGUMENT...]",
		Short: "Run a command where production's names lead to the local fleet",
		Long: `Run a command as if it ran where the fleet is real: github.com, the registries and
Sigstore's services are the local fleet's own servers, their certificates are
trusted, and nothing else can be reached. Only the command and what it starts
see it so; the machine stays as it is.

BuildKit is built at the first call, which takes a while, and started. The command
finds it and the fleet's Sigstore, the programs of the fleet in its PATH, and in
` + forgeTokenVariable + ` a token that may open pull requests.`,
		Example: `  omnivision inside -- omnivision release --app omnivision-worker
  omnivision inside -- git clone https://github.com/omnivision/omnivision-gitops.git
  omnivision inside -- sh -c 'cosign verify --trusted-root "$OMNIVISION_TRUSTED_ROOT" …'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			progress.quiet = 2 * time.Second
			err = fleet.StartConveyor(cmd.Context(), progress)
			progress.close()
			if err != nil {
				return fmt.Errorf("%w\nrun the same command again to go on; 'omnivision up' starts the fleet", err)
			}
			return runInside(cmd, fleet, args)
		},
	}
	flags.add(cmd)
	return cmd
}

// runInside is runInPlace for a command that sees the fleet from inside.
func runInside(cmd *cobra.Command, fleet *localfleet.Fleet, args []string) error {
	env, start, err := fleet.Inside(cmd.Context())
	if err != nil {
		return err
	}
	program, err := lookIn(env, args[0])
	if err != nil {
		return codedError{exitUsage, err}
	}
	child := exec.CommandContext(cmd.Context(), program, args[1:]...)
	child.Env = append(os.Environ(), env...)
	// Entering a mount namespace leads to its root.
	if child.Dir, err = os.Getwd(); err != nil {
		return err
	}
	return runChild(cmd, child, start)
}

// lookIn finds a program by the PATH of an environment.
func lookIn(env []string, name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	at := slices.IndexFunc(env, func(pair string) bool { return strings.HasPrefix(pair, "PATH=") })
	if at < 0 {
		return exec.LookPath(name)
	}
	for dir := range strings.SplitSeq(strings.TrimPrefix(env[at], "PATH="), ":") {
		path := dir + "/" + name
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no program %q inside the fleet: its PATH is %s", name, strings.TrimPrefix(env[at], "PATH="))
}
