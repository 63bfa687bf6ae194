package gitea

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/localfleet/netns"
)

// git runs the git command without the caller's configuration: nobody's
// signing, line-end or address rewriting settings decide what the fleet runs.
type git struct {
	netns string
	dir   string
	env   []string
}

// git returns a git that works in dir and may push to this server.
func (s *Server) git(dir string, extra ...string) (git, error) {
	who, err := s.admin()
	if err != nil {
		return git{}, err
	}
	// By the environment, since arguments can be read by every user.
	basic := base64.StdEncoding.EncodeToString([]byte(Admin + ":" + who.token))
	return git{netns: s.config.NetNS, dir: dir, env: append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/nonexistent", "LC_ALL=C", "GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=OmniVision fleet", "GIT_AUTHOR_EMAIL=" + Admin + "@omnivision.invalid",
		"GIT_COMMITTER_NAME=OmniVision fleet", "GIT_COMMITTER_EMAIL=" + Admin + "@omnivision.invalid",
		"GIT_CONFIG_COUNT=4",
		"GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic " + basic,
		"GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*", // the checkout may be another user's
		"GIT_CONFIG_KEY_2=http.proxy", "GIT_CONFIG_VALUE_2=",
		"GIT_CONFIG_KEY_3=gc.auto", "GIT_CONFIG_VALUE_3=0",
	}, extra...)}, nil
}

// run returns what git printed.
func (g git) run(ctx context.Context, args ...string) (string, error) {
	return g.feed(ctx, "", args...)
}

// feed gives git an input and returns what it printed.
func (g git) feed(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = g.dir, g.env, 5*time.Second
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A child is born in the namespace of the thread that starts it.
	err := netns.Do(g.netns, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return stdout.String(), fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// line returns the one line that git printed.
func (g git) line(ctx context.Context, args ...string) (string, error) {
	out, err := g.run(ctx, args...)
	return strings.TrimSpace(out), err
}

// gitURL is where git reaches the repository from this server's namespace.
func (s *Server) gitURL(name forge.Name) string {
	return s.URL() + name.Owner + "/" + name.Repository + ".git"
}
