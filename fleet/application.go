package fleet

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// PathsAnnotation names the files whose change makes a webhook refresh an Application.
const PathsAnnotation = "argocd.argoproj.io/manifest-generate-paths"

// Application is what this package needs to know of an Argo CD Application. Argo CD's own
// types would bring all of Argo CD along.
type Application struct {
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Annotations map[string]string `json:"annotations"`
		Finalizers  []string          `json:"finalizers"`
	} `json:"metadata"`
	Spec struct {
		Project           string      `json:"project"`
		Source            *Source     `json:"source"`
		Sources           []Source    `json:"sources"`
		Destination       Destination `json:"destination"`
		IgnoreDifferences []struct {
			Group                 string   `json:"group"`
			Kind                  string   `json:"kind"`
			JSONPointers          []string `json:"jsonPointers"`
			JQPathExpressions     []string `json:"jqPathExpressions"`
			ManagedFieldsManagers []string `json:"managedFieldsManagers"`
		} `json:"ignoreDifferences"`
		SyncPolicy struct {
			Automated *struct {
				Enabled    *bool `json:"enabled"`
				Prune      bool  `json:"prune"`
				SelfHeal   bool  `json:"selfHeal"`
				AllowEmpty *bool `json:"allowEmpty"`
			} `json:"automated"`
			SyncOptions []string `json:"syncOptions"`
			Retry       *struct {
				Limit   int64           `json:"limit"`
				Backoff json.RawMessage `json:"backoff"`
			} `json:"retry"`
		} `json:"syncPolicy"`
	} `json:"spec"`
}

// Destination is where an Application's objects go.
type Destination struct {
	Server    string `json:"server"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// Source is one place from which an Application's manifests come.
type Source struct {
	RepoURL        string     `json:"repoURL"`
	TargetRevision string     `json:"targetRevision"`
	Path           string     `json:"path"`
	Chart          string     `json:"chart"`
	Ref            string     `json:"ref"`
	Helm           *Helm      `json:"helm"`
	Kustomize      *Kustomize `json:"kustomize"`
	Directory      *Directory `json:"directory"`
}

// Helm is how a chart is rendered.
type Helm struct {
	ReleaseName string   `json:"releaseName"`
	ValueFiles  []string `json:"valueFiles"`
}

// Kustomize is what an Application adds to the kustomization it points at.
type Kustomize struct {
	Images     []string          `json:"images"`
	Patches    []json.RawMessage `json:"patches"`
	Components []string          `json:"components"` // folders, from the kustomization's own
}

// Directory is how plain manifests are picked from a directory.
type Directory struct {
	Recurse bool   `json:"recurse"`
	Include string `json:"include"`
	Exclude string `json:"exclude"`
}

// IsApplication tells Argo CD Applications from other objects.
func IsApplication(o *unstructured.Unstructured) bool {
	return o.GroupVersionKind().GroupKind() == schema.GroupKind{Group: "argoproj.io", Kind: "Application"}
}

// ParseApplication reads an Application from its object.
func ParseApplication(o *unstructured.Unstructured) (Application, error) {
	var app Application
	raw, err := o.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(raw, &app)
	}
	if err != nil {
		return Application{}, fmt.Errorf("reading Application %s: %w", o.GetName(), err)
	}
	return app, nil
}

// Name is the Application's name.
func (a Application) Name() string { return a.Metadata.Name }

// AllSources are the Application's sources, whether it has one or several.
func (a Application) AllSources() []Source {
	if len(a.Spec.Sources) > 0 {
		return a.Spec.Sources
	}
	if a.Spec.Source != nil {
		return []Source{*a.Spec.Source}
	}
	return nil
}

// Chart is the source that is a Helm chart, if there is one.
func (a Application) Chart() (Source, bool) {
	for _, s := range a.AllSources() {
		if s.Chart != "" {
			return s, true
		}
	}
	return Source{}, false
}

// ValueFiles are the value files of the chart, as paths of the tree, least particular
// first.
func (a Application) ValueFiles(repository string) ([]string, error) {
	chart, ok := a.Chart()
	if !ok || chart.Helm == nil {
		return nil, nil
	}
	refs := map[string]bool{}
	for _, s := range a.AllSources() {
		if s.Ref != "" && s.RepoURL == repository {
			refs["$"+s.Ref] = true
		}
	}
	var files []string
	for _, f := range chart.Helm.ValueFiles {
		ref, file, _ := strings.Cut(f, "/")
		if !refs[ref] {
			return nil, fmt.Errorf("the value file %s of Application %s is not of this repository", f, a.Name())
		}
		files = append(files, path.Clean(file))
	}
	return files, nil
}

// Refreshes says whether a change of the file makes Argo CD refresh the Application when
// the forge's webhook reports it. It follows Argo CD's own rule: an exact path, a
// directory above the file, or a pattern; no annotation means every push.
func (a Application) Refreshes(repository, file string) bool {
	value := strings.TrimSpace(a.Metadata.Annotations[PathsAnnotation])
	for _, s := range a.AllSources() {
		if s.RepoURL != repository {
			continue
		}
		if value == "" {
			return true
		}
		for _, item := range strings.Split(value, ";") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			if !path.IsAbs(item) {
				item = path.Join(s.Path, item)
			}
			item = "/" + strings.TrimPrefix(path.Clean(item), "/")
			target := "/" + file
			if item == "/" || item == "/." || target == item || strings.HasPrefix(target, item+"/") {
				return true
			}
			if ok, err := path.Match(item, target); err == nil && ok {
				return true
			}
		}
	}
	return false
}
