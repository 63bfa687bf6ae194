package release

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAnAppChangesWithWhatItsImageIsMadeOf(t *testing.T) {
	app := App{Name: "omnivision-worker", Dockerfile: "cmd/worker/Dockerfile"}
	s := newSite(t)
	ignore, err := os.ReadFile("../../cmd/worker/Dockerfile.dockerignore")
	check(t, err)
	check(t, os.MkdirAll(filepath.Join(s.dir, "cmd/worker"), 0o755))
	check(t, os.WriteFile(filepath.Join(s.dir, app.ignoreFile()), ignore, 0o600))
	s.commit("what runs first")
	for file, changes := range map[string]bool{
		"worker/serve.go": true, "worker/gpu/device.go": true, "cmd/worker/main.go": true, "go.sum": true, "internal/version/version.go": true,
		"cmd/worker/Dockerfile": true, "cmd/worker/Dockerfile.dockerignore": true, AppsFile: true,
		"worker/serve_test.go": false, "worker/testdata/a": false, "ui/page.go": false, "cmd/ui/Dockerfile": false, "README.md": false, "conveyor/store.go": false,
	} {
		runs := s.release().Revision
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(s.dir, file)), 0o755))
		check(t, os.WriteFile(filepath.Join(s.dir, file), append(ignore, "# changed\n"...), 0o600))
		s.git("add", "--all")
		s.git("commit", "--quiet", "-m", "a change")
		got, known, err := app.Changed(t.Context(), s.dir, runs.Version, s.release().Revision.Commit, nil)
		if err != nil || !known || (len(got) == 1 && got[0] == file) != changes || len(got) > 1 {
			t.Errorf("after a change of %s changed are %v, %t, %v; want it there: %t", file, got, known, err, changes)
		}
		if _, known, err := app.Changed(t.Context(), s.dir, "0.1.0-999", s.release().Revision.Commit, nil); known || err != nil {
			t.Errorf("of a version that nobody built it is known what changed, %v", err)
		}
	}
}

// What a rehearsal assembled is of no count of commits, and still of a commit.
func TestTheBuilderGetsWhatTheDockerignoreLetsThrough(t *testing.T) {
	s := newSite(t)
	for file, content := range map[string]string{
		"cmd/worker/Dockerfile": "FROM scratch\n", "cmd/worker/Dockerfile.dockerignore": "*\n!worker\n**/*_test.go\n",
		"worker/a.go": "package worker\n", "worker/a_test.go": "package worker\n", "docs/a.md": "text\n",
	} {
		path := filepath.Join(s.dir, file)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, []byte(content), 0o600))
	}
	s.commit("an image")
	_, _, err := s.run(s.release(), Build)
	check(t, err)
	if want := []string{"cmd/worker/Dockerfile", "cmd/worker/Dockerfile.dockerignore", "worker/a.go"}; !slices.Equal(s.builder.files, want) {
		t.Errorf("the build saw %v, want %v", s.builder.files, want)
	}
}

func TestAVersionThatWasNotCountedCanBeToldItsCommit(t *testing.T) {
	s := newSite(t)
	app, others := App{Dockerfile: "Dockerfile"}, map[string]string{"0.1.0-0.assembled.7": s.release().Revision.Commit}
	s.commit("another main.go")
	for version, want := range map[string]bool{"0.1.0-0.assembled.7": true, "0.1.0-0.assembled.8": false} {
		got, known, err := app.Changed(t.Context(), s.dir, version, s.release().Revision.Commit, others)
		if err != nil || known != want || known && strings.Join(got, " ") != "main.go" {
			t.Errorf("%s: changed are %v, %t, %v", version, got, known, err)
		}
	}
}

func TestWithoutADockerignoreEveryFileCounts(t *testing.T) {
	s := newSite(t)
	runs := s.release().Revision
	s.commit("another main.go")
	app := App{Dockerfile: "Dockerfile"}
	got, known, err := app.Changed(t.Context(), s.dir, runs.Version, s.release().Revision.Commit, nil)
	if err != nil || !known || strings.Join(got, " ") != "main.go" {
		t.Errorf("changed are %v, %t, %v", got, known, err)
	}
}
