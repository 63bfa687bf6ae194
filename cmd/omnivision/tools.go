package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor/tools"
)

type toolsFlags struct {
	cache, source string
	githubPath    bool
	timeout       time.Duration
}

func newToolsCommand() *cobra.Command {
	var flags toolsFlags
	cmd := &cobra.Command{
		Use:   "tools [NAME]...",
		Short: "Get the programs of others that a release runs: buildkitd and trivy",
		Long: `Get the programs of others that a release runs, each at the version of
` + tools.File + `: the one in PATH if it has just this version, else
the release's archive if its SHA-256 is pinned there, else compiled from the module
that the source pins. Without a checksum nothing is downloaded.

Prints the folders of the programs, one a line.`,
		Example: `  omnivision tools                         # all of them
  omnivision tools --github-path trivy     # for the following steps of a job`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), flags.timeout, fmt.Errorf("getting the tools took longer than %s: allow more with --timeout", flags.timeout))
			defer cancel()
			return flags.get(ctx, cmd, args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.cache, "cache", "", "folder that keeps them (default: omnivision/tools in the user's cache)")
	f.StringVar(&flags.source, "source", ".", "checkout of the source, whose engines/ they are compiled from")
	f.BoolVar(&flags.githubPath, "github-path", false, "add the folders to the PATH of a job's following steps")
	f.DurationVar(&flags.timeout, "timeout", time.Hour, "give up after this time")
	return cmd
}

func (f *toolsFlags) get(ctx context.Context, cmd *cobra.Command, names []string) error {
	pinned, err := tools.Pinned()
	if err != nil {
		return err
	}
	wanted, err := tools.Named(pinned, names...)
	if err != nil {
		return codedError{exitUsage, err}
	}
	cache, err := cacheDir(f.cache, "tools", "--cache")
	if err != nil {
		return err
	}
	getter := tools.Getter{
		Cache: cache, Source: f.source, Platform: runtime.GOOS + "/" + runtime.GOARCH, HTTP: http.DefaultClient,
		Report: func(what string) { fmt.Fprintln(cmd.ErrOrStderr(), what) },
	}
	var folders []string
	for _, tool := range wanted {
		path, err := getter.Get(ctx, tool)
		if err != nil {
			return err
		}
		if folder := filepath.Dir(path); !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	lines := strings.Join(folders, "\n") + "\n"
	fmt.Fprint(cmd.OutOrStdout(), lines)
	if f.githubPath {
		return addToGitHubPath(lines)
	}
	return nil
}

// addToGitHubPath tells the runner of a job:
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands#adding-a-system-path.
func addToGitHubPath(lines string) error {
	name := os.Getenv("GITHUB_PATH")
	if name == "" {
		return codedError{exitUsage, fmt.Errorf("GITHUB_PATH is not set: --github-path is for jobs")}
	}
	file, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("adding to the job's PATH: %w", err)
	}
	if _, err := file.WriteString(lines); err != nil {
		file.Close() //nolint:errcheck // it is lost anyway
		return fmt.Errorf("adding to the job's PATH: %w", err)
	}
	return file.Close()
}
