package engine

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestCacheIsSeededWithLinksToTheUsersOwn(t *testing.T) {
	users := t.TempDir()
	for name, content := range map[string]string{
		"00/00ab-a": "an action", "00/00cd-d": "its content", "trim.txt": "when it was trimmed",
		"README": "what this is", "fuzz/corpus/x-d": "no part of a build",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(users, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(users, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOCACHE", users)
	s := &Store{Dir: t.TempDir()}
	if err := s.seed(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(s.goCache(), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(s.goCache(), path)
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"00/00ab-a", "00/00cd-d"}; !slices.Equal(got, want) {
		t.Errorf("the cache has %v, want %v", got, want)
	}

	if err := s.removeCaches(); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(users, "00/00ab-a")); err != nil || string(content) != "an action" {
		t.Errorf("removing the engines' cache changed the user's: %q, %v", content, err)
	}
}

func TestACacheThatIsThereIsNotSeeded(t *testing.T) {
	t.Setenv("GOCACHE", t.TempDir())
	s := &Store{Dir: t.TempDir()}
	if err := os.MkdirAll(s.goCache(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.seed(t.Context()); err != nil {
		t.Error(err)
	}
}
