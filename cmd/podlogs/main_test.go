package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/podlogs"
)

func TestReadinessSaysWhatIsMissing(t *testing.T) {
	registry := prometheus.NewRegistry()
	driver, err := podlogs.New(podlogs.Config{NodeName: "n", LogDir: t.TempDir()}, registry)
	if err != nil {
		t.Fatal(err)
	}
	handler := admin(driver, registry)
	for path, want := range map[string]struct {
		code int
		says string
	}{
		"/healthz": {http.StatusOK, "ok"},
		"/readyz":  {http.StatusServiceUnavailable, "kubelet has not registered"},
		"/metrics": {http.StatusOK, "podlogs_registered 0"},
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want.code || !strings.Contains(w.Body.String(), want.says) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestProgramServesUntilItIsToldToStop(t *testing.T) {
	dir, err := os.MkdirTemp("", "podlogs") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Join(dir, "plugins_registry"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop() // it starts, finds that it is to stop, and takes its sockets away
	args := []string{"--node", "n", "--log-dir", t.TempDir(), "--kubelet-dir", dir, "--listen", "127.0.0.1:0"}
	if err := run(ctx, args, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "plugins_registry", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	for _, wrong := range [][]string{{"more"}, {"--node", ""}, append(args, "--listen", "nowhere:x")} {
		if err := run(t.Context(), wrong, &bytes.Buffer{}); err == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
}

// The image is built from an allow-list. A package that is missing from it would break the build only where images are
// built.
func TestTheBuildContextHoldsEveryPackageOfTheImage(t *testing.T) {
	const module = "github.com/omnivision/omnivision/"
	list, err := os.ReadFile("Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	packages, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(packages)) {
		if dir, ours := strings.CutPrefix(pkg, module); ours && !strings.Contains(string(list), "!"+dir+"\n") {
			t.Errorf("package %s is not in the build context", pkg)
		}
	}
}
