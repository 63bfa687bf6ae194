// Package admission says of an image whether each cluster would be right to run it, as
// far as Git and the registry tell: it is in the cluster's own registry, Git names it
// there, and whom the fleet trusts has signed it, said what it was built from, and found
// nothing in it that stops a release.
//
// It asks no cluster. A cluster's own gate decides by its policy when a Pod is to start;
// this package foretells that, and cannot promise it.
package admission

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/fleet"
)

// Verdict is what one cluster would say of an image.
type Verdict struct {
	Cluster string `json:"cluster"`
	Admit   bool   `json:"wouldAdmit"`
	// Reasons are all that speak against it, or what speaks for it.
	Reasons []string `json:"reasons"`
}

// Checker knows what the clusters want.
type Checker struct {
	Tree  fs.FS // the GitOps tree
	Fleet *fleet.Fleet
	// Policy believes the signer that the fleet trusts.
	Policy verify.Policy
	// Distrust, if set, is why nobody's statements can be believed here.
	Distrust string
	// Exceptions let findings of a scan pass.
	Exceptions scan.Exceptions
	Registry   []remote.Option
	// Insecure registries speak HTTP.
	Insecure bool
	Now      time.Time
}

// Image asks about an image by its digest, which is an index's or a platform's.
func (c Checker) Image(ctx context.Context, image name.Digest) ([]Verdict, error) {
	app, known := c.app(image.Context())
	against, err := c.statements(ctx, image, app.Name)
	if err != nil {
		return nil, err
	}
	var verdicts []Verdict
	for _, cluster := range c.Fleet.Clusters {
		v := Verdict{Cluster: cluster.Name}
		named, why := c.named(ctx, cluster, image)
		if why != "" {
			v.Reasons = append(v.Reasons, why)
		}
		if v.Reasons = append(v.Reasons, against...); len(v.Reasons) == 0 && known {
			v.Admit = true
			v.Reasons = []string{named, "signed by " + c.Policy.Identity.String(), "with provenance and a scan that stops no release"}
		}
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

// app finds the app that a repository holds, in whichever cluster's registry.
func (c Checker) app(repository name.Repository) (fleet.App, bool) {
	for _, cluster := range c.Fleet.Clusters {
		for _, app := range c.Fleet.Apps {
			if r, err := c.repository(cluster, app); err == nil && r.String() == repository.String() {
				return app, true
			}
		}
	}
	return fleet.App{}, false
}

func (c Checker) repository(cluster fleet.Cluster, app fleet.App) (name.Repository, error) {
	var options []name.Option
	if c.Insecure {
		options = append(options, name.Insecure)
	}
	return name.NewRepository(cluster.ImageRegistry+"/"+app.Repository, options...)
}

// named says how Git names the image in a cluster, or else why it does not.
func (c Checker) named(ctx context.Context, cluster fleet.Cluster, image name.Digest) (how, why string) {
	at := slices.IndexFunc(c.Fleet.Apps, func(app fleet.App) bool {
		r, err := c.repository(cluster, app)
		return err == nil && r.String() == image.Context().String()
	})
	if at < 0 {
		return "", fmt.Sprintf("%s holds no app of this cluster, whose registry is %s", image.Context(), cluster.ImageRegistry)
	}
	app := c.Fleet.Apps[at]
	release, err := fleet.ReadRelease(c.Tree, app, cluster.Name)
	switch {
	case err != nil:
		return "", err.Error()
	case release.Empty():
		return "", "Git names no release of " + app.Name + " here"
	case release.Digest == image.DigestStr():
		return "Git names it as " + release.Tag, ""
	}
	platforms, err := c.platforms(ctx, image.Context().Digest(release.Digest))
	switch {
	case err != nil:
		return "", fmt.Sprintf("Git names %s, %s, which cannot be read: %v", release.Tag, release.Digest, err)
	case slices.Contains(platforms, image.DigestStr()):
		return "it is of the index that Git names as " + release.Tag, ""
	}
	return "", fmt.Sprintf("Git names %s, %s", release.Tag, release.Digest)
}

// platforms are the images of an index; there are none of what is no index.
func (c Checker) platforms(ctx context.Context, image name.Digest) ([]string, error) {
	desc, err := remote.Get(image, append(slices.Clone(c.Registry), remote.WithContext(ctx))...)
	if err != nil {
		return nil, err
	}
	if !desc.MediaType.IsIndex() {
		return nil, nil
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(desc.Manifest))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", image, err)
	}
	var digests []string
	for _, m := range index.Manifests {
		digests = append(digests, m.Digest.String())
	}
	return digests, nil
}

// statements lists what is missing of what must be stated about an image, wherever it is
// to run. A node runs one of an index's images, so each of them is asked about.
func (c Checker) statements(ctx context.Context, image name.Digest, app string) ([]string, error) {
	if c.Distrust != "" {
		return []string{c.Distrust}, nil
	}
	platforms, err := c.platforms(ctx, image)
	if err != nil {
		return nil, err
	}
	against, err := c.about(ctx, image, app, len(platforms) == 0)
	if err != nil {
		return nil, err
	}
	for _, digest := range platforms {
		why, err := c.about(ctx, image.Context().Digest(digest), app, true)
		if err != nil {
			return nil, err
		}
		for _, w := range why {
			against = append(against, "its image "+short(digest)+": "+w)
		}
	}
	return against, nil
}

func short(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

// about asks about one digest; of what runs, a scan is wanted.
func (c Checker) about(ctx context.Context, image name.Digest, app string, runs bool) (against []string, err error) {
	believed, _, err := c.Policy.Image(ctx, image, c.Registry...)
	if err != nil {
		return nil, err
	}
	has := func(predicate string) bool {
		return slices.ContainsFunc(believed, func(s verify.Statement) bool { return s.PredicateType == predicate })
	}
	for _, want := range []struct{ predicate, name string }{{verify.Signature, "signature"}, {verify.Provenance, "provenance"}} {
		if !has(want.predicate) {
			against = append(against, "no "+want.name+" by "+c.Policy.Identity.String())
		}
	}
	if !runs {
		return against, nil
	}
	if !has(verify.Scan) {
		return append(against, "no scan by "+c.Policy.Identity.String()), nil
	}
	if why := c.scanned(believed, app); why != "" {
		against = append(against, why)
	}
	return against, nil
}

// scanned says what the scan with the newest database found that stops a release.
func (c Checker) scanned(statements []verify.Statement, app string) string {
	last, _, err := verify.FindLastScan(statements)
	if err != nil {
		return "its scan cannot be read: " + err.Error()
	}
	report, err := scan.Parse(last.Result)
	if err != nil {
		return "its scan cannot be read: " + err.Error()
	}
	var ids []string
	for _, f := range c.Exceptions.Stopping(app, report.Findings(), c.Now) {
		ids = append(ids, string(f.Severity)+" "+f.ID)
	}
	if len(ids) == 0 {
		return ""
	}
	slices.Sort(ids)
	return "its scan found " + strings.Join(slices.Compact(ids), ", ") + ", for which no exception is given"
}
