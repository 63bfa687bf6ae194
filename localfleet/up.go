package localfleet

import (
	"context"
	"fmt"
	"time"

	"github.com/omnivision/omnivision/localfleet/engine"
	"github.com/omnivision/omnivision/localfleet/story"
)

// Steps is the story of Up: every step, and what it comes after.
func (f *Fleet) Steps() []story.Step {
	return []story.Step{
		{Name: "preflight", Run: f.preflight},
		{Name: "packages", After: []string{"preflight"}, Run: f.packages},
		{Name: "engines", After: []string{"packages"}, Run: f.engines},
		{Name: "network", After: []string{"packages"}, Run: f.network},

		{Name: "control planes", After: []string{"engines", "network"}, Run: f.controlPlanes},
		{Name: "registry", After: []string{"engines", "network"}, Run: f.startRegistry},
		{Name: "forge", After: []string{"engines", "network"}, Run: f.startForge},
		{Name: "edge", After: []string{"control planes", "registry", "forge"}, Run: f.startEdge},
		{Name: "images", After: []string{"engines"}, Run: f.images},
		// Linked anew after each commit; meanwhile the clusters start with the others.
		{Name: "images of this source", After: []string{"engines"}, Run: f.ownImages},

		{Name: "upstream files", After: []string{"packages"}, Run: f.fetchUpstream},
		{Name: "upstream repositories", After: []string{"forge", "upstream files"}, Run: f.pushMirrors},
		{Name: "publish images", After: []string{"images", "registry"}, Run: f.pushImages},
		{Name: "publish images of this source", After: []string{"images of this source", "registry"}, Run: f.pushOwnImages},
		{Name: "publish chart", After: []string{"registry"}, Run: f.pushChart},
		{Name: "GitOps repository", After: []string{"forge", "images", "images of this source"}, Run: f.pushTree},

		{Name: "view from inside", After: []string{"edge"}, Run: f.startView},
		{Name: "identity issuer", After: []string{"forge"}, Run: f.startIssuer},
		{Name: "Sigstore", After: []string{"view from inside", "identity issuer"}, Run: f.startSigstore},
		{Name: "trust and tokens", After: []string{"Sigstore"}, Run: f.belongings},
		{Name: "vulnerability database", After: []string{"registry"}, Run: f.vulnerabilityDatabase},
		{Name: "evidence of the images", After: []string{"publish images of this source", "Sigstore", "vulnerability database"}, Run: f.vouchForApps},

		{Name: "nodes", After: []string{"control planes", "edge", "publish images"}, Run: f.nodes},
		{Name: "cluster DNS", After: []string{"control planes"}, Run: f.installDNS},
		{Name: "GPU substitute", After: []string{"control planes", "publish images of this source"}, Run: f.installGPUs},
		{Name: "Argo CD", After: []string{"control planes", "upstream files"}, Run: f.installArgoCD},
		{Name: "webhooks", After: []string{"GitOps repository", "edge", "Argo CD"}, Run: f.webhooks},
		{Name: "Argo CD ready", After: []string{"Argo CD", "nodes", "cluster DNS"}, Run: f.awaitArgoCD},
		{Name: "root Applications", After: []string{"Argo CD ready", "GitOps repository", "upstream repositories", "publish chart", "publish images of this source", "trust and tokens"}, Run: f.applyRoot},
		{Name: "jobs", After: []string{"root Applications"}, Run: f.awaitJobs},
		// Nothing in a cluster waits for it.
		{Name: "source repository", After: []string{"root Applications"}, Run: f.pushSource},
		// The platform comes last: by then there is evidence, or its Pods are tried again.
		{Name: "Synced and Healthy", After: []string{"root Applications", "webhooks", "GPU substitute", "evidence of the images"}, Run: f.waitHealthy},
		{Name: "evidence of the components", After: []string{"evidence of the images"}, Run: f.vouchForComponents},
	}
}

// unusedImages is how long an image stays in the cache that no Up has asked for: each commit makes new ones of this source.
const unusedImages = 24 * time.Hour

// Up brings the fleet up. It may be called again after any end of an earlier
// one: what runs as it should is kept.
func (f *Fleet) Up(ctx context.Context, watcher story.Watcher) ([]story.Timing, error) {
	if f.elsewhere() {
		return story.Run(ctx, f.ContextSteps(), watcher)
	}
	timings, err := story.Run(ctx, f.Steps(), watcher)
	if err != nil {
		return timings, err
	}
	if err := f.imageBuilder(func(string) {}).Prune(unusedImages); err != nil {
		return timings, err
	}
	return timings, f.saveSubstitutes()
}

// buildProgress tells of a build in one line.
func buildProgress(e engine.Event) string {
	line := fmt.Sprintf("%s %s: %s", e.Engine, e.Version, e.Phase)
	if e.Phase == engine.Compiling && e.Total > 0 {
		line += fmt.Sprintf(" %d of %d packages", e.Done, e.Total)
	} else if e.Item != "" {
		line += " " + e.Item
	}
	if e.Last > 0 && e.Phase != engine.Cached && e.Phase != engine.Built {
		line += fmt.Sprintf(" (%s so far, %s last time)", e.Elapsed.Round(1e9), e.Last.Round(1e9))
	}
	return line
}
