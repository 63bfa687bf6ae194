package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/render"
	"github.com/omnivision/omnivision/plan/revision"
)

// sourceKey is all that decides what a directory of a tree renders.
type sourceKey struct {
	tree *revision.Tree
	key  string
}

// rendered is what came of a source of the tree, and what was read for it.
type rendered struct {
	objects []object
	trace   *revision.Trace
	err     error
}

// fromTree renders a directory of the tree, once for all the clusters that use it alike.
func (c *comparison) fromTree(p part) rendered {
	key := sourceKey{p.owner.side.tree, p.key}
	c.mu.Lock()
	once := c.sources[key]
	if once == nil {
		once = sync.OnceValue(func() rendered { return renderTree(p) })
		c.sources[key] = once
	}
	c.mu.Unlock()
	return once()
}

func renderTree(p part) rendered {
	trace := p.owner.side.tree.Trace()
	found, err := fleet.RenderSource(trace, p.source, p.namespace)
	r := rendered{trace: trace, err: err}
	for _, o := range found {
		if !o.IsList() {
			r.objects = append(r.objects, object{Unstructured: o})
			continue
		}
		items, err := o.ToList()
		if err != nil {
			return rendered{trace: trace, err: fmt.Errorf("%s of %s has a list that cannot be read: %w", o.GetKind(), p.what(), err)}
		}
		for i := range items.Items {
			item := &items.Items[i]
			fleet.SetNamespace([]*unstructured.Unstructured{item}, p.namespace)
			r.objects = append(r.objects, object{Unstructured: item})
		}
	}
	return r
}

// helmOptions are Argo CD's of a chart.
type helmOptions struct {
	ReleaseName             string         `json:"releaseName"`
	IgnoreMissingValueFiles bool           `json:"ignoreMissingValueFiles"`
	Values                  string         `json:"values"`
	ValuesObject            map[string]any `json:"valuesObject"`
	Parameters              []parameter    `json:"parameters"`
	SkipCRDs                bool           `json:"skipCrds"`
	SkipTests               bool           `json:"skipTests"`
	Namespace               string         `json:"namespace"`
	KubeVersion             string         `json:"kubeVersion"`
	APIVersions             []string       `json:"apiVersions"`
}

type parameter struct {
	Name        string `json:"name"`
	Value       string `json:"value"`
	ForceString bool   `json:"forceString"`
}

func readHelm(raw any) (helmOptions, error) {
	var options helmOptions
	text, err := json.Marshal(raw)
	if err == nil {
		err = json.Unmarshal(text, &options)
	}
	return options, err
}

// fromChart renders the platform's chart as the cluster's Argo CD does.
func (c *comparison) fromChart(ctx context.Context, p part) ([]object, error) {
	ref := chart.Reference{Registry: p.source.RepoURL, Name: p.source.Chart, Version: p.source.TargetRevision}
	loaded, err := c.charts.Chart(ctx, ref)
	if err != nil {
		return nil, err
	}
	c.use(ref, loaded, p)
	values, err := p.mergedValues()
	if err != nil {
		return nil, err
	}
	result, err := loaded.Render(ctx, p.release(), values)
	if err != nil {
		return nil, err
	}
	return collect(result, p), nil
}

func (c *comparison) use(ref chart.Reference, loaded *chart.Loaded, p part) {
	c.mu.Lock()
	c.loaded[ref] = loaded
	c.mu.Unlock()
	if len(p.release().APIVersions) == 0 && loaded.AsksForAPIVersions() {
		c.warn(fmt.Sprintf("chart %s looks at the API versions of the cluster, and %s lists none for %s: only Kubernetes' own count (P4)", ref, fleet.File, p.owner.cluster.Name))
	}
}

func (p part) release() render.Release {
	release := render.Release{
		Name: p.app.Name(), Namespace: p.namespace,
		KubeVersion: p.owner.cluster.KubernetesVersion, APIVersions: p.owner.cluster.APIVersions,
	}
	if p.helm.ReleaseName != "" {
		release.Name = p.helm.ReleaseName
	}
	if p.helm.Namespace != "" {
		release.Namespace = p.helm.Namespace
	}
	if p.helm.KubeVersion != "" {
		release.KubeVersion = p.helm.KubeVersion
	}
	if len(p.helm.APIVersions) > 0 {
		release.APIVersions = p.helm.APIVersions
	}
	return release
}

// mergedValues are the value files, then the values in the Application, then its
// parameters, as Argo CD passes them to Helm.
func (p part) mergedValues() (render.Values, error) {
	merged := map[string]any{}
	for i, content := range p.values {
		values, err := render.ParseValues(p.files[i], content)
		if err != nil {
			return nil, err
		}
		merged = loader.MergeMaps(merged, values)
	}
	switch {
	case p.helm.ValuesObject != nil:
		merged = loader.MergeMaps(merged, p.helm.ValuesObject)
	case p.helm.Values != "":
		values, err := render.ParseValues("the values of Application "+p.app.Name(), []byte(p.helm.Values))
		if err != nil {
			return nil, err
		}
		merged = loader.MergeMaps(merged, values)
	}
	for _, parameter := range p.helm.Parameters {
		set := strvals.ParseInto
		if parameter.ForceString {
			set = strvals.ParseIntoString
		}
		if err := set(parameter.Name+"="+escapeCommas(parameter.Value), merged); err != nil {
			return nil, fmt.Errorf("parameter %s of Application %s: %w", parameter.Name, p.app.Name(), err)
		}
	}
	return merged, nil
}

var bareComma = regexp.MustCompile(`([^\\]),`)

// escapeCommas keeps a parameter one value, unless it is a list in braces, as Argo CD does.
func escapeCommas(value string) string {
	if strings.HasPrefix(value, "{") && strings.HasSuffix(value, "}") {
		return value
	}
	return bareComma.ReplaceAllString(value, `$1\,`)
}

const hookAnnotation = "helm.sh/hook"

// collect takes what Argo CD would apply. Tests of the chart it never runs.
func collect(result *render.Result, p part) []object {
	var objects []object
	add := func(list []render.Object, hooks bool) {
		for _, o := range list {
			hook := ""
			if hooks {
				if hook = o.GetAnnotations()[hookAnnotation]; isTest(hook) {
					continue
				}
			}
			fleet.SetNamespace([]*unstructured.Unstructured{o.Unstructured}, p.namespace)
			objects = append(objects, object{o.Unstructured, hook})
		}
	}
	if !p.helm.SkipCRDs {
		add(result.CRDs, false)
	}
	add(result.Objects, false)
	add(result.Hooks, true)
	return objects
}

func isTest(hook string) bool {
	for name := range strings.SplitSeq(hook, ",") {
		if name = strings.TrimSpace(name); name != "test" && name != "test-success" && name != "test-failure" {
			return false
		}
	}
	return true
}
