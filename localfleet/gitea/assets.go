package gitea

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The tools that Gitea's page is built with, by their npm packages.
const (
	nodePackage = "node@22"
	pnpmPackage = "pnpm@10"
)

// Assets says how Gitea's assets are made.
type Assets struct {
	Source string // unpacked module code.gitea.io/gitea; it is only read
	Dest   string // directory to fill; Config.Assets is this
	// WithoutPage leaves the browser's part out, which needs npm's registry.
	// Git, the API, webhooks and workflows need none of it.
	WithoutPage bool
	// Scratch is where the page is built, 1.2 GB that are removed at the end;
	// empty is beside Dest.
	Scratch string
	// Report is told what is being done; nil tells nobody.
	Report func(what string)
}

// WriteAssets writes what Gitea's binary looks for on disk: templates, options
// and, unless it is left out, the page's scripts and styles.
func WriteAssets(ctx context.Context, a Assets) error {
	if a.Report == nil {
		a.Report = func(string) {}
	}
	a.Report("copying templates and options")
	for _, dir := range []string{"options", "templates", "public"} {
		if err := copyTree(filepath.Join(a.Source, dir), filepath.Join(a.Dest, dir)); err != nil {
			return fmt.Errorf("copy gitea's %s: %w", dir, err)
		}
	}
	if a.WithoutPage {
		return nil
	}
	if err := a.buildPage(ctx); err != nil {
		return fmt.Errorf("build gitea's page: %w", err)
	}
	return nil
}

// buildPage runs Gitea's own build of its page, with tools of its own in a
// directory of its own: nothing of it stays on the machine.
func (a Assets) buildPage(ctx context.Context) error {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return fmt.Errorf("npm is missing: install it (apt-get install npm), or do without the page: %w", err)
	}
	parent := a.Scratch
	if parent == "" {
		parent = filepath.Dir(a.Dest)
	}
	scratch, err := os.MkdirTemp(parent, "gitea-page-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch) //nolint:errcheck // a leftover takes room and nothing else

	source, tools := filepath.Join(scratch, "source"), filepath.Join(scratch, "tools")
	for _, dir := range []string{source, tools} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	a.Report("copying the page's source")
	if err := copyPageSource(a.Source, source); err != nil {
		return err
	}
	bin := filepath.Join(tools, "node_modules", ".bin")
	steps := []struct {
		what string
		dir  string
		args []string
	}{
		{"installing " + nodePackage + " and " + pnpmPackage, tools, []string{npm, "install", "--prefix", tools, "--no-audit", "--no-fund", "--no-update-notifier", nodePackage, pnpmPackage}},
		{"installing the page's packages", source, []string{filepath.Join(bin, "pnpm"), "install", "--frozen-lockfile", "--prod", "--ignore-scripts", "--store-dir", filepath.Join(scratch, "store")}},
		{"building the page", source, []string{filepath.Join(bin, "pnpm"), "exec", "vite", "build"}},
	}
	for _, step := range steps {
		a.Report(step.what)
		if err := runTool(ctx, scratch, bin, step.dir, step.args); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	built := filepath.Join(source, "public")
	if _, err := os.Stat(filepath.Join(built, "assets", ".vite", "manifest.json")); err != nil {
		return fmt.Errorf("the build wrote no manifest: %w", err)
	}
	return copyTree(built, filepath.Join(a.Dest, "public"))
}

// copyPageSource copies what the page's build reads, and drops the demand for
// one exact pnpm, which would be downloaded from elsewhere.
func copyPageSource(from, to string) error {
	for _, name := range []string{"web_src", "public", "assets", "options", "templates", "tools", "pnpm-lock.yaml", "tsconfig.json", "types.d.ts", "vite.config.ts", "tailwind.config.ts"} {
		if err := copyTree(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(filepath.Join(from, "package.json"))
	if err != nil {
		return err
	}
	var manifest map[string]json.RawMessage
	if err := json.Unmarshal(data, &manifest); err != nil {
		return fmt.Errorf("package.json: %w", err)
	}
	delete(manifest, "packageManager")
	if data, err = json.Marshal(manifest); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "package.json"), data, 0o644)
}

// runTool runs one step of the page's build. It keeps the caller's environment,
// which says where npm's registry is, and moves npm's and pnpm's own
// directories into the scratch directory.
func runTool(ctx context.Context, scratch, bin, dir string, args []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("not done within 10 minutes"))
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "CI=true",
		"npm_config_cache="+filepath.Join(scratch, "npm-cache"), "PNPM_HOME="+filepath.Join(scratch, "pnpm"),
		"XDG_CACHE_HOME="+filepath.Join(scratch, "cache"), "XDG_DATA_HOME="+filepath.Join(scratch, "data"), "XDG_STATE_HOME="+filepath.Join(scratch, "state"))
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%w:\n%s", err, tail(output.String(), 15))
	}
	return nil
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// copyTree copies a file or a directory. What it writes can be written again:
// files of the module cache are read-only.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case entry.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return os.Symlink(link, target)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
