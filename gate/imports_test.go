package gate_test

import (
	"os/exec"
	"strings"
	"testing"
)

// What decides in a cluster neither builds nor renders nor scans, and knows nothing of the rehearsal.
func TestGateImportsNothingThatBuildsOrRenders(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for pkg := range strings.Lines(string(out)) {
		for _, forbidden := range []string{
			"github.com/omnivision/omnivision/localfleet", "github.com/omnivision/omnivision/conveyor/sign", "github.com/omnivision/omnivision/conveyor/build",
			"helm.sh/helm", "github.com/moby/buildkit", "github.com/aquasecurity/trivy", "github.com/sigstore/sigstore-go/pkg/testing",
		} {
			if strings.HasPrefix(strings.TrimSpace(pkg), forbidden) {
				t.Errorf("the gate imports %s", pkg)
			}
		}
	}
}
