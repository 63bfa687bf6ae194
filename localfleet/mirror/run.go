package mirror

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Command is a Runner of a program, with variables added to the process's environment.
// It runs in dir, which for the go command should hold no go.mod.
func Command(program, dir string, env ...string) Runner {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), env...)
		cmd.WaitDelay = 2 * time.Second
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			what := program
			if len(args) > 0 {
				what += " " + args[0]
			}
			if text := strings.TrimSpace(errOut.String()); text != "" {
				err = fmt.Errorf("%s: %w: %s", what, err, text)
			} else {
				err = fmt.Errorf("%s: %w", what, err)
			}
		}
		return out.Bytes(), err
	}
}

// New is the mirror that uses the go command and, unless offline, git as they are found
// in PATH. dir is any directory without a go.mod above it; env is added to the go
// command's environment, such as GOMODCACHE.
func New(dir string, offline bool, env ...string) *Mirror {
	// A module may want a newer Go than this one: the go command then refuses even to
	// download it, unless it may fetch that Go first.
	env = append([]string{"GOFLAGS=-mod=mod", "GOWORK=off", "GOTOOLCHAIN=auto"}, env...)
	m := &Mirror{Go: Command("go", dir, env...)}
	if !offline {
		// Never stop to ask somebody for a password.
		m.Git = Command("git", dir, "GIT_TERMINAL_PROMPT=0")
	}
	return m
}
