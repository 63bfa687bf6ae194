package localfleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet/mirror"
	"github.com/omnivision/omnivision/localfleet/story"
	"github.com/omnivision/omnivision/localfleet/topology"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// MatchContexts says which kubeconfig context is which cluster of the fleet.
// Each is given as CLUSTER=CONTEXT, or as CONTEXT alone if it is called as its
// cluster. Contexts that are all given alone, as many as there are clusters,
// are taken in the order of fleet.yaml. Where nobody knows the clusters, described
// is nil and every one is CLUSTER=CONTEXT.
func MatchContexts(described *fleet.Fleet, given []string) (map[string]string, error) {
	matched := map[string]string{}
	var alone []string
	for _, one := range given {
		cluster, kubeContext, named := cutCluster(described, one)
		switch {
		case !named:
			alone = append(alone, one)
			continue
		case kubeContext == "":
			return nil, fmt.Errorf("--context %s names no context: write CLUSTER=CONTEXT", one)
		case matched[cluster] != "":
			return nil, fmt.Errorf("%s has two contexts, %s and %s", cluster, matched[cluster], kubeContext)
		}
		matched[cluster] = kubeContext
	}
	if len(alone) == 0 {
		return matched, nil
	}
	if described == nil {
		return nil, fmt.Errorf("which clusters are the contexts %s? Write each as CLUSTER=CONTEXT", strings.Join(alone, ", "))
	}
	if len(matched) > 0 || len(alone) != len(described.Clusters) {
		return nil, fmt.Errorf("which clusters are the contexts %s? Write each as CLUSTER=CONTEXT; the clusters are %s",
			strings.Join(alone, ", "), strings.Join(namesOf(described), ", "))
	}
	for i, cluster := range described.Clusters {
		matched[cluster.Name] = alone[i]
	}
	return matched, nil
}

// cutCluster takes the cluster off the front of CLUSTER=CONTEXT. Contexts of
// clouds have '=' in their names nowhere, but may have anything else.
func cutCluster(described *fleet.Fleet, given string) (cluster, kubeContext string, named bool) {
	if cluster, kubeContext, named = strings.Cut(given, "="); !named {
		cluster, kubeContext = given, given
	}
	if described == nil {
		return cluster, kubeContext, named
	}
	_, err := described.Cluster(cluster)
	return cluster, kubeContext, err == nil
}

func namesOf(described *fleet.Fleet) []string {
	var names []string
	for _, c := range described.Clusters {
		names = append(names, c.Name)
	}
	return names
}

// Connect makes a client configuration of each context, by cluster.
func Connect(contexts map[string]string) (map[string]*rest.Config, error) {
	configs := map[string]*rest.Config{}
	for cluster, kubeContext := range contexts {
		config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			clientcmd.NewDefaultClientConfigLoadingRules(),
			&clientcmd.ConfigOverrides{CurrentContext: kubeContext},
		).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("context %q for %s: %w", kubeContext, cluster, err)
		}
		configs[cluster] = config
	}
	return configs, nil
}

// elsewhere reports whether the clusters are somebody else's.
func (f *Fleet) elsewhere() bool { return len(f.remote) > 0 }

// ContextSteps is the story of Up for clusters that exist: Argo CD and the root
// Application. All else comes from Git and the registries that the tree names.
func (f *Fleet) ContextSteps() []story.Step {
	return []story.Step{
		{Name: "contexts", Run: f.checkContexts},
		{Name: "upstream repository", After: []string{"contexts"}, Run: f.fetchUpstream},
		{Name: "Argo CD", After: []string{"upstream repository"}, Run: f.installArgoCD},
		{Name: "Argo CD ready", After: []string{"Argo CD"}, Run: f.awaitArgoCD},
		{Name: "root Applications", After: []string{"Argo CD ready"}, Run: f.applyRoot},
		{Name: "Synced and Healthy", After: []string{"root Applications"}, Run: f.waitHealthy},
	}
}

// checkContexts asks each cluster whether it is what fleet.yaml says, before
// anything is applied to any.
func (f *Fleet) checkContexts(ctx context.Context, report func(string)) error {
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		report(fmt.Sprintf("%s is context %s", c.Name, f.contexts[c.Name]))
		described, err := f.Tree.Cluster(c.Name)
		if err != nil {
			return err
		}
		if err := f.checkVersion(described); err != nil {
			return err
		}
		return f.checkCloud(ctx, described)
	})
}

func (f *Fleet) checkVersion(described fleet.Cluster) error {
	client, err := discovery.NewDiscoveryClientForConfig(f.remote[described.Name])
	if err != nil {
		return err
	}
	info, err := client.ServerVersion()
	if err != nil {
		return fmt.Errorf("context %s does not answer: %w", f.contexts[described.Name], err)
	}
	running, err := version.ParseGeneric(info.GitVersion)
	if err != nil {
		return fmt.Errorf("read version of Kubernetes %q: %w", info.GitVersion, err)
	}
	expected, err := version.ParseGeneric(described.KubernetesVersion)
	if err != nil {
		return fmt.Errorf("read kubernetesVersion %q: %w", described.KubernetesVersion, err)
	}
	if running.Major() != expected.Major() || running.Minor() != expected.Minor() {
		return fmt.Errorf("runs Kubernetes %s, but fleet.yaml says %s, by which its manifests are rendered: correct kubernetesVersion", running, expected)
	}
	return nil
}

// providers are the prefixes of the nodes' provider IDs in each cloud.
var providers = map[string]string{"aws": "aws://", "gcp": "gce://"}

// checkCloud refuses a cluster of another cloud than fleet.yaml says: contexts
// are easily mixed up. Nodes of neither cloud (kind) are anybody's.
func (f *Fleet) checkCloud(ctx context.Context, described fleet.Cluster) error {
	api, err := f.client(described.Name, "omnivision-status")
	if err != nil {
		return err
	}
	list, err := api.Dynamic.Resource(nodes).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for i := range list.Items {
		id := text(list.Items[i].Object, "spec", "providerID")
		for cloud, prefix := range providers {
			if cloud != described.Cloud && strings.HasPrefix(id, prefix) {
				return fmt.Errorf("fleet.yaml says cloud %s, but node %s is %s: is context %s another cluster's?",
					described.Cloud, list.Items[i].GetName(), id, f.contexts[described.Name])
			}
		}
	}
	return nil
}

// fetchUpstream fetches the repositories that the tree names: Argo CD and the CRDs are
// installed from them.
func (f *Fleet) fetchUpstream(ctx context.Context, report func(string)) error {
	repos, err := mirror.Repositories(os.DirFS(filepath.Join(f.Source, treeDir)))
	if err != nil {
		return err
	}
	maker := mirror.New(os.TempDir(), f.Offline)
	for _, repo := range repos {
		report(repo.Name())
		result, err := maker.Build(ctx, repo, f.mirrorDir())
		if err != nil {
			return err
		}
		if result.Substitute {
			f.substitute("repository "+repo.URL, result.Origin)
		}
		f.mirrors = append(f.mirrors, mirrored{repo, result.Dir})
	}
	return nil
}

// contextStatus asks clusters that exist.
func (f *Fleet) contextStatus(ctx context.Context) (*Status, error) {
	status := &Status{Up: true, Forge: f.Tree.Repository, Clusters: f.clusterStatuses(ctx)}
	for i, c := range f.Plan.Clusters {
		described, err := f.Tree.Cluster(c.Name)
		if err != nil {
			return nil, err
		}
		status.Clusters[i].UI, status.Clusters[i].ArgoCD = described.Addresses.UI, described.Addresses.ArgoCD
	}
	for _, problem := range fleet.Validate(os.DirFS(filepath.Join(f.Source, treeDir))) {
		status.Problems = append(status.Problems, problem.Error())
	}
	return status, nil
}
