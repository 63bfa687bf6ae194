// Package render turns a Helm chart and value files into the Kubernetes objects
// that a given cluster would get.
//
// It renders exactly as the cluster's Argo CD does, from what the caller says
// of the cluster: its Kubernetes version and its API versions (P4). It never
// talks to a cluster: `lookup` finds nothing and DNS is off, so the same input
// renders the same objects on a laptop, in CI and in the cluster. It does not
// fetch charts or dependencies; a chart comes as a directory or an archive that
// has all it needs.
package render

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Chart is a chart in memory. It may be rendered many times, and by several
// goroutines at once.
type Chart struct {
	chart *chart.Chart
}

// Load reads a chart from a directory or a .tgz archive.
func Load(path string) (*Chart, error) {
	c, err := loader.Load(path)
	return loaded(c, err, path)
}

// LoadArchive reads a packed chart, such as the layer of an OCI artifact.
func LoadArchive(r io.Reader) (*Chart, error) {
	c, err := loader.LoadArchive(r)
	return loaded(c, err, "archive")
}

func loaded(c *chart.Chart, err error, from string) (*Chart, error) {
	if err != nil {
		return nil, fmt.Errorf("loading the chart from %s: %w", from, err)
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("loading the chart from %s: Chart.yaml: %w", from, err)
	}
	if missing := missingDependencies(c); len(missing) > 0 {
		return nil, fmt.Errorf("loading the chart from %s: it lacks its dependencies %s; run `helm dependency build` first",
			from, strings.Join(missing, ", "))
	}
	return &Chart{chart: c}, nil
}

func missingDependencies(c *chart.Chart) []string {
	var missing []string
	for _, want := range c.Metadata.Dependencies {
		if !slices.ContainsFunc(c.Dependencies(), func(have *chart.Chart) bool { return have.Name() == want.Name }) {
			missing = append(missing, want.Name)
		}
	}
	return missing
}

// Name of the chart.
func (c *Chart) Name() string { return c.chart.Name() }

// Version of the chart.
func (c *Chart) Version() string { return c.chart.Metadata.Version }

// AsksForAPIVersions says whether a template looks at what the cluster serves, so that
// Release.APIVersions may decide what is rendered (P4).
func (c *Chart) AsksForAPIVersions() bool {
	return slices.ContainsFunc(c.chart.Raw, func(f *common.File) bool {
		return bytes.Contains(f.Data, []byte(".Capabilities.APIVersions"))
	})
}

// Values is one value file.
type Values map[string]any

// ReadValues reads value files, in the order in which they apply.
func ReadValues(paths ...string) ([]Values, error) {
	files := make([]Values, 0, len(paths))
	for _, name := range paths {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading values: %w", err)
		}
		values, err := ParseValues(name, data)
		if err != nil {
			return nil, err
		}
		files = append(files, values)
	}
	return files, nil
}

// ParseValues reads the content of one value file; its name is for the error.
func ParseValues(name string, data []byte) (Values, error) {
	values, err := loader.LoadValues(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("reading values from %s: %w", name, err)
	}
	return values, nil
}

// Release is what a chart is rendered for.
type Release struct {
	Name      string
	Namespace string
	// KubeVersion of the cluster, such as v1.37.2.
	KubeVersion string
	// APIVersions that the cluster serves besides Kubernetes' own, as
	// group/version or group/version/Kind.
	APIVersions []string
}

func (r Release) capabilities() (*common.Capabilities, error) {
	switch {
	case r.Name == "":
		return nil, errors.New("the release needs a name")
	case r.Namespace == "":
		return nil, errors.New("the release needs a namespace")
	case r.KubeVersion == "":
		return nil, errors.New("the target's Kubernetes version is needed, such as v1.37.2: templates may depend on it (P4)")
	}
	if err := chartutil.ValidateReleaseName(r.Name); err != nil {
		return nil, fmt.Errorf("release name %q: %w", r.Name, err)
	}
	version, err := common.ParseKubeVersion(r.KubeVersion)
	if err != nil {
		return nil, fmt.Errorf("reading the Kubernetes version %q: %w", r.KubeVersion, err)
	}
	capabilities := common.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *version
	capabilities.APIVersions = append(slices.Clone(capabilities.APIVersions), r.APIVersions...)
	return capabilities, nil
}

// Object is one rendered object and the template that it came from.
type Object struct {
	*unstructured.Unstructured
	// Source is the template's path, beginning with the chart's name.
	Source string
}

// ID names an object for people, and is unique within a Result.
func (o Object) ID() string {
	id := o.GetKind() + "/" + o.GetName()
	if group := o.GroupVersionKind().Group; group != "" {
		id = o.GetKind() + "." + group + "/" + o.GetName()
	}
	if o.GetNamespace() != "" {
		return o.GetNamespace() + "/" + id
	}
	return id
}

// Result of a rendering.
type Result struct {
	// CRDs are the objects of the chart's crds folder, which Helm does not render.
	CRDs []Object
	// Objects in the order in which Helm installs them.
	Objects []Object
	// Hooks are the objects that are applied at certain moments only, such as
	// the Pods of `helm test`.
	Hooks []Object
	// Notes are the chart's words to its user.
	Notes string
	// Values are the effective ones: the chart's own, overridden.
	Values map[string]any
}

// Render renders the chart with value files, of which later ones override
// earlier ones.
func (c *Chart) Render(ctx context.Context, release Release, files ...Values) (*Result, error) {
	result, err := c.render(ctx, release, files)
	if err != nil {
		return nil, fmt.Errorf("rendering chart %s %s as %s: %w", c.Name(), c.Version(), cmp.Or(release.Name, "an unnamed release"), err)
	}
	return result, nil
}

func (c *Chart) render(ctx context.Context, release Release, files []Values) (*Result, error) {
	capabilities, err := release.capabilities()
	if err != nil {
		return nil, err
	}
	if want := c.chart.Metadata.KubeVersion; want != "" && !chartutil.IsCompatibleRange(want, capabilities.KubeVersion.String()) {
		return nil, fmt.Errorf("the chart is for Kubernetes %s, not %s", want, release.KubeVersion)
	}
	merged := map[string]any{}
	for _, values := range files {
		merged = loader.MergeMaps(merged, values)
	}
	private, err := c.private()
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependencies(private, merged); err != nil {
		return nil, fmt.Errorf("choosing dependencies: %w", err)
	}
	values, err := commonutil.ToRenderValues(private, merged, common.ReleaseOptions{
		Name: release.Name, Namespace: release.Namespace, Revision: 1, IsInstall: true,
	}, capabilities)
	if err != nil {
		return nil, err
	}
	// The zero Engine has no client for `lookup` and no DNS.
	rendered, err := engine.Engine{}.RenderWithContext(ctx, private, values)
	if err != nil {
		return nil, err
	}
	return collect(private, rendered, values)
}

// private returns a chart that rendering may change: Helm removes disabled
// dependencies from it and writes imported values into it.
func (c *Chart) private() (*chart.Chart, error) {
	if len(c.chart.Metadata.Dependencies) == 0 {
		return c.chart, nil
	}
	files := make([]*archive.BufferedFile, 0, len(c.chart.Raw))
	for _, f := range c.chart.Raw {
		files = append(files, &archive.BufferedFile{Name: f.Name, ModTime: f.ModTime, Data: f.Data})
	}
	return loader.LoadFiles(files)
}

const notesFile = "NOTES.txt"

func collect(c *chart.Chart, rendered map[string]string, values common.Values) (*Result, error) {
	result := &Result{Notes: rendered[path.Join(c.Name(), "templates", notesFile)]}
	if effective, err := values.Table("Values"); err == nil {
		result.Values = effective
	}
	for name := range rendered {
		if path.Base(name) == notesFile {
			delete(rendered, name)
		}
	}
	for _, crd := range c.CRDObjects() {
		objects, err := parse(crd.Filename, string(crd.File.Data))
		if err != nil {
			return nil, err
		}
		result.CRDs = append(result.CRDs, objects...)
	}
	hooks, manifests, err := releaseutil.SortManifests(rendered, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("sorting the rendered objects: %w", err)
	}
	for _, m := range manifests {
		objects, err := parse(m.Name, m.Content)
		if err != nil {
			return nil, err
		}
		result.Objects = append(result.Objects, objects...)
	}
	for _, h := range hooks {
		objects, err := parse(h.Path, h.Manifest)
		if err != nil {
			return nil, err
		}
		result.Hooks = append(result.Hooks, objects...)
	}
	return result, refuseDuplicates(result.Objects)
}

// parse reads the objects of one rendered file. A key that is there twice is an
// error: Kubernetes would keep one of the two, silently.
func parse(source, text string) ([]Object, error) {
	var objects []Object
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading what %s renders: %w", source, err)
		}
		content, err := decode(document)
		if err != nil {
			return nil, fmt.Errorf("%s does not render to YAML: %w", source, err)
		}
		if len(content) == 0 {
			continue
		}
		object := &unstructured.Unstructured{Object: content}
		if object.GetKind() == "" || object.GetAPIVersion() == "" {
			return nil, fmt.Errorf("%s renders something that has no kind or no apiVersion", source)
		}
		if !object.IsList() {
			objects = append(objects, Object{object, source})
			continue
		}
		err = object.EachListItem(func(item runtime.Object) error {
			objects = append(objects, Object{item.(*unstructured.Unstructured), source})
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s renders a list that cannot be read: %w", source, err)
		}
	}
}

// decode keeps whole numbers whole, as unstructured objects want them.
func decode(document []byte) (map[string]any, error) {
	text, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, err
	}
	var content map[string]any
	err = utiljson.Unmarshal(text, &content)
	return content, err
}

func refuseDuplicates(objects []Object) error {
	seen := map[string]string{}
	for _, o := range objects {
		if first, twice := seen[o.ID()]; twice {
			return fmt.Errorf("%s and %s both render %s", first, o.Source, o.ID())
		}
		seen[o.ID()] = o.Source
	}
	return nil
}
