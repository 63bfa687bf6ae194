package steward_test

import (
	"os/exec"
	"strings"
	"testing"
)

// The protocol knows no forge's software, no Kubernetes and no renderer; the program in the
// cluster knows nothing of the rehearsal.
func TestImportsGoOneWay(t *testing.T) {
	const own = "github.com/omnivision/omnivision/"
	heavy := []string{"helm.sh/helm", "github.com/moby/buildkit", "github.com/aquasecurity", "github.com/sigstore", own + "localfleet"}
	for pattern, forbidden := range map[string][]string{
		".":              append([]string{"k8s.io/client-go", own + "forge/gitea", own + "forge/github", own + "steward/"}, heavy...),
		"./gitops":       append([]string{"k8s.io/client-go", own + "forge/gitea", own + "forge/github"}, heavy...),
		"./observe":      append([]string{own + "steward/gitops"}, heavy...),
		"../cmd/steward": heavy,
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
