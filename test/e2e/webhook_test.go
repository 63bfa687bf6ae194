//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// lost is a push that Belgium is not told of.
var lost struct {
	gitops checkout
	pushed time.Time
}

const belgianValues = "infrastructure/cluster-gcp/values-overrides.yaml"

// testLoseWebhook has the forge tell Belgium nothing, and pushes a change for it. What makes
// up for that takes minutes: other parts go on meanwhile.
func testLoseWebhook(t *testing.T) {
	setBelgianHook(t, false)
	// It outlives this part.
	dir, err := os.MkdirTemp("", "omnivision-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	lost.gitops = checkout{dir, "omnivision-gitops"}
	lost.gitops.clone(t)
	lost.pushed = lost.gitops.edit(t, belgianValues, func(s string) string { return strings.TrimRight(s, "\n") + "\nui:\n  replicas: 3\n" })
}

// testLostWebhookIsMadeUpFor waits for Argo CD's own look: two minutes and half a minute of
// jitter, two more for which it believes what it knows of the branch, and the time of a sync.
func testLostWebhookIsMadeUpFor(t *testing.T) {
	replicas := func(want string) func() error {
		return func() error {
			if got := kubectl(t, "cluster-gcp", "get", "rollout", "-n", "omnivision", "-l", "app.kubernetes.io/component=ui", "-o", "jsonpath={.items[*].spec.replicas}"); got != want {
				return fmt.Errorf("there are %s replicas, want %s", got, want)
			}
			return nil
		}
	}
	const limit = 5 * time.Minute
	eventually(t, "Belgium to find the push by itself", limit-time.Since(lost.pushed), replicas("3"))
	// Nothing else was synced there since.
	synced, err := time.Parse(time.RFC3339, kubectl(t, "cluster-gcp", "get", "application", "omnivision-platform", "-n", "argocd", "-o", "jsonpath={.status.operationState.finishedAt}"))
	if err != nil {
		t.Fatal(err)
	}
	took := synced.Sub(lost.pushed)
	t.Logf("push to applied without a webhook: %s", took.Round(time.Second))
	if took < 0 || took > limit {
		t.Errorf("the sync of the push ended %s after it", took)
	}
	setBelgianHook(t, true)
	lost.gitops.run(t, "pull", "--quiet", "--rebase", "origin", "main")
	lost.gitops.edit(t, belgianValues, func(s string) string { return strings.Replace(s, "\nui:\n  replicas: 3\n", "\n", 1) })
	eventually(t, "the replicas of before", 90*time.Second, replicas("2"))
	if err := os.RemoveAll(lost.gitops.dir); err != nil {
		t.Error(err)
	}
}

func setBelgianHook(t *testing.T, active bool) {
	t.Helper()
	var hooks []struct {
		ID     int64
		Config struct{ URL string }
	}
	if err := forgeAPI(t, http.MethodGet, "omnivision-gitops/hooks", nil, &hooks); err != nil {
		t.Fatal(err)
	}
	if len(hooks) != len(regions) {
		t.Fatalf("the forge has %d webhooks", len(hooks))
	}
	// Their ports are in the order of the clusters.
	slices.SortFunc(hooks, func(a, b struct {
		ID     int64
		Config struct{ URL string }
	}) int {
		return strings.Compare(a.Config.URL, b.Config.URL)
	})
	if err := forgeAPI(t, http.MethodPatch, fmt.Sprintf("omnivision-gitops/hooks/%d", hooks[1].ID), map[string]bool{"active": active}, nil); err != nil {
		t.Fatal(err)
	}
}
