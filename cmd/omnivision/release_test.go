package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/release"
)

// sourceCheckout is a repository with what a release reads of its source, and one commit.
func sourceCheckout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{"conveyor/apps.yaml"} {
		content, err := os.ReadFile(filepath.Join("../..", path))
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, path), content, 0o600))
	}
	must(t, os.CopyFS(filepath.Join(dir, "omnivision-gitops"), os.DirFS("../../omnivision-gitops")))
	commitAll(t, dir)
	return dir
}

func TestReleaseSaysWhatItLacks(t *testing.T) {
	t.Setenv(forgeTokenVariable, "")
	dir := sourceCheckout(t)
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"an app":                 {[]string{"release", "--source", dir}, exitFailed, `"app" not set`},
		"a known app":            {[]string{"release", "--source", dir, "--app", "omnivision-wroker"}, exitUsage, "it has omnivision-worker, omnivision-ui"},
		"a checkout":             {[]string{"scan", "--source", t.TempDir(), "--app", "omnivision-ui"}, exitFailed, "no Git checkout"},
		"no wave of a component": {[]string{"release", "--source", dir, "--app", "omnivision-gate", "--wave", "2"}, exitUsage, "leave out wave 2"},
		"an app of the tree":     {[]string{"release", "--source", dir, "--tree", t.TempDir(), "--app", "omnivision-gate"}, exitFailed, "fleet.yaml"},
		"a token":                {[]string{"release", "--source", dir, "--app", "omnivision-ui"}, exitUsage, forgeTokenVariable + " is not set"},
		"a known output":         {[]string{"build", "--source", dir, "--app", "omnivision-ui", "-o", "xml"}, exitUsage, "use text or json"},
		"a BuildKit daemon":      {[]string{"build", "--source", dir, "--app", "omnivision-ui", "--evidence", t.TempDir(), "--buildkit", "unix:///nowhere.sock"}, exitFailed, "run the same command again"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := command(t, test.args...)
			if err == nil || code != test.code || !strings.Contains(err.Error(), test.want) {
				t.Errorf("exit code %d, want %d: %v, want %q\n%s", code, test.code, err, test.want, out)
			}
		})
	}
}

func TestBaseImagesOfTheMachineAreOverriddenByTheFlag(t *testing.T) {
	t.Setenv(baseImagesVariable, "a:1=docker-image://b:1  c:1=/layout")
	f := releaseFlags{baseImages: map[string]string{"c:1": "/other"}}
	got, err := f.bases()
	if err != nil || len(got) != 2 || got["a:1"] != "docker-image://b:1" || got["c:1"] != "/other" {
		t.Errorf("base images are %v, %v", got, err)
	}
	t.Setenv(baseImagesVariable, "a:1")
	if _, err := f.bases(); err == nil || !strings.Contains(err.Error(), baseImagesVariable+` has "a:1"`) {
		t.Errorf("of a name alone: %v", err)
	}
}

func TestBuildCacheIsTheMachinesUnlessTheFlagSaysOtherwise(t *testing.T) {
	t.Setenv(buildCacheVariable, "ghcr.io/omnivision/build-cache:omnivision-worker")
	for want, args := range map[string][]string{
		"ghcr.io/omnivision/build-cache:omnivision-worker": nil,
		"example.com/cache:1":                              {"--build-cache", "example.com/cache:1"},
		"":                                                 {"--build-cache="},
	} {
		var f releaseFlags
		cmd := &cobra.Command{}
		f.add(cmd)
		must(t, cmd.ParseFlags(args))
		if f.cache != want {
			t.Errorf("with %v the cache is %q, want %q", args, f.cache, want)
		}
	}
}

func TestStepsOfABuildAreShownWhereOneWasRun(t *testing.T) {
	raw := json.RawMessage(`{"digest":"sha256:1","repositories":["a","b"]}`)
	made := release.Built{Result: build.Result{Steps: build.Steps{Cached: 2, Run: []string{"[build 3/3] RUN go build"}}}}
	for want, o := range map[string]conveyor.Outcome{
		"sha256:1 in a, b; 2 of 3 steps from the cache": {Made: made},
		"sha256:1 in a, b": {Kept: true},
	} {
		o.Entry = conveyor.Entry{Stage: release.Build, Result: raw}
		if got, err := inOneLine(o); err != nil || got != want {
			t.Errorf("shown is %q, %v, want %q", got, err, want)
		}
	}
}

func TestAComponentThatNoClusterListsIsNotReleasedByAPush(t *testing.T) {
	t.Setenv(forgeTokenVariable, "secret")
	dir := sourceCheckout(t)
	args := func(app string) []string {
		return []string{"build", "--source", dir, "--app", app, "--evidence", t.TempDir(), "--buildkit", "unix:///nowhere.sock", "--if-changed"}
	}
	edit(t, filepath.Join(dir, "omnivision-gitops/components/kustomization.yaml"), "  - gate\n", "")
	gitIn(t, dir, "commit", "-qam", "no gate")
	if out, code, err := command(t, args("omnivision-gate")...); code != 0 || !strings.Contains(out, "no cluster's components have it") {
		t.Errorf("exit code %d: %v\n%s", code, err, out)
	}
	// One that was never released is: this one fails at its Dockerfile, which the checkout of the tests lacks.
	if out, code, err := command(t, args("omnivision-steward")...); code != exitFailed || !strings.Contains(err.Error(), `stage "build"`) {
		t.Errorf("exit code %d: %v\n%s", code, err, out)
	}
}

func TestTimeIsShownWithWhoseItWas(t *testing.T) {
	spent := conveyor.Spent{Total: 62 * time.Second, Tools: 60 * time.Second, ByTool: map[string]time.Duration{"Trivy": 20 * time.Second, "BuildKit": 45 * time.Second}}
	if got, want := showTime(spent).line(), "62.0 s: BuildKit 45.00 s, Trivy 20.00 s; our own 2.00 s, 3.3 % of the tools' 60.0 s"; got != want {
		t.Errorf("shown is %q, want %q", got, want)
	}
	raw, err := json.Marshal(shownStage{Stage: "build", shownTime: showTime(spent)})
	if err != nil || !strings.Contains(string(raw), `"seconds":62,"toolSeconds":60,"ownSeconds":2,"byTool":{"BuildKit":45,"Trivy":20}`) {
		t.Errorf("JSON is %s, %v", raw, err)
	}
}

func TestReleaseRefusesAWorkingTreeWithChanges(t *testing.T) {
	dir := sourceCheckout(t)
	edit(t, filepath.Join(dir, "conveyor/apps.yaml"), "platforms: [linux/amd64, linux/arm64]", "platforms: [linux/amd64]")
	_, code, err := command(t, "build", "--source", dir, "--app", "omnivision-ui", "--evidence", t.TempDir())
	if code != exitUsage || err == nil || !strings.Contains(err.Error(), "commit or stash") {
		t.Errorf("exit code %d: %v", code, err)
	}
}

func TestAppsOfTheTreeComplete(t *testing.T) {
	out, _, err := command(t, "__complete", "release", "--source", sourceCheckout(t), "--app", "")
	must(t, err)
	for _, app := range []string{"omnivision-worker", "omnivision-ui"} {
		if !strings.Contains(out, app) {
			t.Errorf("completion lacks %s:\n%s", app, out)
		}
	}
}

func TestReleaseIfChangedLeavesAnAppAloneThatRunsAlready(t *testing.T) {
	t.Setenv(forgeTokenVariable, "secret")
	dir := sourceCheckout(t)
	values := filepath.Join(dir, "omnivision-gitops/apps/omnivision-ui/cluster-aws.yaml")
	content, err := os.ReadFile(values)
	must(t, err)
	at := strings.Index(string(content), "tag:")
	old, _, _ := strings.Cut(string(content)[at:], "\n")
	edit(t, values, old, `tag: "0.1.0-1"`)
	edit(t, values, `digest: ""`, `digest: "sha256:`+strings.Repeat("1", 64)+`"`)
	gitIn(t, dir, "commit", "-qam", "the second commit: what runs is of the first")
	args := []string{"build", "--source", dir, "--app", "omnivision-ui", "--evidence", t.TempDir(), "--buildkit", "unix:///nowhere.sock", "--if-changed"}
	for _, app := range []string{"cmd/ui/Dockerfile", "cmd/ui/Dockerfile.dockerignore"} {
		source, err := os.ReadFile(filepath.Join("../..", app))
		must(t, err)
		must(t, os.MkdirAll(filepath.Join(dir, "cmd/ui"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, app), source, 0o600))
	}
	gitIn(t, dir, "add", "-A")
	gitIn(t, dir, "commit", "-qm", "the app's own files")
	if out, code, err := command(t, args...); code != exitFailed || !strings.Contains(err.Error(), "BuildKit") {
		t.Errorf("changed: exit code %d: %v\n%s", code, err, out)
	}
	edit(t, values, `tag: "0.1.0-1"`, `tag: "0.1.0-3"`)
	gitIn(t, dir, "commit", "-qam", "what runs is of the third")
	if out, code, err := command(t, args...); code != 0 || !strings.Contains(out, "runs what its files make") {
		t.Errorf("unchanged: exit code %d: %v\n%s", code, err, out)
	}
}
