package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/internal/buildcontext"
)

func TestTheBuildContextHoldsEveryPackageOfTheImage(t *testing.T) {
	for target, cgo := range targets {
		packages := dependencies(t, cgo)
		buildcontext.Check(t, packages)
		if has := slices.Contains(packages, "github.com/NVIDIA/go-nvml/pkg/nvml"); has != (target == "worker") {
			t.Errorf("target %s has NVML: %t", target, has)
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
		if _, ours := stages[image]; !ours && image != "scratch" && image != "${GO_IMAGE}" && image != "${BASE_IMAGE}" {
			t.Errorf("the base image of %s is none that the head of the file pins: %s", name, image)
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
