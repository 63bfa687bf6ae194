package preflight

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
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

// Install installs Debian packages, after reading the lists anew.
func Install(ctx context.Context, packages []string) error {
	for _, args := range [][]string{
		{"update"},
		append([]string{"install", "--yes", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s\ncheck that a package mirror can be reached (/etc/apt/sources.list), or install them by hand",
				strings.Join(args, " "), err, lastLines(string(out), 5))
		}
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
