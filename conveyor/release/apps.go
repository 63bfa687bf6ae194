package release

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"go.yaml.in/yaml/v3"
)

// AppsFile is where a source repository says how its apps are built.
const AppsFile = "conveyor/apps.yaml"

// Apps is the content of the file.
type Apps struct {
	Source    string   `yaml:"source"` // URL of the source repository
	Platforms []string `yaml:"platforms"`
	Apps      []App    `yaml:"apps"`
}

// App is how one app is built.
type App struct {
	Name       string            `yaml:"name"`
	Dockerfile string            `yaml:"dockerfile"`
	Args       map[string]string `yaml:"args"` // such as GO_DIGEST, which pins the base image
}

// ParseApps reads the file strictly.
func ParseApps(src []byte) (Apps, error) {
	var apps Apps
	dec := yaml.NewDecoder(strings.NewReader(string(src)))
	dec.KnownFields(true)
	if err := dec.Decode(&apps); err != nil && !errors.Is(err, io.EOF) {
		return Apps{}, fmt.Errorf("reading %s: %w", AppsFile, err)
	}
	switch {
	case apps.Source == "":
		return Apps{}, fmt.Errorf("reading %s: source is missing: the URL of this repository", AppsFile)
	case len(apps.Platforms) == 0:
		return Apps{}, fmt.Errorf("reading %s: platforms is missing: such as linux/amd64", AppsFile)
	}
	for _, app := range apps.Apps {
		if app.Name == "" || !fs.ValidPath(app.Dockerfile) || app.Dockerfile == "." {
			return Apps{}, fmt.Errorf("reading %s: an app needs a name, and a dockerfile below the repository: %q has %q", AppsFile, app.Name, app.Dockerfile)
		}
	}
	return apps, nil
}

// App finds an app by its name; the error lists the names there are.
func (a Apps) App(name string) (App, error) {
	var names []string
	for _, app := range a.Apps {
		if app.Name == name {
			return app, nil
		}
		names = append(names, app.Name)
	}
	return App{}, fmt.Errorf("%s names no app %q: it has %s", AppsFile, name, strings.Join(names, ", "))
}
