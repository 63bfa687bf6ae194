package git_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/internal/git"
)

func TestCleanGitDoesNotReadTheCallersConfiguration(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	if _, err := git.Own(home).Run(t.Context(), "config", "--global", "user.name", "somebody"); err != nil {
		t.Fatal(err)
	}
	if name, err := git.Own(home).Line(t.Context(), "config", "user.name"); err != nil || name != "somebody" {
		t.Errorf("the caller's own git says %q, %v", name, err)
	}
	if name, err := git.Clean(home).Line(t.Context(), "config", "user.name"); err == nil {
		t.Errorf("a clean git says %q", name)
	}
}

func TestCredentialIsNotAnArgumentAndReachesOneAddress(t *testing.T) {
	g := git.Clean(t.TempDir(), git.Settings(git.Setting{Key: "gc.auto", Value: "0"}, git.Credential("https://git.example.com/", "secret"))...)
	for address, want := range map[string]bool{"https://git.example.com/a/b.git": true, "https://other.example.com/a/b.git": false} {
		header, err := g.Line(t.Context(), "config", "--get-urlmatch", "http.extraHeader", address)
		if (err == nil && strings.HasPrefix(header, "Authorization: Basic ")) != want {
			t.Errorf("for %s the header is %q, %v", address, header, err)
		}
	}
}

func TestErrorSaysWhatGitSaid(t *testing.T) {
	_, err := git.Clean(t.TempDir()).Run(t.Context(), "rev-parse", "HEAD")
	if !git.Said(err, "not a git repository") || !strings.HasPrefix(err.Error(), "git rev-parse: ") {
		t.Errorf("error is %v", err)
	}
	if git.Said(err, "something else") || git.Said(errors.New("not a git repository"), "not a git repository") {
		t.Error("an error of somebody else, or another message, was taken for it")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("not ended within a minute"))
	if _, err := git.Clean(t.TempDir()).Run(ctx, "version"); err == nil || !strings.Contains(err.Error(), "not ended within a minute") {
		t.Errorf("error after the deadline is %v", err)
	}
}
