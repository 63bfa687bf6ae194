package plan

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/omnivision/omnivision/fleet"
)

// kind is how a source of an Application is treated.
type kind int

const (
	elsewhere kind = iota // not rendered, only compared
	fromTree              // a directory of the GitOps tree
	fromChart             // the platform's chart
)

// part is one source of an Application, with all that decides what it renders.
type part struct {
	kind      kind
	owner     *placed
	app       fleet.Application
	source    fleet.Source
	helm      helmOptions
	namespace string
	reason    string // why it is not rendered
	// key holds everything but files: two parts with the same key and the same files
	// render the same.
	key    string
	values [][]byte // value files, in their order
	files  []string // their names
}

// identity finds the same source at another revision.
func (p part) identity() string { return p.source.RepoURL + " " + p.what() }

func (p part) what() string {
	if p.source.Chart != "" {
		return "chart " + p.source.Chart
	}
	if p.source.Path == "" {
		return "."
	}
	return p.source.Path
}

// parts are an Application's sources; nil for none. References to value files are no
// sources of manifests.
func (c *comparison) parts(p *placed) ([]part, error) {
	if p == nil {
		return nil, nil
	}
	app, err := fleet.ParseApplication(p.object)
	if err != nil {
		return nil, err
	}
	raw := rawSources(p.object.Object)
	var parts []part
	for i, source := range app.AllSources() {
		if source.Ref != "" && source.Path == "" && source.Chart == "" {
			continue
		}
		part := part{owner: p, app: app, source: source, namespace: app.Spec.Destination.Namespace}
		if i >= len(raw) {
			return nil, fmt.Errorf("its source %d cannot be read", i)
		}
		if err := c.classify(&part, raw[i]); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return parts, nil
}

func rawSources(app map[string]any) []map[string]any {
	spec, _ := app["spec"].(map[string]any)
	list, _ := spec["sources"].([]any)
	if len(list) == 0 {
		list = []any{spec["source"]}
	}
	var sources []map[string]any
	for _, item := range list {
		source, _ := item.(map[string]any)
		sources = append(sources, source)
	}
	return sources
}

// classify decides how a source is treated.
func (c *comparison) classify(p *part, raw map[string]any) error {
	own := p.owner.side.fleet
	switch {
	case p.source.Chart != "":
		return c.classifyChart(p, raw)
	case p.source.RepoURL != own.Repository:
		p.reason = "it comes from another repository"
	case p.source.TargetRevision != own.Branch && p.source.TargetRevision != "" && p.source.TargetRevision != "HEAD":
		p.reason = "it follows " + p.source.TargetRevision + ", not the branch of the tree"
	case !fs.ValidPath(path.Clean(p.source.Path)):
		p.reason = "its path is not in the tree"
	case isChart(p.owner.side, p.source.Path):
		p.reason = "it is a chart in Git"
	default:
		p.kind, p.reason = fromTree, unknownKey(raw, treeKeys)
	}
	return p.seal(raw)
}

// classifyChart renders charts of the registry that the base names: a proposed change must
// not be able to send whoever plans it to another host.
func (c *comparison) classifyChart(p *part, raw map[string]any) error {
	trusted := c.base.fleet.Chart.Registry
	if p.source.RepoURL != trusted {
		p.reason = "its registry is not " + trusted + ", which the base names"
		return p.seal(raw)
	}
	if p.reason = unknownKey(raw, chartKeys); p.reason != "" {
		return p.seal(raw)
	}
	helm, err := readHelm(raw["helm"])
	if err != nil {
		return fmt.Errorf("reading its Helm options: %w", err)
	}
	files, err := p.app.ValueFiles(p.owner.side.fleet.Repository)
	if err != nil {
		p.reason = err.Error()
		return p.seal(raw)
	}
	p.kind, p.helm, p.files = fromChart, helm, files
	for _, file := range files {
		content, err := p.owner.side.tree.ReadFile(file)
		if err != nil && !helm.IgnoreMissingValueFiles {
			return fleet.Problem{File: file, Message: "cannot be read, and " + p.app.Name() + " takes values from it", Fix: "add it, or take it off the list of value files"}
		}
		p.values = append(p.values, content)
	}
	return p.seal(raw)
}

// seal makes the key, when all is known.
func (p *part) seal(raw map[string]any) error {
	if p.reason != "" {
		p.kind = elsewhere
	}
	spec, err := json.Marshal(raw)
	if err != nil {
		return fmt.Errorf("reading its source: %w", err)
	}
	key := []string{string(spec), p.namespace}
	if p.kind == fromChart {
		key = append(key, p.app.Name(), p.owner.cluster.KubernetesVersion, strings.Join(p.owner.cluster.APIVersions, ","))
	}
	p.key = strings.Join(key, "\n")
	return nil
}

func isChart(s side, dir string) bool {
	_, err := fs.Stat(s.tree, path.Join(dir, "Chart.yaml"))
	return err == nil
}

// keys is what is understood of a part of an Application; what is not would be rendered
// otherwise than Argo CD does, so it is not rendered at all.
type keys map[string]keys

var (
	treeKeys = keys{
		"repoURL": nil, "targetRevision": nil, "path": nil, "ref": nil, "name": nil,
		"kustomize": {"images": nil, "patches": nil},
		"directory": {"recurse": nil, "include": nil, "exclude": nil},
	}
	chartKeys = keys{
		"repoURL": nil, "targetRevision": nil, "chart": nil, "name": nil,
		"helm": {
			"releaseName": nil, "valueFiles": nil, "ignoreMissingValueFiles": nil, "values": nil, "valuesObject": nil,
			"parameters": nil, "skipCrds": nil, "skipTests": nil, "namespace": nil, "kubeVersion": nil, "apiVersions": nil,
			"passCredentials": nil, "version": nil,
		},
	}
)

func unknownKey(raw map[string]any, known keys) string {
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		below, found := known[key]
		if !found {
			return "it uses " + key + ", which is not rendered here"
		}
		if m, ok := raw[key].(map[string]any); ok && below != nil {
			if reason := unknownKey(m, below); reason != "" {
				return strings.Replace(reason, "it uses ", "it uses "+key+".", 1)
			}
		}
	}
	return ""
}
