package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The image is built from an allow-list. A package that is missing from it
// would break the build only where images are built.
func TestTheBuildContextHoldsEveryPackageOfTheImage(t *testing.T) {
	const module = "github.com/omnivision/omnivision/"
	allowed := allowList(t, "Dockerfile.dockerignore")
	for target, cgo := range targets {
		packages := dependencies(t, cgo)
		for _, pkg := range packages {
			dir, ours := strings.CutPrefix(pkg, module)
			if ours && !within(dir, allowed) {
				t.Errorf("package %s of target %s is not in the build context; add !%s to Dockerfile.dockerignore", pkg, target, dir)
			}
		}
		if has := slices.Contains(packages, "github.com/NVIDIA/go-nvml/pkg/nvml"); has != (target == "worker") {
			t.Errorf("target %s has NVML: %t", target, has)
		}
	}
	for _, file := range []string{"go.mod", "go.sum"} {
		if !within(file, allowed) {
			t.Errorf("%s is not in the build context", file)
		}
	}
}

// targets of the Dockerfile, and CGO_ENABLED of each.
var targets = map[string]string{"worker": "1", "worker-static": "0"}

func dependencies(t *testing.T, cgo string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED="+cgo)
	list, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list with CGO_ENABLED=%s: %v", cgo, err)
	}
	return strings.Fields(string(list))
}

func TestTheDockerfilesTargetsAreWhatTheirNamesSay(t *testing.T) {
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	stages := map[string]string{}
	last := ""
	for _, stage := range regexp.MustCompile(`(?m)^FROM `).Split(string(text), -1)[1:] {
		header, body, _ := strings.Cut(stage, "\n")
		from, name, _ := strings.Cut(header, " AS ")
		image := from[strings.LastIndex(from, " ")+1:]
		stages[name], last = image+"\n"+body, name
		if _, ours := stages[image]; !ours && image != "scratch" && !strings.Contains(image, "_DIGEST:+@") {
			t.Errorf("the base image of %s cannot be pinned by digest: %s", name, image)
		}
	}
	if last != "worker" {
		t.Errorf("the default target is %q, want worker: the one that counts real GPUs' errors", last)
	}
	for name, parts := range map[string][]string{
		"worker":        {"BASE_IMAGE", "--from=build /out/worker", "USER 65532:65532", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"},
		"worker-static": {"scratch", "--from=build-static /out/worker", "USER 65532:65532"},
		"build":         {"CGO_ENABLED=1", "-Wl,-z,lazy"},
		"build-static":  {"CGO_ENABLED=0"},
	} {
		for _, part := range parts {
			if !strings.Contains(stages[name], part) {
				t.Errorf("stage %s lacks %s", name, part)
			}
		}
	}
	if strings.Contains(string(text), "NVIDIA_VISIBLE_DEVICES=") {
		t.Error("the image claims GPUs that it was not granted")
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
