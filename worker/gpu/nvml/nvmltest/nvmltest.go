// Package nvmltest compiles a small libnvidia-ml.so.1 and runs a test again in
// a process that loads it, so that go-nvml and the dynamic linker do what they
// do on a node with GPUs. What the library pretends is documented in
// testdata/libnvidia-ml.c.
package nvmltest

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed testdata/libnvidia-ml.c
var source []byte

// UUIDs of the library's GPUs.
const (
	GPU0 = "GPU-fake-0"
	GPU1 = "GPU-fake-1"
)

const inside = "OMNIVISION_TEST_NVML"

// Library compiles the library and returns its folder. Without gcc the test is
// skipped, except in CI, where it must not be.
func Library(t testing.TB, flags ...string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	switch {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatalf("compiling the fake libnvidia-ml.so.1: %v; install gcc and libc6-dev", err)
	case err != nil:
		t.Skipf("needs gcc for a fake libnvidia-ml.so.1: %v", err)
	}
	dir := t.TempDir()
	code := filepath.Join(dir, "libnvidia-ml.c")
	if err := os.WriteFile(code, source, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"}, flags...)
	args = append(args, "-o", filepath.Join(dir, "libnvidia-ml.so.1"), code)
	if out, err := exec.CommandContext(t.Context(), gcc, args...).CombinedOutput(); err != nil {
		t.Fatalf("compiling the fake libnvidia-ml.so.1: %v\n%s", err, out)
	}
	return dir
}

// Inside says whether this is the process that Run started.
func Inside() bool { return os.Getenv(inside) != "" }

// Run runs the calling top-level test again with LD_LIBRARY_PATH set to dir:
// the dynamic linker reads that when a process starts and not later.
func Run(t *testing.T, dir string, env ...string) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), inside+"=1", "LD_LIBRARY_PATH="+dir), env...)
	out, err := cmd.CombinedOutput()
	if err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()) {
		t.Skip(string(out))
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("with the fake libnvidia-ml.so.1: %v\n%s", err, out)
	}
}
