// Package git runs the git command: without a shell, with the messages that scripts
// can rely on, and with errors that say what git said.
//
// It knows nothing of branches or merges; what to do with Git is the caller's.
package git

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// Git works in one directory.
type Git struct {
	Dir string
	Env []string // all of it; nil is the caller's
}

// Own returns a git with the caller's configuration, for the caller's own checkout.
func Own(dir string) Git {
	return Git{Dir: dir, Env: append(os.Environ(), "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0")}
}

// Clean returns a git without the caller's configuration: nobody's signing, line-end
// or address rewriting settings decide what is written.
func Clean(dir string, env ...string) Git {
	clean := []string{"HOME=/nonexistent", "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
	// How the network is reached is the machine's, not a person's.
	for _, name := range []string{"PATH", "TMPDIR", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value, ok := os.LookupEnv(name); ok {
			clean = append(clean, name+"="+value)
		}
	}
	return Git{Dir: dir, Env: append(clean, env...)}
}

// Setting is a line of Git's configuration.
type Setting struct{ Key, Value string }

// Settings are configuration by the environment: arguments can be read by every user
// of a machine, and a setting may be a credential.
func Settings(settings ...Setting) []string {
	env := []string{fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings))}
	for i, s := range settings {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, s.Key), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, s.Value))
	}
	return env
}

// Credential is the setting that sends a forge's token to one address and nowhere
// else. GitHub demands this user's name; Gitea takes any.
func Credential(address, token string) Setting {
	basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + token))
	return Setting{Key: "http." + address + ".extraHeader", Value: "Authorization: Basic " + basic}
}

// Error is what git said when it failed.
type Error struct {
	Command string // rev-parse, push
	Said    string
	Err     error
}

func (e *Error) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("git %s: %v: %s", e.Command, e.Err, e.Said), ": ")
}

// Unwrap returns how git ended.
func (e *Error) Unwrap() error { return e.Err }

// Said reports whether git failed with one of these in its messages.
func Said(err error, signs ...string) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, sign := range signs {
		if strings.Contains(e.Said, sign) {
			return true
		}
	}
	return false
}

// Run returns what git printed.
func (g Git) Run(ctx context.Context, args ...string) (string, error) {
	return g.Feed(ctx, "", args...)
}

// Line returns the one line that git printed.
func (g Git) Line(ctx context.Context, args ...string) (string, error) {
	out, err := g.Run(ctx, args...)
	return strings.TrimSpace(out), err
}

// Feed gives git an input and returns what it printed.
func (g Git) Feed(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = g.Dir, g.Env, 5*time.Second
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	waited := tooltime.Begin(ctx, "git")
	err := cmd.Run()
	waited()
	if err == nil {
		return stdout.String(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return stdout.String(), &Error{Command: args[0], Said: strings.TrimSpace(stderr.String()), Err: err}
}
