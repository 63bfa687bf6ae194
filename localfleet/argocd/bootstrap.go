// Package argocd prepares the first installation of Argo CD in a cluster, which nobody is
// there to sync yet.
//
// It renders what the tree's own Applications `argocd` and `crds` render, from the same
// upstream files with the same patches, with the marks by which Argo CD knows its objects. Once it runs,
// it finds itself installed as Git says and has nothing to change. What is not in Git (the
// certificate authority of Git and chart servers, the webhook's secret) is kept apart: it
// belongs to another field manager, so that a sync does not take it away.
package argocd

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/fleet"
)

const (
	// Application is Argo CD's own Application in the tree.
	Application = "argocd"
	// Namespace is where Argo CD runs.
	Namespace = "argocd"
	// SyncManager is the field manager of Argo CD's syncs. The installation is applied in
	// its name: else the fields would have two owners, and one that Git drops would stay.
	SyncManager = "argocd-controller"
	// DataManager is the field manager for what is not in Git.
	DataManager = "omnivision-bootstrap"

	trackingAnnotation = "argocd.argoproj.io/tracking-id"
)

// Options are what Git does not hold.
type Options struct {
	// CA are the PEM certificates that Argo CD trusts for Hosts instead of the system's;
	// none when empty.
	CA []byte
	// Hosts serve Git repositories and charts. Argo CD looks a certificate up by the host
	// name of the URL, without port, for a registry that is named without scheme as well.
	Hosts []string
	// WebhookSecret signs the forge's webhooks; webhooks are not verified when empty.
	WebhookSecret string
}

// Upstream opens the repository of a source at the source's revision, other than the tree.
type Upstream func(fleet.Source) (fs.FS, error)

// Installation is Argo CD, its namespace and its projects, and all CRDs, for SyncManager,
// rendered from the GitOps tree and from what its Applications for Argo CD and for CRDs
// name as their sources.
//
// The tree brings the CRDs by itself. They are here as well because a running Argo CD
// reads the whole API anew, and renders every Application anew, for each CRD that comes.
func Installation(tree fs.FS, cluster fleet.Cluster, upstream Upstream) ([]*unstructured.Unstructured, error) {
	brought, err := fleet.Render(tree, cluster)
	if err != nil {
		return nil, err
	}
	apps, err := fleet.ParseApplications(brought)
	if err != nil {
		return nil, err
	}
	described, err := fleet.Load(tree)
	if err != nil {
		return nil, err
	}
	open := func(source fleet.Source) (fs.FS, error) {
		if source.RepoURL == described.Repository {
			return tree, nil
		}
		return upstream(source)
	}
	own, err := render(apps, Application, cluster, open)
	if err != nil {
		return nil, err
	}
	crds, err := render(apps, fleet.CRDsApplication, cluster, open)
	if err != nil {
		return nil, err
	}
	var first, last []*unstructured.Unstructured
	for _, o := range brought {
		switch {
		case o.GetKind() == "Namespace" && o.GetName() == Namespace:
			first = append(first, o)
		case o.GetKind() == "AppProject":
			last = append(last, o)
		}
	}
	if len(first) == 0 {
		return nil, fmt.Errorf("%s has no Namespace %s", cluster.Name, Namespace)
	}
	track(first, fleet.RootApplication, Namespace)
	track(last, fleet.RootApplication, Namespace)
	return slices.Concat(first, crds, own, last), nil
}

// render is what one Application of the tree renders, with its mark.
func render(apps []fleet.Application, name string, cluster fleet.Cluster, upstream Upstream) ([]*unstructured.Unstructured, error) {
	i := slices.IndexFunc(apps, func(a fleet.Application) bool { return a.Name() == name })
	if i < 0 {
		return nil, fmt.Errorf("%s has no Application %s: who would keep as Git says what the first installation brings?", cluster.Name, name)
	}
	var all []*unstructured.Unstructured
	namespace := apps[i].Spec.Destination.Namespace
	for _, source := range apps[i].AllSources() {
		checkout, err := upstream(source)
		if err != nil {
			return nil, err
		}
		objects, err := fleet.RenderSource(checkout, source, namespace)
		if err != nil {
			return nil, fmt.Errorf("rendering Application %s for %s: %w", name, cluster.Name, err)
		}
		all = append(all, objects...)
	}
	track(all, name, namespace)
	return all, nil
}

// track marks objects as an Application's, as Argo CD does with annotation tracking: those
// without a namespace carry the one of the Application's destination. A CRD carries none,
// as it may serve several Applications.
func track(objects []*unstructured.Unstructured, app, namespace string) {
	for _, o := range objects {
		if o.GetKind() == "CustomResourceDefinition" {
			continue
		}
		in := o.GetNamespace()
		if in == "" {
			in = namespace
		}
		gvk := o.GroupVersionKind()
		annotations := o.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[trackingAnnotation] = fmt.Sprintf("%s:%s/%s:%s/%s", app, gvk.Group, gvk.Kind, in, o.GetName())
		o.SetAnnotations(annotations)
	}
}

// Root is the cluster's argo-app.yaml, the one manifest that is applied by hand. It brings itself
// from Git, and is marked so: applied without the mark it would be out of sync until Argo CD has healed it.
func Root(tree fs.FS, cluster fleet.Cluster) (*unstructured.Unstructured, error) {
	file := cluster.RootFile()
	src, err := fs.ReadFile(tree, file)
	if err != nil {
		return nil, fmt.Errorf("reading the root Application of %s: %w", cluster.Name, err)
	}
	root := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(src, &root.Object); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if !fleet.IsApplication(root) {
		return nil, fmt.Errorf("%s is a %s, not an Application", file, root.GetKind())
	}
	track([]*unstructured.Unstructured{root}, root.GetName(), root.GetNamespace())
	return root, nil
}

// Data is what Git does not hold, for DataManager. It is merged into objects of the
// installation.
func Data(opts Options) []*unstructured.Unstructured {
	var objects []*unstructured.Unstructured
	if len(opts.CA) > 0 && len(opts.Hosts) > 0 {
		certificates := map[string]any{}
		for _, host := range opts.Hosts {
			if name, _, err := net.SplitHostPort(host); err == nil {
				host = name
			}
			certificates[strings.ToLower(host)] = string(opts.CA)
		}
		objects = append(objects, object("ConfigMap", "argocd-tls-certs-cm", certificates))
	}
	if opts.WebhookSecret != "" {
		// Gitea signs as Gogs did.
		objects = append(objects, object("Secret", "argocd-secret", map[string]any{
			"webhook.gogs.secret": base64.StdEncoding.EncodeToString([]byte(opts.WebhookSecret)),
		}))
	}
	return objects
}

func object(kind, name string, data map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       kind,
		"metadata":   map[string]any{"name": name, "namespace": Namespace},
		"data":       data,
	}}
}
