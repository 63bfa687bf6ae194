// Package fleet reads the fleet as Git describes it: the clusters, their order, the
// applications, the images that each cluster is told to run, and the Argo CD
// Applications that a cluster renders from the tree.
//
// It reads a file tree, whatever revision that came from, and never asks a cluster or a
// registry: two readers of one commit always agree. Changes are edits of single values
// in the bytes of a file (see Set); writing them back is the caller's.
package fleet

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// File is where a tree describes its fleet.
const File = "fleet.yaml"

const (
	apiVersion = "omnivision.ai/v1"
	kind       = "Fleet"
)

// Names that every cluster's tree has in common.
const (
	// RootApplication brings everything else of its cluster.
	RootApplication = "omnivision-root"
	// CRDsApplication brings the CRDs of all components.
	CRDsApplication = "crds"
	// PlatformApplication deploys the platform's chart.
	PlatformApplication = "omnivision-platform"
)

// Fleet is the content of fleet.yaml.
type Fleet struct {
	APIVersion string     `yaml:"apiVersion"`
	Kind       string     `yaml:"kind"`
	Repository string     `yaml:"repository"` // clone URL of the GitOps repository
	Branch     string     `yaml:"branch"`     // the branch that clusters follow
	Chart      Chart      `yaml:"chart"`
	Release    Signer     `yaml:"release"`
	Clusters   []Cluster  `yaml:"clusters"`
	Handovers  []Handover `yaml:"waves"`
	Apps       []App      `yaml:"apps"`
}

// Chart is where the platform's chart is published; the version is each cluster's own.
type Chart struct {
	Registry string `yaml:"registry"` // without scheme, as Argo CD wants OCI registries
	Name     string `yaml:"name"`
}

// Cluster is one region of the platform.
type Cluster struct {
	Name              string    `yaml:"name"`
	DisplayName       string    `yaml:"displayName"`
	Cloud             string    `yaml:"cloud"`
	Region            string    `yaml:"region"`
	Wave              int       `yaml:"wave"`
	KubernetesVersion string    `yaml:"kubernetesVersion"`
	APIVersions       []string  `yaml:"apiVersions"` // served besides Kubernetes' own: group/version or group/version/Kind (P4)
	ImageRegistry     string    `yaml:"imageRegistry"`
	Addresses         Addresses `yaml:"addresses"`
}

// Addresses are the URLs under which a region is reached.
type Addresses struct {
	UI     string `yaml:"ui"`
	ArgoCD string `yaml:"argocd"`
}

// Dir is the cluster's directory in the tree.
func (c Cluster) Dir() string { return path.Join("infrastructure", c.Name) }

// RootFile is the one manifest that is applied by hand.
func (c Cluster) RootFile() string { return path.Join(c.Dir(), "argo-app.yaml") }

// OverridesFile holds the values that are particular to the cluster.
func (c Cluster) OverridesFile() string { return path.Join(c.Dir(), "values-overrides.yaml") }

// PlatformFile pins the version of the platform's chart.
func (c Cluster) PlatformFile() string { return path.Join(c.Dir(), "platform.yaml") }

// App is one image that is released on its own.
type App struct {
	Name       string  `yaml:"name"`
	Repository string  `yaml:"repository"` // below a cluster's image registry
	ValuePath  string  `yaml:"valuePath"`  // key of the chart's values, dotted
	AutoMerge  []Merge `yaml:"autoMerge"`  // pull requests that the steward merges by itself
}

// ValuesFile holds what the app wants in every cluster.
func (a App) ValuesFile() string { return path.Join("apps", a.Name, "values.yaml") }

// ReleaseFile holds the app's image in one cluster: what a release changes.
func (a App) ReleaseFile(cluster string) string {
	return path.Join("apps", a.Name, cluster+".yaml")
}

func (a App) keys(last string) []string {
	return append(strings.Split(a.ValuePath, "."), last)
}

// Release is an image as Git names it (P3): the tag for people, the digest for machines.
type Release struct {
	Tag    string `json:"tag"`
	Digest string `json:"digest"`
}

// Empty says that the app was never released in the cluster: the tag is at most the one
// that a first release would have.
func (r Release) Empty() bool { return r.Digest == "" }

// Reference is the image as a manifest names it.
func (r Release) Reference(registry, repository string) string {
	ref := registry + "/" + repository + ":" + r.Tag
	if r.Digest != "" {
		ref += "@" + r.Digest
	}
	return ref
}

// Load reads fleet.yaml. Unknown keys, missing values and clusters that cannot be told
// apart are Problems with file and line.
func Load(tree fs.FS) (*Fleet, error) {
	src, err := fs.ReadFile(tree, File)
	if err != nil {
		return nil, Problem{File: File, Message: "cannot be read: " + reason(err), Fix: "a GitOps tree has it at its top; check the path"}
	}
	f := Fleet{Release: Signer{Issuer: GitHubIssuer}}
	dec := yaml.NewDecoder(strings.NewReader(string(src)))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return nil, yamlProblem(File, err)
	}
	doc, err := parse(File, src)
	if err != nil {
		return nil, err
	}
	if problems := f.check(doc); len(problems) > 0 {
		return nil, problems[0]
	}
	return &f, nil
}

// Cluster finds a cluster by its name; the error lists the names there are.
func (f *Fleet) Cluster(name string) (Cluster, error) {
	names := make([]string, 0, len(f.Clusters))
	for _, c := range f.Clusters {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return Cluster{}, fmt.Errorf("%s names no cluster %q: it has %s", File, name, strings.Join(names, ", "))
}

// App finds an app by its name; the error lists the names there are.
func (f *Fleet) App(name string) (App, error) {
	for _, a := range f.Apps {
		if a.Name == name {
			return a, nil
		}
	}
	return App{}, fmt.Errorf("%s names no app %q: it has %s", File, name, f.appNames())
}

// Waves groups the clusters in the order in which a release reaches them (P20).
func (f *Fleet) Waves() [][]Cluster {
	sorted := slices.Clone(f.Clusters)
	slices.SortStableFunc(sorted, func(a, b Cluster) int { return a.Wave - b.Wave })
	var waves [][]Cluster
	for _, c := range sorted {
		if n := len(waves); n > 0 && waves[n-1][0].Wave == c.Wave {
			waves[n-1] = append(waves[n-1], c)
		} else {
			waves = append(waves, []Cluster{c})
		}
	}
	return waves
}

// ReadRelease reads which image Git wants of an app in a cluster.
func ReadRelease(tree fs.FS, app App, cluster string) (Release, error) {
	file := app.ReleaseFile(cluster)
	src, err := fs.ReadFile(tree, file)
	if err != nil {
		return Release{}, Problem{File: file, Message: "cannot be read: " + reason(err), Fix: "every app of " + File + " has one file for each cluster"}
	}
	return ParseRelease(file, src, app)
}

// ParseRelease is ReadRelease for bytes that are at hand; file is for its errors.
func ParseRelease(file string, src []byte, app App) (Release, error) {
	doc, err := parse(file, src)
	if err != nil {
		return Release{}, err
	}
	var r Release
	for _, part := range []struct {
		key   string
		value *string
	}{{"tag", &r.Tag}, {"digest", &r.Digest}} {
		keys := app.keys(part.key)
		node := find(doc, keys...)
		switch {
		case node == nil:
			return Release{}, Problem{File: file, Line: nearest(doc, keys...), Message: fmt.Sprintf("has no key %s", strings.Join(keys, ".")), Fix: fmt.Sprintf("write %s: \"\" for an app that was never released", part.key)}
		case node.Kind != yaml.ScalarNode || node.Tag != "!!str":
			// P5: an unquoted 1.10 is the number 1.1.
			return Release{}, Problem{File: file, Line: node.Line, Message: fmt.Sprintf("%s is not a string", strings.Join(keys, ".")), Fix: "put it in quotes"}
		}
		*part.value = node.Value
	}
	if p := r.problem(); p != "" {
		return Release{}, Problem{File: file, Line: nearest(doc, app.keys("digest")...), Message: p, Fix: "a release writes tag and digest together, as the registry has them"}
	}
	return r, nil
}

var (
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	tagPattern    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	namePattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func (r Release) problem() string {
	switch {
	case r.Tag == "latest":
		return "the tag latest moves: it names no release"
	case r.Tag == "" && r.Digest != "":
		return "has a digest and no tag"
	case r.Tag != "" && !tagPattern.MatchString(r.Tag):
		return fmt.Sprintf("%q is no image tag", r.Tag)
	case r.Digest != "" && !digestPattern.MatchString(r.Digest):
		return fmt.Sprintf("%q is no digest: sha256: and 64 hexadecimal digits", r.Digest)
	}
	return ""
}

// SetRelease returns the bytes of an app's release file with another image. Everything
// else in it stays as it is.
func SetRelease(src []byte, app App, r Release) ([]byte, error) {
	if r.Tag == "" || r.Digest == "" {
		return nil, errors.New("setting a release takes a tag and a digest")
	}
	if p := r.problem(); p != "" {
		return nil, fmt.Errorf("setting a release of %s: %s", app.Name, p)
	}
	return Set(src,
		Change{Path: app.keys("tag"), Value: r.Tag},
		Change{Path: app.keys("digest"), Value: r.Digest})
}

// check looks for what the YAML decoder cannot see.
func (f *Fleet) check(doc *yaml.Node) []Problem {
	var problems []Problem
	report := func(message, fix string, keys ...string) {
		problems = append(problems, Problem{File: File, Line: nearest(doc, keys...), Message: message, Fix: fix})
	}
	if f.APIVersion != apiVersion || f.Kind != kind {
		report(fmt.Sprintf("is %s %s, not %s %s", f.APIVersion, f.Kind, apiVersion, kind), "this program reads that version only", "apiVersion")
	}
	required := func(value string, keys ...string) {
		if value == "" {
			report(strings.Join(keys, ".")+" is missing", "", keys...)
		}
	}
	required(f.Repository, "repository")
	required(f.Branch, "branch")
	required(f.Chart.Registry, "chart", "registry")
	required(f.Chart.Name, "chart", "name")
	if strings.Contains(f.Chart.Registry, "://") {
		report("chart.registry has a scheme", "Argo CD takes an OCI registry for one only without oci://", "chart", "registry")
	}
	if key, message, fix := f.Release.problem(); message != "" {
		report(message, fix, "release", key)
	}
	if len(f.Clusters) == 0 {
		report("names no cluster", "a fleet has at least one", "clusters")
	}
	seen := map[string]bool{}
	for i, c := range f.Clusters {
		at := []string{"clusters", fmt.Sprint(i)}
		for _, r := range []struct{ key, value string }{
			{"name", c.Name}, {"displayName", c.DisplayName}, {"cloud", c.Cloud}, {"region", c.Region},
			{"kubernetesVersion", c.KubernetesVersion}, {"imageRegistry", c.ImageRegistry},
		} {
			required(r.value, append(slices.Clone(at), r.key)...)
		}
		required(c.Addresses.UI, append(slices.Clone(at), "addresses", "ui")...)
		required(c.Addresses.ArgoCD, append(slices.Clone(at), "addresses", "argocd")...)
		if c.Name != "" && !namePattern.MatchString(c.Name) {
			report(fmt.Sprintf("%q cannot be a cluster's name", c.Name), "lower case letters, digits and -", append(at, "name")...)
		}
		if seen["cluster/"+c.Name] {
			report(fmt.Sprintf("cluster %q is named twice", c.Name), "", append(at, "name")...)
		}
		seen["cluster/"+c.Name] = true
		if c.Cloud != "" && c.Cloud != "aws" && c.Cloud != "gcp" {
			report(fmt.Sprintf("cluster %s is on cloud %q", c.Name, c.Cloud), "the chart knows aws and gcp", append(at, "cloud")...)
		}
		if c.Wave < 1 {
			report(fmt.Sprintf("cluster %s has no wave", c.Name), "waves count from 1", append(at, "wave")...)
		}
	}
	for i, a := range f.Apps {
		at := []string{"apps", fmt.Sprint(i)}
		required(a.Name, append(slices.Clone(at), "name")...)
		required(a.Repository, append(slices.Clone(at), "repository")...)
		required(a.ValuePath, append(slices.Clone(at), "valuePath")...)
		if a.Name != "" && !namePattern.MatchString(a.Name) {
			report(fmt.Sprintf("%q cannot be an app's name", a.Name), "lower case letters, digits and -", append(at, "name")...)
		}
		if seen["app/"+a.Name] {
			report(fmt.Sprintf("app %q is named twice", a.Name), "", append(at, "name")...)
		}
		seen["app/"+a.Name] = true
	}
	f.checkHandovers(report)
	slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
	return problems
}
