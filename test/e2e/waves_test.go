//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// testWaves goes on with that release: when it has soaked in Oregon, the steward
// proposes it to Belgium and merges that by itself, and the commit that was pushed says so.
func testWaves(t *testing.T) {
	g := clone(t)
	g.edit(t, "fleet.yaml", func(s string) string {
		return strings.Replace(strings.Replace(s, "soak: 30m", "soak: 10s", 1), "autoMerge: []", "autoMerge: [promote]", 1)
	})
	good := rolling.digest
	if good == "" {
		t.Fatal("nothing is being released: run it after CanaryShare")
	}
	begin := time.Now()
	var pr listedPull
	eventually(t, "the steward's pull request for Belgium, merged", 4*time.Minute, func() (err error) {
		if pr, err = newestPull(t, "release/"+workerApp+"/wave-2"); err != nil {
			return err
		}
		if !strings.Contains(pr.Body, good) || !pr.Merged {
			return fmt.Errorf("the newest is %d, merged: %t", pr.Number, pr.Merged)
		}
		return nil
	})
	if !strings.Contains(pr.Body, "Wave before: `cluster-aws` ran it without a fault for 10s") {
		t.Errorf("the pull request does not say that it soaked:\n%s", pr.Body)
	}
	runs(t, "cluster-gcp", good)
	source := regexp.MustCompile("Source commit: `([0-9a-f]{40})`").FindStringSubmatch(pr.Body)
	if source == nil {
		t.Fatalf("the pull request names no source commit:\n%s", pr.Body)
	}
	eventually(t, "the pushed commit to say that it is deployed", 2*time.Minute, func() error {
		return says(t, "omnivision", source[1], "omnivision/"+workerApp, "success", "Deployment successful: ")
	})
	for cluster, want := range map[string][2]string{
		"cluster-aws": {"success", "soaked: "}, "cluster-gcp": {"pending", "healthy: "}, // which soaks for half an hour
	} {
		eventually(t, "the pushed commit's status of "+cluster, 2*time.Minute, func() error {
			return says(t, "omnivision", source[1], "omnivision/"+workerApp+"/"+cluster, want[0], want[1])
		})
	}
	t.Logf("from the end of Oregon's canary to everywhere: %.0f s", time.Since(begin).Seconds())
	eventually(t, "the release that was overtaken to be told so", time.Minute, func() error {
		return says(t, "omnivision-gitops", overtaken.commit, "omnivision/"+workerApp+"/"+rollingCluster, "success", "superseded: ")
	})
	neverIn(t, g, "cluster-gcp", overtaken.digest)
}

// condemned is what testAbortHealsGit has taken back.
var condemned struct{ digest, branch string }

// neverIn holds that Git never wanted an image in a cluster, and that it never started there.
func neverIn(t *testing.T, g checkout, cluster, digest string) {
	t.Helper()
	if found := g.run(t, "log", "--format=%H", "-S"+digest, "--", "apps/"+workerApp+"/"+cluster+".yaml"); found != "" {
		t.Errorf("Git wanted %s in %s: %s", digest, cluster, found)
	}
	if sets := kubectl(t, cluster, "get", "replicasets", "-n", "omnivision", "-o", "jsonpath={.items[*].spec.template.spec.containers[*].image}"); strings.Contains(sets, digest) {
		t.Errorf("%s has started %s", cluster, digest)
	}
}

// testForgeDown lifts the quarantine and releases the image again, as people do who believe that
// it was the driver. Its canary is aborted while the forge is down: the answer comes when the
// forge is back. All the while Oregon's steward is killed again and again: the end is the same.
func testForgeDown(t *testing.T) {
	const cluster, quarantine, file = "cluster-aws", "components/policies/manifests/quarantine.yaml", "apps/" + workerApp + "/cluster-aws.yaml"
	if condemned.digest == "" {
		t.Fatal("nothing was condemned before: run it after AbortHealsGit")
	}
	good := runningWorker(t, cluster)
	g := clone(t)
	earlier := func(path string) string { // as it was before the image came into it
		commits := strings.Fields(g.run(t, "log", "--reverse", "--format=%H", "-S"+condemned.digest, "--", path))
		if len(commits) == 0 {
			t.Fatalf("%s never named %s", path, condemned.digest)
		}
		return commits[0]
	}
	lifted, bad := g.run(t, "show", earlier(quarantine)+"^:"+quarantine), g.run(t, "show", earlier(file)+":"+file)
	g.edit(t, "fleet.yaml", func(s string) string {
		return strings.Replace(s, "autoMerge: [promote]", "autoMerge: [revert, promote]", 1)
	})
	allKilled := killStewards(t, cluster)
	g.edit(t, quarantine, func(string) string { return lifted + "\n" })
	g.edit(t, file, func(string) string { return bad + "\n" })
	eventually(t, "the condemned worker in Oregon's Rollout again", 2*time.Minute, func() error {
		if now := runningWorker(t, cluster); !strings.HasSuffix(now, condemned.digest) {
			return fmt.Errorf("it names %s", now)
		}
		return nil
	})
	before, err := newestPull(t, condemned.branch)
	if err != nil {
		t.Fatal(err)
	}
	tripCanary(t, cluster, func() { killDaemon(t, "gitea") })
	awaitAbort(t, cluster)
	begin := time.Now()
	omnivision(t, "up") // ends when the Rollout is whole again: the steward merges its answer
	t.Logf("up with an aborted canary: %.0f s", time.Since(begin).Seconds())
	allKilled()
	eventually(t, "the answer to the abort, merged", 3*time.Minute, func() error {
		pr, err := newestPull(t, condemned.branch)
		if err != nil {
			return err
		}
		if pr.Number == before.Number || !pr.Merged {
			return fmt.Errorf("the newest pull request is %d, merged: %t", pr.Number, pr.Merged)
		}
		return nil
	})
	eventually(t, "Oregon to be healthy on the good worker", 3*time.Minute, func() error {
		if now := runningWorker(t, cluster); now != good {
			return fmt.Errorf("Git still names %s", now)
		}
		return healthy(t)
	})
	g.run(t, "pull", "--quiet", "--rebase", "origin", "main")
	list, err := os.ReadFile(filepath.Join(g.dir, quarantine))
	if err != nil || strings.Count(string(list), condemned.digest) != 1 {
		t.Errorf("the quarantine does not name %s once: %v\n%s", condemned.digest, err, list)
	}
	neverIn(t, g, "cluster-gcp", condemned.digest)
	answers, err := pullsOf(t, condemned.branch)
	if err != nil {
		t.Fatal(err)
	}
	answers = slices.DeleteFunc(answers, func(pr listedPull) bool { return pr.Number <= before.Number })
	if len(answers) != 1 {
		t.Errorf("the abort was answered by %d pull requests, want one: %v", len(answers), answers)
	}
}

// awaitAbort waits until a canary is aborted.
func awaitAbort(t *testing.T, cluster string) {
	t.Helper()
	eventually(t, "the canary's abort", 5*time.Minute, func() error {
		if state := kubectl(t, cluster, "get", "rollout", workerRollout, "-n", "omnivision", "-o", "jsonpath={.status.abort} {.status.message}"); !strings.HasPrefix(state, "true") {
			return fmt.Errorf("its state is %q", state)
		}
		return nil
	})
}

type listedPull struct {
	pullRequest
	Merged bool
	URL    string `json:"html_url"`
}

// newestPull finds the newest pull request of a branch of the GitOps repository, open or not.
func newestPull(t *testing.T, branch string) (listedPull, error) {
	t.Helper()
	all, err := pullsOf(t, branch)
	if err == nil && len(all) == 0 {
		err = errors.New("no pull request was ever opened from " + branch)
	}
	if err != nil {
		return listedPull{}, err
	}
	return all[0], nil
}

// pullsOf lists the pull requests of a branch of the GitOps repository, the newest first.
func pullsOf(t *testing.T, branch string) ([]listedPull, error) {
	t.Helper()
	var all []listedPull
	err := forgeAPI(t, http.MethodGet, "omnivision-gitops/pulls?state=all&sort=newest&limit=50", nil, &all)
	return slices.DeleteFunc(all, func(pr listedPull) bool { return pr.Head.Ref != branch }), err
}

// says reports whether the newest status of a context of a commit has a state, and begins so.
func says(t *testing.T, repository, commit, name, state, begins string) error {
	t.Helper()
	var statuses []struct{ Context, Status, Description string }
	if err := forgeAPI(t, http.MethodGet, repository+"/commits/"+commit+"/statuses?sort=recentupdate&limit=50", nil, &statuses); err != nil {
		return err
	}
	for _, s := range statuses {
		if s.Context != name {
			continue
		}
		if s.Status == state && strings.HasPrefix(s.Description, begins) {
			return nil
		}
		return fmt.Errorf("%s says %s: %s", name, s.Status, s.Description)
	}
	return fmt.Errorf("%.8s has no status %s", commit, name)
}
