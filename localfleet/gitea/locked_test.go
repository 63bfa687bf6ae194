package gitea

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A push that a killed client has begun goes on at the server and holds its references; the
// next one waits for it.
func TestPushWaitsForAnotherThatHoldsTheReferences(t *testing.T) {
	bare, dir := filepath.Join(t.TempDir(), "bare.git"), t.TempDir()
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", bare},
		{"init", "--quiet", "--initial-branch=main", dir},
		{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--allow-empty", "--message", "One"},
	} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	lock, asked := filepath.Join(bare, "refs", "heads", "main.lock"), filepath.Join(dir, "asked")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The lock goes with the second attempt.
	hook := fmt.Sprintf("#!/bin/sh\nif [ -e '%s' ]; then rm -f '%s'; fi\ntouch '%s'\n", asked, lock, asked)
	if err := os.WriteFile(filepath.Join(dir, ".git", "hooks", "pre-push"), []byte(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	g := git{dir: dir, env: os.Environ()}
	if err := g.push(t.Context(), bare, "refs/heads/*:refs/heads/*"); err != nil {
		t.Error(err)
	}
	if err := g.push(t.Context(), filepath.Join(bare, "missing"), "refs/heads/*:refs/heads/*"); err == nil {
		t.Error("a repository that is not there took a push")
	}
}
