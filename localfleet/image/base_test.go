package image

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	conveyorbuild "github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/release"
)

func TestBasesAreThoseOfTheDockerfiles(t *testing.T) {
	src, err := os.ReadFile(filepath.Join(checkout, release.AppsFile))
	if err != nil {
		t.Fatal(err)
	}
	apps, err := release.ParseApps(src)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, app := range apps.Apps { // what the fleet's conveyor builds
		files = append(files, filepath.Join(checkout, app.Dockerfile))
	}
	var all []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bases, err := conveyorbuild.Bases(text, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, base := range bases {
			if !slices.Contains(all, base.Name) {
				all = append(all, base.Name)
			}
		}
	}
	slices.Sort(all)
	if want := slices.Sorted(slices.Values(Bases)); !slices.Equal(all, want) {
		t.Errorf("the Dockerfiles name %q, and there are recipes for %q", all, want)
	}
}

// TestRealBases assembles the base images from Debian's archive and the module proxy.
func TestRealBases(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for _, reference := range Bases {
		base, err := realBuilder(t).ObtainBase(ctx, reference)
		if err != nil {
			if os.Getenv("CI") == "" && strings.Contains(err.Error(), "getting Debian packages") {
				t.Skip(err)
			}
			t.Fatal(err)
		}
		manifest, err := base.index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range manifest.Manifests {
			img, err := base.index.Image(m.Digest)
			if err != nil {
				t.Fatal(err)
			}
			size := int64(0)
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				n, err := l.Size()
				if err != nil {
					t.Fatal(err)
				}
				size += n
			}
			t.Logf("%s for %s: %s, %.0f MB", reference, m.Platform, m.Digest, float64(size)/1e6)
		}
	}
}
