//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkout is a clone of a repository on the forge, whose pushes are an administrator's.
type checkout struct{ dir, repository string }

// clone clones the GitOps repository.
func clone(t *testing.T) checkout {
	t.Helper()
	g := checkout{t.TempDir(), "omnivision-gitops"}
	g.clone(t)
	return g
}

func (g checkout) clone(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g.run(t, "clone", "--quiet", forgeURL+"/omnivision/"+g.repository+".git", ".")
	g.run(t, "config", "user.name", "An operator")
	g.run(t, "config", "user.email", "operator@omnivision.invalid")
}

func (g checkout) run(t *testing.T, args ...string) string {
	t.Helper()
	password, err := os.ReadFile(adminPassword(t))
	if err != nil {
		t.Fatal(err)
	}
	basic := base64.StdEncoding.EncodeToString([]byte("omnivision-admin:" + strings.TrimSpace(string(password))))
	cmd := exec.Command("git", args...)
	cmd.Dir = g.dir
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic "+basic)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func adminPassword(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/var/lib/omnivision/forge/*/admin-password")
	if err != nil || len(found) != 1 {
		t.Fatalf("the forge's password: %v, %v", found, err)
	}
	return found[0]
}

// edit rewrites a file, commits it and pushes; it returns when the push is through.
func (g checkout) edit(t *testing.T, file string, change func(string) string) time.Time {
	t.Helper()
	g.change(t, file, change)
	g.run(t, "commit", "--quiet", "--all", "--message", "Change "+file)
	begin := time.Now()
	g.run(t, "push", "--quiet", "origin", "main")
	return begin
}

// change rewrites a file of the working tree.
func (g checkout) change(t *testing.T, file string, change func(string) string) {
	t.Helper()
	path := filepath.Join(g.dir, file)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(data))), 0o644); err != nil {
		t.Fatal(err)
	}
}

// belgium is everything of the other region that a change must not touch.
func belgium(t *testing.T) string {
	t.Helper()
	apps := kubectl(t, "cluster-gcp", "get", "applications", "-n", "argocd", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.sync.revision} {.status.sync.revisions}{"\n"}{end}`)
	objects := kubectl(t, "cluster-gcp", "get", "rollouts,services,configmaps,networkpolicies,pods", "-n", "omnivision", "-o",
		`jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation}{"\n"}{end}`)
	return apps + objects
}

func testOregonOnlyChange(t *testing.T) {
	g := clone(t)
	untouched := belgium(t)
	for i, replicas := range []string{"3", "2", "3"} {
		// It watches from before the push on. 90 s are well before the poll of three
		// minutes: it is the webhook that brings the change.
		applied := make(chan error, 1)
		go func() {
			_, err := try(t, "kubectl", "--cluster", "cluster-aws", "--", "wait", "rollout", "-n", "omnivision", "-l", "app.kubernetes.io/component=ui",
				"--for=jsonpath={.spec.replicas}="+replicas, "--timeout=90s")
			applied <- err
		}()
		begin := g.edit(t, "infrastructure/cluster-aws/values-overrides.yaml", func(s string) string {
			head, _, _ := strings.Cut(s, "\nui:")
			return strings.TrimRight(head, "\n") + "\nui:\n  replicas: " + replicas + "\n"
		})
		if err := <-applied; err != nil {
			t.Fatalf("replicas are not %s in Oregon: %v", replicas, err)
		}
		t.Logf("push %d to applied in Oregon: %.1f s", i+1, time.Since(begin).Seconds())
	}
	if now := belgium(t); now != untouched {
		t.Errorf("Belgium was touched:\nbefore\n%s\nafter\n%s", untouched, now)
	}
}

func testBrokenCommit(t *testing.T) {
	g := clone(t)
	const file = "infrastructure/cluster-aws/values-overrides.yaml"
	var whole string
	g.edit(t, file, func(s string) string {
		whole = s
		return s + "\nglobal: [this is\n  not: yaml\n"
	})
	eventually(t, "status names the broken file and line", time.Minute, func() error {
		for _, problem := range status(t).Problems {
			if strings.Contains(problem, file+":") {
				t.Logf("status says: %s", problem)
				return nil
			}
		}
		return fmt.Errorf("problems: %v", status(t).Problems)
	})
	if _, _, err := generate(regions[0].ui); err != nil {
		t.Errorf("Oregon stopped working after a broken commit: %v", err)
	}
	g.edit(t, file, func(string) string { return whole })
	eventually(t, "the fix recovers Oregon", 5*time.Minute, func() error {
		return healthy(t)
	})
}

// healthy says what of the fleet is not as it should be.
func healthy(t *testing.T) error {
	t.Helper()
	s := status(t)
	bad := append([]string{}, s.Problems...)
	for _, cluster := range s.Clusters {
		if cluster.Error != "" {
			bad = append(bad, cluster.Error)
		}
		for _, app := range cluster.Applications {
			if !app.OK() {
				bad = append(bad, fmt.Sprintf("%s: %s is %s, %s: %s", cluster.Name, app.Name, app.Sync, app.Health, app.Message))
			}
		}
		if len(cluster.Applications) == 0 {
			bad = append(bad, cluster.Name+" has no Applications")
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s", strings.Join(bad, "; "))
	}
	return nil
}
