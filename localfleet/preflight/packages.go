package preflight

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"time"
)

// MissingPackages returns the packages of which a program is missing, sorted.
// programs maps a file, or a program's name, to the package that has it.
func MissingPackages(programs map[string]string) []string {
	found := map[string]bool{}
	for program, name := range programs {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if _, err := os.Stat(program); err == nil {
			continue
		}
		found[name] = true
	}
	var missing []string
	for name := range found {
		missing = append(missing, name)
	}
	sort.Strings(missing)
	return missing
}

// installLimit is how long reading the lists, and then downloading and
// installing, may each take: a mirror that answers slowly must not hold up for
// ever (P45).
const installLimit = 15 * time.Minute

// Install installs Debian packages, after reading the lists anew.
func Install(ctx context.Context, packages []string) error {
	// Lists that cannot be read are no error to apt-get as long as older ones
	// are there. What it complained of explains why a package is then not found.
	lists, err := aptGet(ctx, "update")
	if err == nil {
		var installed string
		installed, err = aptGet(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, packages...)...)
		lists += installed
	}
	if err != nil {
		return fmt.Errorf("install the packages %s: %w\n%s\n%s", strings.Join(packages, " "), err, complaints(lists), remedy(lists))
	}
	return nil
}

func aptGet(ctx context.Context, args ...string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	cmd := exec.CommandContext(limited, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second // its helpers may hold the output open
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return string(out), nil
	case ctx.Err() != nil:
		return string(out), ctx.Err()
	case limited.Err() != nil:
		return string(out), fmt.Errorf("apt-get %s took longer than %s", args[0], installLimit)
	}
	return string(out), fmt.Errorf("apt-get %s: %w", args[0], err)
}

// complaints are the lines in which apt-get says what is wrong, or else its
// last ones.
func complaints(output string) string {
	const shown = 5
	var found []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		wrong := strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "W: Failed to fetch")
		if wrong && len(found) < shown && !slices.Contains(found, line) {
			found = append(found, line)
		}
	}
	if len(found) == 0 {
		return lastLines(output, shown)
	}
	return strings.Join(found, "\n")
}

func remedy(output string) string {
	if strings.Contains(output, "Could not get lock") {
		return "another program is installing packages: wait until it ends, and run the same command again"
	}
	return "check that a package mirror can be reached (/etc/apt/sources.list, 'apt-get update'), or install the packages by hand"
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
