// Package argocd prepares the first installation of Argo CD in a cluster, which nobody is
// there to sync yet.
//
// It renders what the tree's own Application `argocd` renders, from the same upstream files
// with the same patches, with the marks by which Argo CD knows its objects. Once it runs,
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

// Bootstrap is the first installation, in the order in which it is applied.
type Bootstrap struct {
	// Installation is Argo CD, its namespace and its projects, for SyncManager.
	Installation []*unstructured.Unstructured
	// Data is merged into objects of the installation, for DataManager.
	Data []*unstructured.Unstructured
	// Root is the root Application, for SyncManager: it brings everything else.
	Root *unstructured.Unstructured
}

// Source is where the tree takes Argo CD from, for whoever fetches it.
func Source(tree fs.FS, cluster fleet.Cluster) (fleet.Source, error) {
	app, err := application(tree, cluster)
	if err != nil {
		return fleet.Source{}, err
	}
	return app.AllSources()[0], nil
}

func application(tree fs.FS, cluster fleet.Cluster) (fleet.Application, error) {
	apps, err := fleet.Applications(tree, cluster)
	if err != nil {
		return fleet.Application{}, err
	}
	i := slices.IndexFunc(apps, func(a fleet.Application) bool { return a.Name() == Application })
	if i < 0 {
		return fleet.Application{}, fmt.Errorf("%s has no Application %s: who would keep Argo CD as Git says?", cluster.Name, Application)
	}
	if len(apps[i].AllSources()) != 1 {
		return fleet.Application{}, fmt.Errorf("Application %s of %s has %d sources: the first installation knows how to render one", Application, cluster.Name, len(apps[i].AllSources()))
	}
	return apps[i], nil
}

// Render renders the first installation of Argo CD in a cluster from the GitOps tree and
// a checkout of upstream's repository at the revision that Source names.
func Render(tree fs.FS, cluster fleet.Cluster, upstream fs.FS, opts Options) (Bootstrap, error) {
	app, err := application(tree, cluster)
	if err != nil {
		return Bootstrap{}, err
	}
	own, err := fleet.RenderSource(upstream, app.AllSources()[0], app.Spec.Destination.Namespace)
	if err != nil {
		return Bootstrap{}, fmt.Errorf("rendering Argo CD for %s: %w", cluster.Name, err)
	}
	track(own, app.Name(), app.Spec.Destination.Namespace)

	brought, err := fleet.Render(tree, cluster)
	if err != nil {
		return Bootstrap{}, err
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
		return Bootstrap{}, fmt.Errorf("%s has no Namespace %s", cluster.Name, Namespace)
	}
	track(first, fleet.RootApplication, Namespace)
	track(last, fleet.RootApplication, Namespace)

	root, err := Root(tree, cluster)
	if err != nil {
		return Bootstrap{}, err
	}
	return Bootstrap{
		Installation: slices.Concat(first, own, last),
		Data:         data(opts),
		Root:         root,
	}, nil
}

// track marks objects as an Application's, as Argo CD does with annotation tracking: those
// without a namespace carry the one of the Application's destination.
func track(objects []*unstructured.Unstructured, app, namespace string) {
	for _, o := range objects {
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

// Root is the cluster's argo-app.yaml, the one manifest that is applied by hand.
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
	return root, nil
}

func data(opts Options) []*unstructured.Unstructured {
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
