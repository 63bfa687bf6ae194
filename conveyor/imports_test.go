package conveyor_test

import (
	"os/exec"
	"strings"
	"testing"
)

// What runs in CI knows nothing of the rehearsal, and what only decides does not link
// what builds.
func TestImportsGoOneWay(t *testing.T) {
	for pattern, forbidden := range map[string][]string{
		"./...":       {"github.com/omnivision/omnivision/localfleet"},
		"./verify":    {"github.com/moby/buildkit", "helm.sh/helm", "github.com/omnivision/omnivision/conveyor/build", "github.com/omnivision/omnivision/conveyor/sign"},
		"./referrers": {"github.com/moby/buildkit", "helm.sh/helm", "github.com/sigstore"},
		"./propose":   {"github.com/moby/buildkit", "helm.sh/helm", "github.com/sigstore"},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", pattern).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", pattern, err)
		}
		for pkg := range strings.Lines(string(out)) {
			for _, f := range forbidden {
				if strings.HasPrefix(strings.TrimSpace(pkg), f) {
					t.Errorf("%s imports %s", pattern, pkg)
				}
			}
		}
	}
}
