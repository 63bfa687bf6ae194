// Package buildcontext is for the tests of images: each is built from an allow-list of folders,
// and what is missing from it would break the build only where images are built.
package buildcontext

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/omnivision/omnivision/"

// Check reports what of these packages, as `go list -deps` names them, and of the module's own
// files the Dockerfile.dockerignore in the test's folder leaves out.
func Check(t *testing.T, packages []string) {
	t.Helper()
	allowed := allowList(t, "Dockerfile.dockerignore")
	for _, pkg := range packages {
		dir, ours := strings.CutPrefix(pkg, module)
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
	defer f.Close() //nolint:errcheck // only read
	excluding := false
	for s := bufio.NewScanner(f); s.Scan(); {
		dir, allows := strings.CutPrefix(s.Text(), "!")
		if allows {
			allowed = append(allowed, dir)
		}
		if allows && excluding {
			t.Errorf("%s allows %s after what it leaves out, of which the last line has the say: tests and their data come along", path, dir)
		}
		excluding = excluding || strings.HasPrefix(s.Text(), "**/")
	}
	return allowed
}

func within(path string, dirs []string) bool {
	for ; path != "."; path = filepath.Dir(path) {
		if slices.Contains(dirs, path) {
			return true
		}
	}
	return false
}
