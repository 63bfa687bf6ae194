package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The image is built from an allow-list. A package that is missing from it
// would break the build only where images are built.
func TestTheBuildContextHoldsEveryPackageOfTheImage(t *testing.T) {
	const module = "github.com/omnivision/omnivision/"
	list, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	allowed := allowList(t, "Dockerfile.dockerignore")
	for pkg := range strings.Lines(string(list)) {
		dir, ours := strings.CutPrefix(strings.TrimSpace(pkg), module)
		if ours && !within(dir, allowed) {
			t.Errorf("package %s is not in the build context; add !%s to Dockerfile.dockerignore", pkg, dir)
		}
	}
	for _, file := range []string{"go.mod", "go.sum"} {
		if !within(file, allowed) {
			t.Errorf("%s is not in the build context", file)
		}
	}
}

func allowList(t *testing.T, path string) (allowed []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if dir, ok := strings.CutPrefix(s.Text(), "!"); ok {
			allowed = append(allowed, dir)
		}
	}
	return allowed
}

func within(path string, dirs []string) bool {
	for ; path != "."; path = filepath.Dir(path) {
		for _, d := range dirs {
			if path == d {
				return true
			}
		}
	}
	return false
}
