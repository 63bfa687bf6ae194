package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// gitopsTree is a repository with the project's own tree, both apps released.
func gitopsTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../omnivision-gitops")); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"omnivision-worker/cluster-aws", "omnivision-worker/cluster-gcp", "omnivision-ui/cluster-aws", "omnivision-ui/cluster-gcp"} {
		edit(t, filepath.Join(dir, "apps", file+".yaml"), `digest: ""`, `digest: "sha256:`+strings.Repeat("1", 64)+`"`)
	}
	commitAll(t, dir)
	return dir
}

// commitAll makes a repository of a directory, with one commit.
func commitAll(t *testing.T, dir string) {
	t.Helper()
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "a tree"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

func edit(t *testing.T, file, old, new string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(content, []byte(old)) {
		t.Fatalf("%s does not contain %q: %v", file, old, err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(content, []byte(old), []byte(new)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// planned runs the command and returns its output and the exit code.
func planned(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	return command(t, append([]string{"plan"}, args...)...)
}

func TestPlanExitCodes(t *testing.T) {
	dir := gitopsTree(t)
	common := []string{"--tree", dir, "--chart-dir", "../../charts/omnivision-platform", "--chart-cache", t.TempDir(), "--offline"}
	expect := func(what string, want int, text string, args ...string) {
		t.Helper()
		out, code, err := planned(t, append(args, common...)...)
		if err != nil {
			out += err.Error()
		}
		if code != want || !strings.Contains(out, text) {
			t.Errorf("%s: exit code %d, want %d; the output should hold %q:\n%s", what, code, want, text, out)
		}
	}
	expect("nothing changed", 0, "no cluster changes (2 looked at)", "--exit-code")
	edit(t, filepath.Join(dir, "apps/omnivision-ui/cluster-gcp.yaml"), strings.Repeat("1", 64), strings.Repeat("2", 64))
	expect("a change", 0, "1 of 2 clusters changes")
	expect("a change, asked for", exitChanges, "cluster-aws  Oregon, wave 1: untouched", "--exit-code")
	expect("Markdown", 0, "<!-- omnivision-plan -->\n### Plan: 1 of 2 clusters changes", "-o", "markdown")
	expect("JSON", 0, `"status": "untouched"`, "-o", "json")
	expect("two commits", 0, "no cluster changes", "--base", "HEAD", "--head", "main", "--merge-base")
	expect("an unknown revision", exitFailed, `no commit "nonsense"`, "--base", "nonsense")
	expect("an unknown output", exitUsage, "use text, markdown, json", "-o", "xml")
	expect("a merge base of nothing", exitUsage, "--merge-base needs --base", "--merge-base")
	expect("a deadline", exitFailed, "--timeout", "--timeout", "1ns")
	edit(t, filepath.Join(dir, "apps/omnivision-ui/cluster-gcp.yaml"), "digest: \"sha256:"+strings.Repeat("2", 64), "digest: \"")
	expect("values that the chart refuses", exitUnhealthy, "ui.digest is empty")
	edit(t, filepath.Join(dir, "apps/omnivision-ui/cluster-gcp.yaml"), "ui:", "ui: [")
	expect("a broken file", exitFailed, "apps/omnivision-ui/cluster-gcp.yaml:")
}

func TestPlanOutsideOfATreeSaysWhereToGo(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, code, err := planned(t); code != exitUsage || !strings.Contains(err.Error(), "--tree") {
		t.Errorf("exit code %d: %v", code, err)
	}
}
