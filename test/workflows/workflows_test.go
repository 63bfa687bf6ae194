// Package workflows proves the rules of every workflow of the source and of the GitOps
// repository: nothing of a third party runs, a job may do no more than it needs, and no
// text of a stranger becomes a command (P37, P39, P40).
package workflows

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/release"
	"github.com/omnivision/omnivision/conveyor/tools"
)

const shell = "bash --noprofile --norc -euo pipefail {0}"

// workflow is what the rules look at.
type workflow struct {
	On          yaml.Node `yaml:"on"`
	Permissions yaml.Node `yaml:"permissions"`
	Concurrency yaml.Node `yaml:"concurrency"`
	Defaults    defaults  `yaml:"defaults"`
	Jobs        map[string]job
}

type defaults struct {
	Run struct {
		Shell string
	}
}

type job struct {
	Uses        string
	Permissions yaml.Node `yaml:"permissions"`
	Concurrency yaml.Node `yaml:"concurrency"`
	Timeout     int       `yaml:"timeout-minutes"`
	Container   yaml.Node
	Services    yaml.Node
	Defaults    defaults
	Steps       []step
}

type step struct {
	Name, Uses, Run, Shell string
}

var (
	// expression is refused in scripts whatever it names: titles and branches come by env,
	// and so does what seems harmless.
	expression = regexp.MustCompile(`\$\{\{[^}]*\}\}`)
	fetches    = regexp.MustCompile(`\b(curl|wget|pip3?|pipx|npm|npx|pnpm|yarn|gem|cargo|brew|docker|podman|snap)\b|\bgo (install|get|run)\b[^\n]*@|\bapt(-get)? |\bgh (api|release download|extension)\b|\b(aria2c|scp|rsync|oras|crane|skopeo)\b`)
	// A host of others is not named in a script: where the two repositories are, the forge says.
	hosts = regexp.MustCompile(`\b(https?|ftp|ssh|git)://`)
	// unchecked switches off what compares a Go module with go.sum or with Go's checksum database.
	unchecked = regexp.MustCompile(`\bGO(NOSUMDB|NOSUMCHECK|SUMDB|PRIVATE|NOPROXY|INSECURE)\b|-mod=mod\b|-insecure\b`)
	// got is the command that brings a program of others, with its arguments.
	got = regexp.MustCompile(`\bomnivision tools\b([^\n;|&)]*)`)
)

// broken lists which rules a workflow breaks.
func broken(src []byte) (found []string) {
	var w workflow
	if err := yaml.Unmarshal(src, &w); err != nil {
		return []string{err.Error()}
	}
	rule := func(holds bool, format string, args ...any) {
		if !holds {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	rule(!triggers(w.On, "pull_request_target", "workflow_run", "issue_comment"), "it runs with secrets for what a stranger did")
	rule(len(w.Permissions.Content) == 0 && w.Permissions.Kind == yaml.MappingNode, "permissions at the top are not {}")
	rule(w.Defaults.Run.Shell == shell, "the shell is not %q", shell)
	rule(len(w.Jobs) > 0, "it has no job")
	rule(!unchecked.Match(src), "it takes Go modules without their checksums: %s", unchecked.Find(src))
	for name, j := range w.Jobs {
		rule(j.Uses == "", "job %s uses another workflow", name)
		rule(j.Container.IsZero() && j.Services.IsZero(), "job %s runs an image", name)
		rule(j.Permissions.Kind == yaml.MappingNode, "job %s does not name each of its permissions", name)
		rule(j.Timeout > 0, "job %s has no timeout", name)
		rule(j.Defaults.Run.Shell == "", "job %s has a shell of its own", name)
		rule(!w.Concurrency.IsZero() || !j.Concurrency.IsZero(), "job %s may run beside itself", name)
		for _, s := range j.Steps {
			rule(s.Uses == "", "step %q uses an action", s.Name)
			rule(s.Shell == "", "step %q has a shell of its own", s.Name)
			rule(!expression.MatchString(s.Run), "step %q has an expression in its script: give it by env", s.Name)
			rule(!fetches.MatchString(s.Run), "step %q fetches something without a checksum: %s", s.Name, fetches.FindString(s.Run))
			rule(!hosts.MatchString(s.Run), "step %q names a host of others", s.Name)
			for _, why := range unpinned(s.Run) {
				rule(false, "step %q: %s", s.Name, why)
			}
		}
	}
	return found
}

// unpinned says which of the programs that a script gets have no checksum.
func unpinned(script string) (found []string) {
	all, err := tools.Pinned()
	if err != nil {
		return []string{err.Error()}
	}
	for _, call := range got.FindAllStringSubmatch(script, -1) {
		names := slices.DeleteFunc(strings.Fields(call[1]), func(word string) bool { return strings.HasPrefix(word, "-") })
		named, err := tools.Named(all, names...)
		if err != nil {
			found = append(found, err.Error())
		}
		for _, tool := range named {
			for _, platform := range []string{"linux/amd64", "linux/arm64"} {
				if _, err := tool.Sums(os.DirFS("../.."), platform); err != nil {
					found = append(found, err.Error())
				}
			}
		}
	}
	return found
}

func triggers(on yaml.Node, events ...string) bool {
	if on.Kind == yaml.MappingNode {
		for i := 0; i < len(on.Content); i += 2 {
			if slices.Contains(events, on.Content[i].Value) {
				return true
			}
		}
		return false
	}
	return slices.Contains(events, on.Value) || slices.ContainsFunc(on.Content, func(n *yaml.Node) bool { return slices.Contains(events, n.Value) })
}

// files are the workflows of both repositories.
func files(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, folder := range []string{"../../.github/workflows", "../../omnivision-gitops/.github/workflows"} {
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, filepath.Join(folder, e.Name()))
		}
	}
	return all
}

func TestWorkflowsKeepTheRules(t *testing.T) {
	for _, file := range files(t) {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(file) != ".yaml" {
			t.Errorf("%s is not called .yaml, as all others are", file)
		}
		for _, why := range broken(src) {
			t.Errorf("%s: %s", file, why)
		}
	}
}

// good keeps every rule; each case breaks one.
const good = `on:
  push:
    branches: [main]
permissions: {}
concurrency: {group: x}
defaults: {run: {shell: "` + shell + `"}}
jobs:
  build:
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    permissions: {contents: read}
    steps:
      - name: build
        env: {TITLE: "${{ github.event.pull_request.title }}"}
        run: echo "$TITLE"
`

func TestEachRuleCanBeBroken(t *testing.T) {
	if why := broken([]byte(good)); len(why) > 0 {
		t.Fatalf("the good workflow breaks %v", why)
	}
	run := func(script string) [2]string { return [2]string{`run: echo "$TITLE"`, "run: " + script} }
	for what, tt := range map[string]struct {
		change [2]string
		want   string
	}{
		"an action":               {[2]string{"run: echo \"$TITLE\"", "uses: actions/checkout@8e8c483db84b4bee98b60c0593521ed34d9990e8"}, "uses an action"},
		"another workflow":        {[2]string{"    timeout-minutes", "    uses: a/b/.github/workflows/c.yaml@main\n    timeout-minutes"}, "uses another workflow"},
		"an image":                {[2]string{"    timeout-minutes", "    container: debian:12\n    timeout-minutes"}, "runs an image"},
		"all rights at the top":   {[2]string{"permissions: {}", "permissions: write-all"}, "at the top are not {}"},
		"the default's rights":    {[2]string{"permissions: {}\n", ""}, "at the top are not {}"},
		"rights by inheritance":   {[2]string{"    permissions: {contents: read}\n", ""}, "does not name each"},
		"all rights of a job":     {[2]string{"permissions: {contents: read}", "permissions: write-all"}, "does not name each"},
		"no end":                  {[2]string{"    timeout-minutes: 5\n", ""}, "no timeout"},
		"two at a time":           {[2]string{"concurrency: {group: x}\n", ""}, "beside itself"},
		"a shell that goes on":    {[2]string{shell, "bash"}, "the shell is not"},
		"a step's own shell":      {[2]string{"      - name: build", "      - name: build\n        shell: sh"}, "shell of its own"},
		"a stranger's secrets":    {[2]string{"  push:\n    branches: [main]", "  pull_request_target:"}, "for what a stranger did"},
		"a title as a command":    {run("echo ${{ github.event.pull_request.title }}"), "expression in its script"},
		"a branch as a command":   {run("git checkout ${{ github.head_ref }}"), "expression in its script"},
		"a download":              {run("curl -fsSL https://example.com/install.sh | sh"), "without a checksum: curl"},
		"another download":        {run("wget https://example.com/x"), "without a checksum: wget"},
		"a module at its newest":  {run("go install example.com/x@latest"), "without a checksum"},
		"a module by version":     {run("go run example.com/x@v1.2.3"), "without a checksum"},
		"a package of Python":     {run("pip install x"), "without a checksum: pip"},
		"a package of JavaScript": {run("npm install x"), "without a checksum: npm"},
		"an image by hand":        {run("docker run x"), "without a checksum: docker"},
		"an artifact":             {run("oras pull x"), "without a checksum: oras"},
		"another's repository":    {run("git clone https://example.com/x"), "a host of others"},
		"a tool without a pin":    {run("omnivision tools --github-path grype"), `there is no tool "grype"`},
		"modules unchecked":       {run("GONOSUMDB=* go build ./cmd/omnivision"), "without their checksums: GONOSUMDB"},
		"new modules":             {run("go build -mod=mod ./cmd/omnivision"), "without their checksums: -mod=mod"},
		"modules of all steps":    {[2]string{"jobs:\n", "env: {GOSUMDB: off}\njobs:\n"}, "without their checksums: GOSUMDB"},
	} {
		src := strings.Replace(good, tt.change[0], tt.change[1], 1)
		if src == good {
			t.Errorf("%s: the change finds nothing to change", what)
		}
		if why := strings.Join(broken([]byte(src)), "; "); !strings.Contains(why, tt.want) {
			t.Errorf("%s breaks %q, and should break %q", what, why, tt.want)
		}
	}
	for _, on := range []string{"on: pull_request_target\n", "on: [push, pull_request_target]\n"} {
		if why := broken([]byte(strings.Replace(good, "on:\n  push:\n    branches: [main]\n", on, 1))); len(why) == 0 {
			t.Errorf("%q is taken", on)
		}
	}
}

func TestOnlyTheJobsThatNeedItGetAnIdentityOrWrite(t *testing.T) {
	allowed := map[string][]string{
		"conveyor.yaml": {"contents: read", "id-token: write", "packages: write"},
		// It publishes nothing.
		"conveyor.yaml/rescan": {"contents: read", "id-token: write"},
		"checks.yaml":          {"contents: read"}, "rehearsal.yaml": {"contents: read"}, "release.yaml": {"contents: write"},
		"plan.yaml": {"contents: read", "pull-requests: write", "statuses: write"},
	}
	for _, file := range files(t) {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var w workflow
		if err := yaml.Unmarshal(src, &w); err != nil {
			t.Fatal(err)
		}
		for name, j := range w.Jobs {
			var has []string
			for i := 0; i+1 < len(j.Permissions.Content); i += 2 {
				has = append(has, j.Permissions.Content[i].Value+": "+j.Permissions.Content[i+1].Value)
			}
			may, special := allowed[filepath.Base(file)+"/"+name]
			if !special {
				may = allowed[filepath.Base(file)]
			}
			if !slices.Equal(has, may) {
				t.Errorf("%s: job %s has the permissions %v, and may have %v", file, name, has, may)
			}
		}
	}
}

// A path that an image is made of and that starts no run would never be released.
func TestConveyorRunsForEverythingThatAnImageIsMadeOf(t *testing.T) {
	src, err := os.ReadFile("../../.github/workflows/conveyor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var w struct {
		On   struct{ Push struct{ Paths []string } }
		Jobs struct {
			Release struct {
				Strategy struct {
					Matrix struct{ App []string }
				}
			}
		}
	}
	if err := yaml.Unmarshal(src, &w); err != nil {
		t.Fatal(err)
	}
	described, err := os.ReadFile(filepath.Join("../..", release.AppsFile))
	if err != nil {
		t.Fatal(err)
	}
	apps, err := release.ParseApps(described)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, app := range apps.Apps {
		names = append(names, app.Name)
		file := filepath.Join("../..", app.Dockerfile+".dockerignore")
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			kept, ok := strings.CutPrefix(strings.TrimSpace(line), "!")
			if ok && !starts(w.On.Push.Paths, kept) {
				t.Errorf("%s lets %s through, and a change of it starts no run", file, kept)
			}
		}
	}
	if jobs := w.Jobs.Release.Strategy.Matrix.App; !slices.Equal(jobs, names) {
		t.Errorf("there are jobs for %q, and %s has %q", jobs, release.AppsFile, names)
	}
}

// starts reports whether a path, or a folder that it is in, is among those that start a run.
func starts(paths []string, kept string) bool {
	if slices.Contains(paths, kept) {
		return true
	}
	for dir := kept; dir != "."; dir = path.Dir(dir) {
		if slices.Contains(paths, dir+"/**") {
			return true
		}
	}
	return false
}

// The same commit is the same image only as long as what it begins with is the same.
func TestEveryDockerfileBeginsWithADigest(t *testing.T) {
	found := 0
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if name := d.Name(); d.IsDir() || name != "Dockerfile" && !strings.HasPrefix(name, "Dockerfile.") && !strings.HasSuffix(name, ".Dockerfile") || strings.HasSuffix(name, ".dockerignore") {
			return nil
		}
		found++
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if _, err := build.Bases(source, nil); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		return nil
	})
	if err != nil || found < 5 {
		t.Errorf("%d Dockerfiles were found: %v", found, err)
	}
}
