package release

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/fleet"
)

func TestEveryProgramOfOursThatClustersRunCanBeBuilt(t *testing.T) {
	src, err := os.ReadFile("../../" + AppsFile)
	check(t, err)
	apps, err := ParseApps(src)
	check(t, err)
	f, err := fleet.Load(os.DirFS("../../omnivision-gitops"))
	check(t, err)
	var names []string
	for _, app := range f.Apps {
		names = append(names, app.Name)
	}
	images, err := fleet.ComponentImages(os.DirFS("../../omnivision-gitops"))
	check(t, err)
	for _, image := range images {
		if strings.HasPrefix(image.Name, "ghcr.io/omnivision/") {
			names = append(names, path.Base(image.Name))
		}
	}
	if len(names) < 5 {
		t.Errorf("the tree runs %q of ours", names)
	}
	for _, name := range names {
		how, err := apps.App(name)
		if err != nil {
			t.Error(err)
			continue
		}
		dockerfile, err := os.ReadFile(filepath.Join("../..", how.Dockerfile))
		if err != nil || !strings.Contains(string(dockerfile), `org.opencontainers.image.title="`+name+`"`) {
			t.Errorf("%s of %s is not its Dockerfile: %v", how.Dockerfile, name, err)
		}
		if bases, err := build.Bases(dockerfile, how.Args); err != nil || len(bases) == 0 {
			t.Errorf("%s is made of %v: %v", how.Dockerfile, bases, err)
		}
	}
	for _, app := range apps.Apps {
		if !slices.Contains(names, app.Name) {
			t.Errorf("%s is released, and nothing in the tree runs it", app.Name)
		}
	}
}

func TestAppsAreReadStrictly(t *testing.T) {
	const good = "source: https://x\nplatforms: [linux/amd64]\napps:\n  - {name: a, dockerfile: cmd/a/Dockerfile}\n"
	for name, src := range map[string]string{
		"nothing":           "",
		"no source":         strings.Replace(good, "source: https://x\n", "", 1),
		"no platform":       strings.Replace(good, "[linux/amd64]", "[]", 1),
		"an unknown key":    good + "other: 1\n",
		"no dockerfile":     strings.Replace(good, "dockerfile: cmd/a/Dockerfile", `dockerfile: ""`, 1),
		"a path out of it":  strings.Replace(good, "cmd/a/Dockerfile", "../Dockerfile", 1),
		"an absolute path":  strings.Replace(good, "cmd/a/Dockerfile", "/etc/passwd", 1),
		"an app, no name":   strings.Replace(good, "name: a", `name: ""`, 1),
		"a list, no object": "[]\n",
	} {
		if _, err := ParseApps([]byte(src)); err == nil || !strings.Contains(err.Error(), AppsFile) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	apps, err := ParseApps([]byte(good))
	check(t, err)
	if _, err := apps.App("b"); err == nil || !strings.Contains(err.Error(), "it has a") {
		t.Errorf("error is %v", err)
	}
}
