package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Place is where the tree names an app's image: what a release of the app edits. An app of
// the platform's chart has one for each cluster. A program that every cluster runs as a
// component has one in its kustomization, which all clusters share.
type Place struct {
	Name string // the cluster, or every cluster
	File string

	parse func(src []byte) (Release, error)
	set   func(src []byte, r Release) ([]byte, error)
}

// ErrUnknownApp says that a tree has neither an app nor a component of a name.
var ErrUnknownApp = errors.New("names no app")

// EveryCluster is the name of a place that all clusters share.
const EveryCluster = "every cluster"

// Read reads which image Git wants there.
func (p Place) Read(tree fs.FS) (Release, error) {
	src, err := fs.ReadFile(tree, p.File)
	if err != nil {
		return Release{}, Problem{File: p.File, Message: "cannot be read: " + reason(err), Fix: "every app of " + File + " has one file for each cluster"}
	}
	return p.parse(src)
}

// Edit returns the bytes of the file with another image. Everything else in it stays as it
// is (P5).
func (p Place) Edit(tree fs.FS, r Release) ([]byte, error) {
	src, err := fs.ReadFile(tree, p.File)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", p.File, err)
	}
	edited, err := p.set(src, r)
	if err != nil {
		return nil, fmt.Errorf("editing %s: %w", p.File, err)
	}
	return edited, nil
}

// Target is what a release of one app reaches at once.
type Target struct {
	// Wave of the clusters; 0 for a component, which all clusters get by one change.
	Wave     int
	Clusters []string
	Places   []Place
	// Repositories are where nodes pull the image from, in every cluster of the fleet and
	// not in this wave's alone: what is built once is promoted later.
	Repositories []string
}

// Target finds where a release of an app goes: for an app of fleet.yaml the clusters of a
// wave, for a component's program every cluster. Wave 0 is an app's first.
func (f *Fleet) Target(tree fs.FS, app string, wave int) (Target, error) {
	if known, err := f.App(app); err == nil {
		return f.appTarget(known, wave)
	}
	images, err := ComponentImages(tree)
	if err != nil {
		return Target{}, err
	}
	var target Target
	for _, image := range images {
		if path.Base(image.Name) == app {
			target.Places = append(target.Places, image.place())
			target.Repositories = append(target.Repositories, image.Name)
		}
	}
	switch {
	case len(target.Places) == 0:
		return Target{}, fmt.Errorf("%s %w %q: it has %s; and no component has an image of this name among %s", File, ErrUnknownApp, app, f.appNames(), imageNames(images))
	case len(target.Places) > 1:
		return Target{}, fmt.Errorf("%s and %s both have an image called %s: which of them is meant cannot be told", target.Places[0].File, target.Places[1].File, app)
	case wave != 0:
		return Target{}, fmt.Errorf("%s is a component, which every cluster gets by one change: leave out wave %d", app, wave)
	}
	for _, c := range f.Clusters {
		target.Clusters = append(target.Clusters, c.Name)
	}
	return target, nil
}

// Runs reports whether any cluster runs what a target is of: a component may lie in the tree
// that no cluster's kustomization lists.
func (f *Fleet) Runs(tree fs.FS, target Target) (bool, error) {
	if target.Wave != 0 {
		return true, nil
	}
	for _, c := range f.Clusters {
		apps, err := Applications(tree, c)
		if err != nil {
			return false, err
		}
		for _, app := range apps {
			for _, source := range app.AllSources() {
				if source.RepoURL == f.Repository && slices.ContainsFunc(target.Places, func(p Place) bool { return path.Dir(p.File) == path.Clean(source.Path) }) {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

func (f *Fleet) appTarget(app App, wave int) (Target, error) {
	if waves := f.Waves(); wave == 0 && len(waves) > 0 {
		wave = waves[0][0].Wave
	}
	target := Target{Wave: wave}
	for _, c := range f.Clusters {
		if repository := c.ImageRegistry + "/" + app.Repository; !slices.Contains(target.Repositories, repository) {
			target.Repositories = append(target.Repositories, repository)
		}
		if c.Wave == wave {
			target.Clusters = append(target.Clusters, c.Name)
			target.Places = append(target.Places, app.place(c.Name))
		}
	}
	if len(target.Places) == 0 {
		return Target{}, fmt.Errorf("%s has no cluster in wave %d", File, wave)
	}
	return target, nil
}

func (a App) place(cluster string) Place {
	file := a.ReleaseFile(cluster)
	return Place{
		Name: cluster, File: file,
		parse: func(src []byte) (Release, error) { return ParseRelease(file, src, a) },
		set:   func(src []byte, r Release) ([]byte, error) { return SetRelease(src, a, r) },
	}
}

func (c ComponentImage) place() Place {
	return Place{
		Name: EveryCluster, File: c.File,
		parse: func(src []byte) (Release, error) {
			images, err := parseComponentImages(c.File, src)
			if err != nil {
				return Release{}, err
			}
			at := slices.IndexFunc(images, func(other ComponentImage) bool { return other.Name == c.Name })
			if at < 0 {
				return Release{}, Problem{File: c.File, Message: "has no image " + c.Name, Fix: "an image that moved to another repository is released to that one"}
			}
			return images[at].Release, nil
		},
		set: func(src []byte, r Release) ([]byte, error) { return SetComponentImage(src, c, r) },
	}
}

func (f *Fleet) appNames() string {
	var names []string
	for _, a := range f.Apps {
		names = append(names, a.Name)
	}
	return strings.Join(names, ", ")
}

func imageNames(images []ComponentImage) string {
	var names []string
	for _, image := range images {
		names = append(names, path.Base(image.Name))
	}
	return strings.Join(names, ", ")
}
