// Package imports proves in which direction the packages of this repository import each other.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	module     = "github.com/omnivision/omnivision"
	localfleet = "localfleet"
)

// rehearsal is what may import the local fleet: itself, its command line, the programs of its images, and tests.
var rehearsal = []string{localfleet, "test", "cmd/omnivision", "cmd/gpu-substitute", "cmd/pause"}

// nameless are names that say nothing about what a package is for.
var nameless = []string{"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"}

// graph holds the imports of each package of the module, both relative to the module.
type graph map[string][]string

func (g graph) packages() []string {
	var names []string
	for name := range g {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// path is the shortest way along imports from a package to one that is forbidden to it; nil if there is none.
func (g graph) path(from string, forbidden func(string) bool) []string {
	ways := [][]string{{from}}
	seen := map[string]bool{from: true}
	for len(ways) > 0 {
		way := ways[0]
		ways = ways[1:]
		for _, next := range g[way[len(way)-1]] {
			if seen[next] {
				continue
			}
			seen[next] = true
			longer := append(slices.Clone(way), next)
			if forbidden(next) {
				return longer
			}
			ways = append(ways, longer)
		}
	}
	return nil
}

// below reports whether a package is one of the folders or below it.
func below(pkg string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return pkg == f || strings.HasPrefix(pkg, f+"/") })
}

// listed is a package as `go list` prints it.
type listed struct {
	ImportPath, Name string
	Imports          []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Imports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatalf("reading the output of go list: %v", err)
		}
		packages = append(packages, p)
	}
}

func ours(packages []listed) graph {
	g := graph{}
	for _, p := range packages {
		name := relative(p.ImportPath)
		g[name] = nil
		for _, imported := range p.Imports {
			if below(imported, module) {
				g[name] = append(g[name], relative(imported))
			}
		}
	}
	return g
}

func relative(importPath string) string { return strings.TrimPrefix(importPath, module+"/") }

// violations names every way from a package that is not for rehearsal to the local fleet.
func violations(g graph) (found []string) {
	for _, pkg := range g.packages() {
		if below(pkg, rehearsal...) {
			continue
		}
		if way := g.path(pkg, func(p string) bool { return below(p, localfleet) }); way != nil {
			found = append(found, strings.Join(way, " imports "))
		}
	}
	return found
}

func TestProductionNeverImportsTheLocalFleet(t *testing.T) {
	g := ours(list(t))
	for _, known := range []string{"worker", "ui", "fleet", "forge", "plan/render", "cmd/worker", "localfleet/process"} {
		if _, ok := g[known]; !ok {
			t.Fatalf("go list names no package %s: this test would prove nothing", known)
		}
	}
	for _, way := range violations(g) {
		t.Errorf("%s; move what it needs out of %s, or turn the import round", way, localfleet)
	}
}

func TestPackagesAreNamedForWhatTheyAre(t *testing.T) {
	for _, p := range list(t) {
		for part := range strings.SplitSeq(relative(p.ImportPath), "/") {
			if slices.Contains(nameless, part) {
				t.Errorf("package %s: the folder name %q says nothing; name it for its one idea", p.ImportPath, part)
			}
		}
		if slices.Contains(nameless, strings.TrimSuffix(p.Name, "_test")) {
			t.Errorf("package %s is called %s, which says nothing; name it for its one idea", p.ImportPath, p.Name)
		}
	}
}

func TestAWayToTheLocalFleetIsNamedWhole(t *testing.T) {
	g := graph{
		"worker":              {"worker/gpu", "worker/serve"},
		"worker/serve":        {},
		"worker/gpu":          {"worker/devices"},
		"worker/devices":      {"worker/gpu", "localfleet/gpu/device"}, // a circle must not hang it
		"localfleetless":      {"worker/serve"},
		"cmd/omnivision":      {"localfleet"},
		"localfleet":          {"localfleet/gpu/device", "worker"},
		"test/e2e":            {"localfleet"},
		"cmd/omnivisioned":    {"localfleet"},
		"localfleet/gpu/rest": {"localfleet"},
	}
	want := []string{
		"cmd/omnivisioned imports localfleet",
		"worker imports worker/gpu imports worker/devices imports localfleet/gpu/device",
		"worker/devices imports localfleet/gpu/device",
		"worker/gpu imports worker/devices imports localfleet/gpu/device",
	}
	if got := violations(g); !slices.Equal(got, want) {
		t.Errorf("violations:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
