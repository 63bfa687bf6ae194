package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/internal/buildcontext"
)

func TestTheBuildContextHoldsEveryPackageOfTheImage(t *testing.T) {
	list, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	buildcontext.Check(t, strings.Fields(string(list)))
}
