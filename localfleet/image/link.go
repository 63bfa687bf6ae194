package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/omnivision/omnivision/internal/filelock"
)

// Link builds the programs of this source that the images of references hold, by one run of
// Go: what they share is looked at once, and they are linked side by side. Images that need
// none are fine. An image whose program was not linked before links it by itself.
func (b *Builder) Link(ctx context.Context, references ...string) error {
	programs := map[string]bool{}
	for _, reference := range references {
		recipe, err := b.recipe(reference)
		if err != nil {
			return err
		}
		if recipe.program != "" {
			programs[recipe.program] = true
		}
	}
	if len(programs) == 0 {
		return nil
	}
	b.programs.Lock()
	defer b.programs.Unlock()
	return b.link(ctx, slices.Sorted(maps.Keys(programs))...)
}

// ownProgram is the path of a program of this source.
func (b *Builder) ownProgram(ctx context.Context, program string) (string, error) {
	b.programs.Lock()
	defer b.programs.Unlock()
	if b.linked[program] == "" {
		if err := b.link(ctx, program); err != nil {
			return "", err
		}
	}
	return b.linked[program], nil
}

// link builds programs. Go decides whether there is anything to do: it leaves a program as it
// is that was linked from the same input. The caller holds the lock.
func (b *Builder) link(ctx context.Context, programs ...string) error {
	version, commit := b.stamp(ctx)
	b.report("building %s", strings.Join(programs, ", "))
	dir := filepath.Join(b.dir(), "programs")
	built := filepath.Join(dir, ".linked")
	if err := os.MkdirAll(built, 0o755); err != nil {
		return err
	}
	unlock, err := filelock.Acquire(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	// Flags that decide what is compiled are those of the Makefile: one build cache serves both.
	args := []string{
		"build", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false",
		"-ldflags", "-s -w -X " + versionPackage + ".Version=" + version + " -X " + versionPackage + ".Commit=" + commit + " -X main.version=" + version,
		"-o", built + string(filepath.Separator),
	}
	for _, program := range programs {
		args = append(args, "./cmd/"+program)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.Source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if _, err := output(cmd, "building "+strings.Join(programs, ", ")); err != nil {
		return err
	}
	if b.linked == nil {
		b.linked = map[string]string{}
	}
	for _, program := range programs {
		if b.linked[program], err = keep(filepath.Join(built, program), filepath.Join(dir, program)); err != nil {
			return err
		}
	}
	return nil
}

// keep copies a program to a name made of its content: the file of an unchanged
// program keeps its time, by which images know it.
func keep(built, prefix string) (string, error) {
	content, err := os.ReadFile(built)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(content)
	final := prefix + "-" + hex.EncodeToString(sum[:])[:12]
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	old, err := filepath.Glob(prefix + "-????????????")
	if err != nil {
		return "", err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	unfinished := final + ".new"
	if err := os.WriteFile(unfinished, content, 0o755); err != nil {
		return "", err
	}
	return final, os.Rename(unfinished, final)
}

// stamp is the version and commit of Source. A source without Git leaves them
// empty, and the programs say so.
func (b *Builder) stamp(ctx context.Context) (version, commit string) {
	git := func(args ...string) string {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", b.Source}, args...)...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	if version = b.Version; version == "" {
		version = strings.TrimPrefix(git("describe", "--tags", "--dirty"), "v")
	}
	if commit = b.Commit; commit == "" {
		commit = git("rev-parse", "--verify", "HEAD")
		if commit != "" && git("status", "--porcelain") != "" {
			commit += "-dirty"
		}
	}
	return version, commit
}
