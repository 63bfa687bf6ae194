//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	workerApp        = "omnivision-worker"
	workflowIdentity = "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"
	workflowIssuer   = "https://token.actions.githubusercontent.com"
)

// released is the worker that the conveyor's parts take through the fleet.
var released struct {
	source  checkout
	digest  string
	version string
}

// worker images of the two regions, without a tag.
var workerRepositories = map[string]string{
	"cluster-aws": "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker",
	"cluster-gcp": "europe-west1-docker.pkg.dev/omnivision/images/omnivision-worker",
}

// inside runs a command that sees the fleet from inside, in a directory.
func inside(t *testing.T, dir string, command ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root(t), "bin", "omnivision"), append([]string{"inside", "--source", root(t), "--"}, command...)...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	return out.String(), err
}

func mustInside(t *testing.T, dir string, command ...string) string {
	t.Helper()
	out, err := inside(t, dir, command...)
	if err != nil {
		t.Fatalf("inside: %s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return out
}

// forgeAPI asks the forge as its administrator.
func forgeAPI(t *testing.T, method, path string, body, answer any) error {
	t.Helper()
	password, err := os.ReadFile(adminPassword(t))
	if err != nil {
		return err
	}
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, forgeURL+"/api/v1/repos/omnivision/"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	request.SetBasicAuth("omnivision-admin", strings.TrimSpace(string(password)))
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, said)
	}
	if answer == nil {
		return nil
	}
	if plain, ok := answer.(*text); ok {
		*plain = text(said)
		return nil
	}
	return json.Unmarshal(said, answer)
}

type pullRequest struct {
	Number int
	Body   string
	Head   struct {
		SHA string
		Ref string
	}
}

// openPull finds the open pull request of a branch of the GitOps repository.
func openPull(t *testing.T, branch string) (pullRequest, error) {
	var all []pullRequest
	if err := forgeAPI(t, http.MethodGet, "omnivision-gitops/pulls?state=open&limit=50", nil, &all); err != nil {
		return pullRequest{}, err
	}
	for _, pr := range all {
		if pr.Head.Ref == branch {
			return pr, nil
		}
	}
	return pullRequest{}, fmt.Errorf("no open pull request from %s among %d", branch, len(all))
}

// failedJobs says which run of a workflow failed.
func failedJobs(t *testing.T, repository string) error {
	var runs struct {
		Runs []struct {
			Title, Status, Conclusion string
			ID                        int64
		} `json:"workflow_runs"`
	}
	if err := forgeAPI(t, http.MethodGet, repository+"/actions/runs?limit=20", nil, &runs); err != nil {
		return err
	}
	for _, run := range runs.Runs {
		if run.Conclusion == "failure" {
			return fmt.Errorf("run %d of %s, %q, failed:\n%s", run.ID, repository, run.Title, jobLogs(t, repository, run.ID))
		}
	}
	return nil
}

// jobLogs are the ends of the logs of a run's jobs.
func jobLogs(t *testing.T, repository string, run int64) string {
	var list struct{ Jobs []struct{ ID int64 } }
	if err := forgeAPI(t, http.MethodGet, fmt.Sprintf("%s/actions/runs/%d/jobs", repository, run), nil, &list); err != nil {
		return err.Error()
	}
	var all strings.Builder
	for _, job := range list.Jobs {
		var log text
		if err := forgeAPI(t, http.MethodGet, fmt.Sprintf("%s/actions/jobs/%d/logs", repository, job.ID), nil, &log); err != nil {
			fmt.Fprintln(&all, err)
		}
		all.WriteString(string(log[max(0, len(log)-4000):]) + "\n")
	}
	return all.String()
}

// text is an answer that is no JSON.
type text string

// merge waits for the plan, which main demands, and merges. Its head may move meanwhile: a
// steward keeps it on top of main.
func merge(t *testing.T, pr pullRequest) {
	t.Helper()
	path := fmt.Sprintf("omnivision-gitops/pulls/%d", pr.Number)
	eventually(t, fmt.Sprintf("the merge of pull request %d", pr.Number), 5*time.Minute, func() error {
		if err := forgeAPI(t, http.MethodGet, path, nil, &pr); err != nil {
			return err
		}
		if err := planned(t, pr); err != nil {
			return err
		}
		return forgeAPI(t, http.MethodPost, path+"/merge", map[string]any{"Do": "squash", "head_commit_id": pr.Head.SHA}, nil)
	})
}

// planned reports whether the plan of a pull request's head is green.
func planned(t *testing.T, pr pullRequest) error {
	t.Helper()
	var statuses []struct{ Context, Status, Description string }
	if err := forgeAPI(t, http.MethodGet, "omnivision-gitops/commits/"+pr.Head.SHA+"/statuses", nil, &statuses); err != nil {
		return err
	}
	for _, s := range statuses {
		if s.Context == "omnivision/plan" && s.Status == "success" {
			return nil
		}
	}
	return fmt.Errorf("omnivision/plan is not green: %v", statuses)
}

// runs waits until every worker of a cluster is of the digest. The canary's pauses are
// skipped as an operator would.
func runs(t *testing.T, cluster, digest string) {
	t.Helper()
	const rollout = "omnivision-platform-worker"
	eventually(t, digest+" in the Rollout of "+cluster, 2*time.Minute, func() error {
		image := kubectl(t, cluster, "get", "rollout", rollout, "-n", "omnivision", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
		if !strings.HasSuffix(image, "@"+digest) {
			return fmt.Errorf("it names %s", image)
		}
		return nil
	})
	kubectl(t, cluster, "patch", "rollout", rollout, "-n", "omnivision", "--subresource=status", "--type=merge", "-p", `{"status":{"promoteFull":true}}`)
	// Pods of before a reboot may still be listed: what counts is the Rollout.
	eventually(t, "all workers of "+cluster, 3*time.Minute, func() error {
		state := strings.Fields(kubectl(t, cluster, "get", "rollout", rollout, "-n", "omnivision", "-o",
			"jsonpath={.status.stableRS} {.status.currentPodHash} {.spec.replicas} {.status.updatedReplicas} {.status.availableReplicas}"))
		if len(state) != 5 || state[0] != state[1] || state[2] != state[3] || state[2] != state[4] {
			return fmt.Errorf("stable, current, wanted, updated, available: %v", state)
		}
		return nil
	})
}

// testPushReleases edits the worker and pushes: the rest is the workflow's.
func testPushReleases(t *testing.T) {
	released.source = checkout{filepath.Join(os.TempDir(), fmt.Sprintf("omnivision-e2e-%d", os.Getpid())), "omnivision"}
	t.Cleanup(func() {
		if t.Failed() {
			_ = os.RemoveAll(released.source.dir)
		}
	})
	released.source.clone(t)
	begin := released.source.edit(t, "worker/worker.go", func(s string) string { return s + "\n// A change, to be released.\n" })
	released.version = "0.1.0-" + released.source.run(t, "rev-list", "--count", "HEAD")
	var pr pullRequest
	eventually(t, "the pull request of the push", 40*time.Minute, func() (err error) {
		if err := failedJobs(t, "omnivision"); err != nil {
			t.Fatal(err)
		}
		pr, err = openPull(t, "release/"+workerApp+"/wave-1")
		return err
	})
	t.Logf("push to pull request: %s from the start of the push", time.Since(begin).Round(time.Second))
	digest := regexp.MustCompile("`(sha256:[0-9a-f]{64})`").FindStringSubmatch(pr.Body)
	if digest == nil {
		t.Fatalf("the pull request names no digest:\n%s", pr.Body)
	}
	released.digest = digest[1]
	for _, part := range []string{released.version, "0 critical, 0 high", workflowIdentity, "### Plan: 1 of 2 clusters changes", "Untouched: `cluster-gcp`"} {
		if !strings.Contains(pr.Body, part) {
			t.Errorf("the pull request does not say %q:\n%s", part, pr.Body)
		}
	}
	merge(t, pr)
	runs(t, "cluster-aws", released.digest)
	// Signed, scanned, and in Belgium's registry; Git names it there with the next wave only (P32).
	refuses(t, "cluster-gcp", workerRepositories["cluster-gcp"]+"@"+released.digest, "[NotInGit]")
}

// shownRelease is what `release --output json` says.
type shownRelease struct {
	Version string
	shownTime
	Stages []struct {
		Stage string
		Kept  bool
		shownTime
		Steps struct {
			Cached      int
			Run, Failed []string
		}
		Result struct{ Digest string }
	}
}

type shownTime struct {
	Seconds, ToolSeconds, OwnSeconds float64
	ByTool                           map[string]float64
}

func (s shownTime) String() string {
	return fmt.Sprintf("%.2f s, of which tools %.2f s and our own %.2f s (%.1f %% of the tools'); %v", s.Seconds, s.ToolSeconds, s.OwnSeconds, 100*s.OwnSeconds/s.ToolSeconds, s.ByTool)
}

// testReleaseFromShell brings the same commit to the second wave, by hand.
func testReleaseFromShell(t *testing.T) {
	begin := time.Now()
	var shown shownRelease
	out := mustInside(t, released.source.dir, "omnivision", "release", "--app", workerApp, "--wave", "2", "--evidence", filepath.Join(t.TempDir(), "evidence"), "--output", "json")
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, s := range shown.Stages {
		t.Logf("%s: %v", s.Stage, s.shownTime)
	}
	t.Logf("release: %v; with starting the program inside, twice: %.1f s", shown.shownTime, time.Since(begin).Seconds())
	// On a busy machine both are slower alike.
	if shown.OwnSeconds >= 1 || shown.OwnSeconds >= 0.05*shown.ToolSeconds {
		t.Errorf("our own part of a release must be less than a second, and than 5 %% of the tools' time: %v", shown.shownTime)
	}
	for _, tool := range []string{"BuildKit", "Trivy", "Sigstore", "git", "registry", "forge"} {
		if shown.ByTool[tool] == 0 {
			t.Errorf("the release waited for %s, and counted nothing: %v", tool, shown.shownTime)
		}
	}
	if shown.Version != released.version || shown.Stages[0].Result.Digest != released.digest {
		t.Errorf("the shell built %s as %s, the workflow %s as %s", shown.Version, shown.Stages[0].Result.Digest, released.version, released.digest)
	}
	pr, err := openPull(t, "release/"+workerApp+"/wave-2")
	if err != nil {
		t.Fatal(err)
	}
	merge(t, pr)
	runs(t, "cluster-gcp", released.digest)
}

// anotherMachine builds an app by a daemon of its own, which has neither a layer nor a module nor a
// compiled package of the fleet's, on a machine with another name, time zone and umask, and with the
// cache in a registry that is named. A tag that names another image ends it with an error.
const anotherMachine = `
config=$(dirname "${BUILDKIT_HOST#unix://}")/buildkitd.toml
dir=$(mktemp -d "$(sed -n 's/^root = "\(.*\)"$/\1/p' "$config")-another-XXXX")
sed -e "s|^root = .*|root = \"$dir/root\"|" -e "s|unix://[^\"]*|unix://$dir/socket|" "$config" >"$dir/buildkitd.toml"
echo another-machine >/proc/sys/kernel/hostname
export TZ=Pacific/Auckland OTEL_SDK_DISABLED=true
buildkitd --config "$dir/buildkitd.toml" >"$dir/log" 2>&1 &
daemon=$!
trap 'kill "$daemon"; wait "$daemon" || true; rm -rf "$dir"' EXIT
until [ -S "$dir/socket" ]; do kill -0 "$daemon" || { cat "$dir/log" >&2; exit 1; }; sleep 0.1; done
umask 077
omnivision build --app "$0" --build-cache "$1" --buildkit "unix://$dir/socket" --evidence "$dir/evidence" --output json
`

// testAnotherMachine builds the worker of the push again: where nothing of it is cached, and
// then where nothing is but what that machine has left in the registry.
func testAnotherMachine(t *testing.T) {
	// A name of its own: the registry outlives the fleet, and so would what an earlier one built.
	cache := "ghcr.io/omnivision/build-cache:" + strings.TrimPrefix(released.digest, "sha256:")[:12]
	for _, test := range []struct {
		machine  string
		compiles bool
	}{
		{"another machine", true},
		{"one that has its cache", false},
	} {
		out := mustInside(t, released.source.dir, "unshare", "--uts", "sh", "-ec", anotherMachine, workerApp, cache)
		var shown shownRelease
		if err := json.Unmarshal([]byte(out), &shown); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		built := shown.Stages[0]
		t.Logf("%s: %v; %d steps from the cache, run were %q", test.machine, built.shownTime, built.Steps.Cached, built.Steps.Run)
		if got := built.Result.Digest; got != released.digest || built.Kept {
			t.Errorf("%s built %s, the fleet's %s", test.machine, got, released.digest)
		}
		compiled := strings.Contains(strings.Join(built.Steps.Run, "\n"), "go build")
		if compiled != test.compiles || !compiled && built.Steps.Cached == 0 {
			t.Errorf("%s compiled: %t, with %d steps from the cache; what failed: %q", test.machine, compiled, built.Steps.Cached, built.Steps.Failed)
		}
	}
}

// testEvidence verifies what runs by upstream's own programs.
func testEvidence(t *testing.T) {
	tree := clone(t).dir
	chartEvidence(t)
	deployedEvidence(t)
	for cluster, repository := range workerRepositories {
		image := repository + "@" + released.digest
		mustInside(t, root(t), "sh", "-c", `exec cosign verify --trusted-root "$OMNIVISION_TRUSTED_ROOT" --insecure-ignore-sct \
			--certificate-oidc-issuer "$0" --certificate-identity "$1" -a repository="$2" "$3"`, workflowIssuer, workflowIdentity, repository, image)
		mustInside(t, root(t), "sh", "-c", `exec cosign verify-attestation --type slsaprovenance1 --trusted-root "$OMNIVISION_TRUSTED_ROOT" --insecure-ignore-sct \
			--certificate-oidc-issuer "$0" --certificate-identity "$1" "$2"`, workflowIssuer, workflowIdentity, image)
		if _, err := inside(t, root(t), "sh", "-c", `exec cosign verify --trusted-root "$OMNIVISION_TRUSTED_ROOT" --insecure-ignore-sct \
			--certificate-oidc-issuer "$0" --certificate-identity "$1" "$2"`, workflowIssuer, workflowIdentity+"-of-another", image); err == nil {
			t.Errorf("%s: cosign believes another identity", image)
		}
		var verified struct {
			Clusters []struct {
				Cluster    string
				WouldAdmit bool
				Reasons    []string
			}
		}
		out := mustInside(t, root(t), "omnivision", "verify", "--tree", tree, "--output", "json", image)
		if err := json.Unmarshal([]byte(out), &verified); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, verdict := range verified.Clusters {
			if verdict.WouldAdmit != (verdict.Cluster == cluster) {
				t.Errorf("%s: %s would admit it: %t, %v", image, verdict.Cluster, verdict.WouldAdmit, verdict.Reasons)
			}
		}
		if len(verified.Clusters) != len(regions) {
			t.Errorf("%s: verdicts of %d clusters", image, len(verified.Clusters))
		}
	}
}

// deployedEvidence verifies each image of ours that a Pod of either cluster runs: signature and
// provenance of what the Pod names, SBOM and scan of what a node runs of it.
func deployedEvidence(t *testing.T) {
	ours := []string{workerApp, "omnivision-ui", "omnivision-gate", "omnivision-steward", "omnivision-podlogs"}
	runs := func(image string) string {
		at := slices.IndexFunc(ours, func(name string) bool { return strings.Contains(image, "/"+name+":") })
		if at < 0 {
			return ""
		}
		return ours[at]
	}
	deployed, names := map[string]bool{}, map[string]bool{}
	for _, region := range regions {
		for _, image := range strings.Fields(kubectl(t, region.cluster, "get", "pods", "--all-namespaces", "-o", "jsonpath={.items[*].spec.containers[*].image}")) {
			if name := runs(image); name != "" {
				deployed[image], names[name] = true, true
			}
		}
	}
	if len(names) != len(ours) {
		t.Errorf("Pods run %v, want all of %v", names, ours)
	}
	verify := func(command, image string) {
		mustInside(t, root(t), "sh", "-c", `exec cosign `+command+` --trusted-root "$OMNIVISION_TRUSTED_ROOT" --insecure-ignore-sct \
			--certificate-oidc-issuer "$0" --certificate-identity "$1" "$2"`, workflowIssuer, workflowIdentity, image)
	}
	for _, image := range slices.Sorted(maps.Keys(deployed)) {
		repository, digest, pinned := strings.Cut(image, "@")
		if !pinned {
			t.Errorf("%s is deployed without a digest", image)
			continue
		}
		repository = repository[:strings.LastIndex(repository, ":")]
		verify("verify -a repository="+repository, image)
		verify("verify-attestation --type slsaprovenance1", image)
		for _, platform := range platformImages(t, repository, digest) {
			verify("verify-attestation --type cyclonedx", repository+"@"+platform)
			verify("verify-attestation --type vuln", repository+"@"+platform)
		}
		mustInside(t, root(t), "trivy", "image", "--quiet", "--scanners", "vuln", "--severity", "HIGH,CRITICAL", "--exit-code", "1", repository+"@"+digest)
	}
	t.Logf("verified by cosign, and clean by trivy: %s", strings.Join(slices.Sorted(maps.Keys(deployed)), ", "))
}

// platformImages are the images of an index, or the image itself.
func platformImages(t *testing.T, repository, digest string) []string {
	t.Helper()
	host, path, _ := strings.Cut(repository, "/")
	out := mustInside(t, root(t), "curl", "-sSf", "-H", "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json",
		"https://"+host+"/v2/"+path+"/manifests/"+digest)
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal([]byte(out), &index); err != nil {
		t.Fatalf("%s@%s: %v\n%s", repository, digest, err, out)
	}
	if len(index.Manifests) == 0 {
		return []string{digest}
	}
	var all []string
	for _, m := range index.Manifests {
		all = append(all, m.Digest)
	}
	return all
}

// chartEvidence verifies the chart that the clusters run: Up has brought it, and the workflow
// published the same one with its statements.
func chartEvidence(t *testing.T) {
	const repository = "ghcr.io/omnivision/charts/omnivision-platform"
	version := pinnedChart(t)
	digest := strings.TrimSpace(mustInside(t, root(t), "sh", "-c",
		`curl -sSfI -H "Accept: application/vnd.oci.image.manifest.v1+json" "https://$0" | tr -d '\r' | sed -n 's/^[Dd]ocker-[Cc]ontent-[Dd]igest: //p'`,
		strings.Replace(repository, "/", "/v2/", 1)+"/manifests/"+version))
	verify := func(command, identity string) error {
		_, err := inside(t, root(t), "sh", "-c", `exec cosign `+command+` --trusted-root "$OMNIVISION_TRUSTED_ROOT" --insecure-ignore-sct \
			--certificate-oidc-issuer "$0" --certificate-identity "$1" "$2"`, workflowIssuer, identity, repository+"@"+digest)
		return err
	}
	for _, command := range []string{"verify -a repository=" + repository, "verify-attestation --type slsaprovenance1"} {
		// The job of the chart may still wait for those of the images.
		eventually(t, "the chart's statements: cosign "+command, 5*time.Minute, func() error {
			if err := failedJobs(t, "omnivision"); err != nil {
				t.Fatal(err)
			}
			return verify(command, workflowIdentity)
		})
		if err := verify(command, workflowIdentity+"-of-another"); err == nil {
			t.Errorf("cosign %s %s@%s believes another identity", command, repository, digest)
		}
	}
	t.Logf("chart %s of version %s is signed", digest, version)
}

// pinnedChart is the version that Oregon runs.
func pinnedChart(t *testing.T) string {
	t.Helper()
	version := strings.TrimSpace(kubectl(t, "cluster-aws", "get", "application", "omnivision-platform", "-n", "argocd", "-o",
		`jsonpath={.spec.sources[?(@.chart=="omnivision-platform")].targetRevision}`))
	if version == "" {
		t.Fatal("Oregon pins no chart")
	}
	return version
}

// testVulnerableStops gives the worker a dependency with a known HIGH advisory.
func testVulnerableStops(t *testing.T) {
	source := released.source
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(source.dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("cmd/worker/vulnerable.go", "package main\n\nimport _ \"golang.org/x/net/http2\" // CVE-2023-39325 before v0.17.0\n")
	for _, args := range [][]string{
		{"go", "mod", "edit", "-replace", "golang.org/x/net=golang.org/x/net@v0.16.0"},
		{"go", "build", "-mod=mod", "-o", os.DevNull, "./cmd/worker"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = source.dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -gcflags=all=-dwarf=false") // as the Makefile's, whose cache it finds
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	source.run(t, "add", "--all")
	source.run(t, "commit", "--quiet", "--message", "Depend on something vulnerable")
	_, err := inside(t, source.dir, "omnivision", "release", "--app", workerApp, "--evidence", filepath.Join(t.TempDir(), "evidence"))
	var exited *exec.ExitError
	if !errors.As(err, &exited) || exited.ExitCode() != 3 {
		t.Errorf("a vulnerable worker ends with %v, want exit code 3", err)
	}
	if pr, err := openPull(t, "release/"+workerApp+"/wave-1"); err == nil {
		t.Errorf("it was proposed as pull request %d", pr.Number)
	}
	if err := os.RemoveAll(source.dir); err != nil {
		t.Error(err)
	}
}
