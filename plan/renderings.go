package plan

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/plan/revision"
)

// Rendering is what one Application of a cluster renders at one revision.
type Rendering struct {
	Application string
	Objects     []*unstructured.Unstructured // shared with others: not to be changed
	// Elsewhere are the sources that are not rendered here, with the reason.
	Elsewhere []string
}

// Renderings are what a plan compares: all Applications of a cluster at one revision, by
// name. It is how a plan can be held against what the cluster's own Argo CD renders.
func Renderings(ctx context.Context, tree *revision.Tree, cluster string, o Options) ([]Rendering, error) {
	c, err := prepare(tree, tree, o)
	if err != nil {
		return nil, err
	}
	of, err := c.head.fleet.Cluster(cluster)
	if err != nil {
		return nil, err
	}
	root, err := renderRoot(tree.Trace(), of, tree.Name)
	if err != nil {
		return nil, fmt.Errorf("rendering the root of %s: %w", cluster, err)
	}
	var all []Rendering
	for _, name := range names(root.apps, nil) {
		rendering, err := c.rendering(ctx, name, target(c.head, &of, root.apps[name]))
		if err != nil {
			return nil, fmt.Errorf("rendering the Application %s of %s: %w", name, cluster, err)
		}
		all = append(all, rendering)
	}
	return all, nil
}

func (c *comparison) rendering(ctx context.Context, name string, p *placed) (Rendering, error) {
	r := Rendering{Application: name}
	parts, err := c.parts(p)
	if err != nil {
		return r, err
	}
	for _, part := range parts {
		if part.kind == elsewhere {
			r.Elsewhere = append(r.Elsewhere, part.identity()+": "+part.reason)
		}
	}
	objects, err := c.render(ctx, parts)
	if err != nil {
		return r, err
	}
	// As in a comparison, the last of two with the same name counts.
	found := byID(objects)
	for _, o := range objects {
		if kept, ok := found[o.id()]; ok && kept.Unstructured == o.Unstructured {
			r.Objects = append(r.Objects, o.Unstructured)
		}
	}
	slices.Sort(r.Elsewhere)
	return r, nil
}
