package fleet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/yaml"
)

// Render is what the cluster's root Application renders: the kustomization of the
// cluster's directory.
func Render(tree fs.FS, cluster Cluster) ([]*unstructured.Unstructured, error) {
	return RenderSource(tree, Source{Path: cluster.Dir()}, "")
}

// Applications are the Applications among what the cluster renders, in rendering order.
func Applications(tree fs.FS, cluster Cluster) ([]Application, error) {
	objects, err := Render(tree, cluster)
	if err != nil {
		return nil, err
	}
	return ParseApplications(objects)
}

// ParseApplications reads the Applications among objects, in their order.
func ParseApplications(objects []*unstructured.Unstructured) ([]Application, error) {
	var apps []Application
	for _, o := range objects {
		if !IsApplication(o) {
			continue
		}
		app, err := ParseApplication(o)
		if err != nil {
			return nil, err
		}
		apps = append(apps, app)
	}
	return apps, nil
}

// RenderSource renders one Git source of an Application from a checkout of its
// repository, as Argo CD's repo-server would: a kustomization with the Application's
// images and patches added, or a directory of plain manifests if it has no kustomization
// or the source says that it is one. Objects without a
// namespace get the given one, unless their kind has none.
func RenderSource(checkout fs.FS, source Source, namespace string) ([]*unstructured.Unstructured, error) {
	objects, _, err := renderSource(checkout, source, namespace)
	return objects, err
}

// renderSource also returns the files that were read: what must refresh the Application.
func renderSource(checkout fs.FS, source Source, namespace string) ([]*unstructured.Unstructured, []string, error) {
	var objects []*unstructured.Unstructured
	var read []string
	file, err := kustomizationFile(checkout, source.Path)
	if err != nil {
		return nil, nil, err
	}
	if file == "" || source.Directory != nil {
		objects, read, err = plain(checkout, source)
	} else {
		objects, read, err = kustomize(checkout, source, file)
	}
	if err != nil {
		return nil, nil, err
	}
	SetNamespace(objects, namespace)
	return objects, read, nil
}

// SetNamespace puts objects that name no namespace into the given one, unless their kind
// has none, as Argo CD does with an Application's destination.
func SetNamespace(objects []*unstructured.Unstructured, namespace string) {
	if namespace == "" {
		return
	}
	for _, o := range objects {
		if o.GetNamespace() == "" && !clusterScoped(o) {
			o.SetNamespace(namespace)
		}
	}
}

func kustomizationFile(checkout fs.FS, dir string) (string, error) {
	if _, err := fs.Stat(checkout, dir); err != nil {
		return "", Problem{File: dir, Message: "cannot be read: " + reason(err), Fix: "an Application points at it"}
	}
	for _, name := range []string{"kustomization.yaml", "kustomization.yml", "Kustomization"} {
		if _, err := fs.Stat(checkout, path.Join(dir, name)); err == nil {
			return path.Join(dir, name), nil
		}
	}
	return "", nil
}

// kustomize writes the Application's own patches into the kustomization, as Argo CD does
// in its checkout, though only in the eyes of this rendering.
func kustomize(checkout fs.FS, source Source, file string) ([]*unstructured.Unstructured, []string, error) {
	files := &checkoutFiles{tree: checkout, replaced: map[string][]byte{}, read: map[string]bool{}}
	if source.Kustomize != nil {
		src, err := fs.ReadFile(checkout, file)
		if err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", file, err)
		}
		if files.replaced[file], err = addToKustomization(src, *source.Kustomize); err != nil {
			return nil, nil, fmt.Errorf("adding the Application's patches to %s: %w", file, err)
		}
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, "/"+source.Path)
	if err != nil {
		return nil, nil, kustomizeProblem(file, err)
	}
	objects, err := fromResMap(built)
	return objects, slices.Sorted(maps.Keys(files.read)), err
}

func fromResMap(built resmap.ResMap) ([]*unstructured.Unstructured, error) {
	objects := make([]*unstructured.Unstructured, 0, built.Size())
	for _, r := range built.Resources() {
		raw, err := r.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("reading what kustomize rendered for %s: %w", r.CurId(), err)
		}
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(raw); err != nil {
			return nil, fmt.Errorf("reading what kustomize rendered for %s: %w", r.CurId(), err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// addToKustomization appends an Application's images, patches and components.
func addToKustomization(src []byte, k Kustomize) ([]byte, error) {
	var content map[string]any
	if err := yaml.Unmarshal(src, &content); err != nil {
		return nil, err
	}
	if len(k.Patches) > 0 {
		patches, _ := content["patches"].([]any)
		for _, raw := range k.Patches {
			var p any
			if err := json.Unmarshal(raw, &p); err != nil {
				return nil, err
			}
			patches = append(patches, p)
		}
		content["patches"] = patches
	}
	if len(k.Components) > 0 {
		components, _ := content["components"].([]any)
		for _, component := range k.Components {
			components = append(components, component)
		}
		content["components"] = components
	}
	if len(k.Images) > 0 {
		images, _ := content["images"].([]any)
		for _, text := range k.Images {
			image := kustomizeImage(text)
			images = slices.DeleteFunc(images, func(i any) bool {
				m, ok := i.(map[string]any)
				return ok && m["name"] == image["name"]
			})
			images = append(images, image)
		}
		content["images"] = images
	}
	return yaml.Marshal(content)
}

// kustomizeImage reads what `kustomize edit set image` takes: [name=]image[:tag][@digest].
func kustomizeImage(text string) map[string]any {
	name, image, renamed := strings.Cut(text, "=")
	if !renamed {
		image = name
	}
	out := map[string]any{}
	image, digest, hasDigest := strings.Cut(image, "@")
	if hasDigest {
		out["digest"] = digest
	}
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		out["newTag"] = image[i+1:]
		image = image[:i]
	}
	if renamed {
		out["newName"] = image
	} else {
		name = image
	}
	out["name"] = name
	return out
}

// plain reads a directory of manifests.
func plain(checkout fs.FS, source Source) ([]*unstructured.Unstructured, []string, error) {
	var read []string
	directory := Directory{}
	if source.Directory != nil {
		directory = *source.Directory
	}
	var objects []*unstructured.Unstructured
	err := fs.WalkDir(checkout, source.Path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != source.Path && !directory.Recurse {
				return fs.SkipDir
			}
			return nil
		}
		if ext := path.Ext(name); ext != ".yaml" && ext != ".yml" && ext != ".json" {
			return nil
		}
		within := strings.TrimPrefix(strings.TrimPrefix(name, source.Path), "/")
		if directory.Include != "" && !globs(directory.Include, within) {
			return nil
		}
		if directory.Exclude != "" && globs(directory.Exclude, within) {
			return nil
		}
		src, err := fs.ReadFile(checkout, name)
		if err != nil {
			return err
		}
		found, err := manifests(name, src)
		objects = append(objects, found...)
		read = append(read, name)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading manifests in %s: %w", source.Path, err)
	}
	return objects, read, nil
}

// globs matches a pattern, or several in braces with commas between.
func globs(pattern, name string) bool {
	pattern = strings.TrimSuffix(strings.TrimPrefix(pattern, "{"), "}")
	for _, p := range strings.Split(pattern, ",") {
		if ok, err := path.Match(p, name); err == nil && ok {
			return true
		}
	}
	return false
}

func manifests(file string, src []byte) ([]*unstructured.Unstructured, error) {
	docs, err := parseAll(file, src)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, doc := range docs {
		var content map[string]any
		if err := doc.Decode(&content); err != nil {
			return nil, yamlProblem(file, err)
		}
		raw, err := json.Marshal(content)
		if err != nil {
			return nil, Problem{File: file, Line: doc.Line, Message: err.Error()}
		}
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(raw); err != nil {
			return nil, Problem{File: file, Line: doc.Line, Message: err.Error()}
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// MarshalYAML writes objects as one stream, for people and for golden files.
func MarshalYAML(objects []*unstructured.Unstructured) ([]byte, error) {
	var out bytes.Buffer
	for i, o := range objects {
		if i > 0 {
			out.WriteString("---\n")
		}
		raw, err := yaml.Marshal(o.Object)
		if err != nil {
			return nil, fmt.Errorf("writing %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		out.Write(raw)
	}
	return out.Bytes(), nil
}

// kustomizeProblem shortens kustomize's chain of errors, in which every directory on the
// way repeats the whole path in memory.
func kustomizeProblem(file string, err error) Problem {
	text := strings.ReplaceAll(err.Error(), "'/", "'")
	return Problem{File: file, Message: "kustomize: " + text}
}
