package localfleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/internal/fields"
	"github.com/omnivision/omnivision/localfleet/argocd"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/controlplane"
	"github.com/omnivision/omnivision/localfleet/dns"
	"github.com/omnivision/omnivision/localfleet/gpu"
	"github.com/omnivision/omnivision/localfleet/kubeapi"
	"github.com/omnivision/omnivision/localfleet/node"
	"github.com/omnivision/omnivision/localfleet/topology"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// eachCluster does something to all clusters at the same time.
func (f *Fleet) eachCluster(ctx context.Context, do func(context.Context, topology.Cluster) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, cluster := range f.Plan.Clusters {
		group.Go(func() error {
			if err := do(ctx, cluster); err != nil {
				return fmt.Errorf("%s: %w", cluster.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (f *Fleet) controlPlanes(ctx context.Context, _ func(string)) error {
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		plane, err := controlplane.Open(c, f.sup, f.program)
		if err != nil {
			return err
		}
		return plane.Start(ctx)
	})
}

// edgeAuthority vouches for the production host names inside the fleet.
func (f *Fleet) edgeAuthority() (*ca.Authority, error) {
	return ca.LoadOrCreate(f.path("edge", "ca"), f.allHosts()...)
}

func (f *Fleet) nodes(ctx context.Context, _ func(string)) error {
	edge, err := f.edgeAuthority()
	if err != nil {
		return err
	}
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		return f.startNodes(ctx, c, c.Nodes, edge)
	})
}

// startNodes starts nodes of a cluster, and then waits for their proxies.
func (f *Fleet) startNodes(ctx context.Context, c topology.Cluster, nodes []topology.Node, edge *ca.Authority) error {
	var started []node.Config
	for _, n := range nodes {
		config, err := f.nodeConfig(c, n, edge)
		if err != nil {
			return err
		}
		if err := node.Start(ctx, f.sup, config); err != nil {
			return err
		}
		started = append(started, config)
	}
	for _, config := range started {
		if err := node.AwaitProxy(ctx, f.sup, config); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) nodeConfig(c topology.Cluster, n topology.Node, edge *ca.Authority) (node.Config, error) {
	plane, err := f.ControlPlane(c.Name)
	if err != nil {
		return node.Config{}, err
	}
	kubelet, err := plane.Kubeconfig("kubelet-"+n.Name, "system:node:"+n.Name, "system:nodes")
	if err != nil {
		return node.Config{}, err
	}
	proxy, err := plane.Kubeconfig("kube-proxy", "system:kube-proxy")
	if err != nil {
		return node.Config{}, err
	}
	cert, key, err := plane.ServerCertificate("kubelet-server-"+n.Name, ca.Request{
		CommonName: "system:node:" + n.Name, Organizations: []string{"system:nodes"},
		DNSNames: []string{n.Name}, IPs: []net.IP{n.Address},
	})
	if err != nil {
		return node.Config{}, err
	}
	return node.Config{
		Cluster: c, Node: n, Binary: f.program,
		ClusterCA: plane.CA(), KubeletConfig: kubelet, ProxyConfig: proxy,
		ServingCert: cert, ServingKey: key,
		EdgeCA: edge.CertPEM(), RegistryAddress: topology.HubAddress,
	}, nil
}

// client applies objects to a cluster in the name of manager.
func (f *Fleet) client(cluster, manager string) (*kubeapi.Client, error) {
	config, err := f.restConfig(cluster)
	if err != nil {
		return nil, err
	}
	return kubeapi.New(config, manager)
}

func (f *Fleet) restConfig(cluster string) (*rest.Config, error) {
	if config, ok := f.remote[cluster]; ok {
		return config, nil
	}
	plane, err := f.ControlPlane(cluster)
	if err != nil {
		return nil, err
	}
	return plane.RESTConfig()
}

// installDNS brings the DNS of each cluster, which a cloud's clusters have from the start.
func (f *Fleet) installDNS(ctx context.Context, _ func(string)) error {
	return f.applyOwn(ctx, func(c topology.Cluster) ([]*unstructured.Unstructured, error) {
		forges, registries := f.hosts()
		return dns.Objects(dns.Options{
			ServiceIP: c.DNSAddress.String(), Address: topology.HubAddress, Hosts: append(forges, registries...),
		})
	})
}

// installGPUs brings the simulated GPUs of each cluster.
func (f *Fleet) installGPUs(ctx context.Context, _ func(string)) error {
	return f.applyOwn(ctx, func(c topology.Cluster) ([]*unstructured.Unstructured, error) {
		nodes, err := gpuPaths(c.Nodes, c.Name)
		if err != nil {
			return nil, err
		}
		return substituteObjects(gpu.Image+":"+f.version.Tag, nodes)
	})
}

// applyOwn applies what a cloud, and not Git, brings to a cluster.
func (f *Fleet) applyOwn(ctx context.Context, objects func(topology.Cluster) ([]*unstructured.Unstructured, error)) error {
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		all, err := objects(c)
		if err != nil {
			return err
		}
		api, err := f.client(c.Name, cloudManager)
		if err != nil {
			return err
		}
		return api.Apply(ctx, time.Minute, all...)
	})
}

// gpuPaths are those of the nodes with GPUs, and where their state goes is made.
func gpuPaths(nodes []topology.Node, cluster string) ([]gpu.NodePaths, error) {
	var paths []gpu.NodePaths
	for _, n := range nodes {
		if n.GPUs == 0 {
			continue
		}
		state := filepath.Join(n.Dir, "gpu")
		if err := makeDirs(state); err != nil {
			return nil, err
		}
		paths = append(paths, gpu.NodePaths{
			Cluster: cluster, Node: n.Name, GPUs: n.GPUs,
			// The node's own mount namespace has the kubelet where it always is.
			KubeletRoot: "/var/lib/kubelet", StateDir: state,
		})
	}
	return paths, nil
}

// substituteObjects are what runs the simulated GPUs of nodes, of an image.
func substituteObjects(image string, nodes []gpu.NodePaths) ([]*unstructured.Unstructured, error) {
	simulated, err := gpu.Objects(image, nodes)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, object := range simulated {
		converted, err := toUnstructured(object)
		if err != nil {
			return nil, err
		}
		objects = append(objects, converted)
	}
	return objects, nil
}

func toUnstructured(object client.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", object.GetName(), err)
	}
	delete(content, "status")
	return &unstructured.Unstructured{Object: content}, nil
}

// webhookSecret is what the forge signs its webhooks to a cluster with.
func (f *Fleet) webhookSecret(cluster string) (string, error) {
	return f.secret(cluster, "webhook-secret")
}

// secret returns a random secret of the cluster, which is made once and kept in
// a file that only root reads.
func (f *Fleet) secret(cluster, name string) (string, error) {
	path := f.path("clusters", cluster, name)
	data, err := os.ReadFile(path)
	if err == nil && len(data) > 0 {
		return string(data), nil
	}
	secret := rand.Text()
	return secret, os.WriteFile(path, []byte(secret), 0o600)
}

// installArgoCD applies each cluster's first Argo CD, unless it keeps itself as Git
// says already: two that apply the same would only make each other look again.
func (f *Fleet) installArgoCD(ctx context.Context, report func(string)) error {
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		if err := f.installInto(ctx, c, report); err != nil {
			return err
		}
		if f.elsewhere() {
			return nil // certificates and secrets are the owner's to bring
		}
		local, err := f.argocdOptions(c)
		if err != nil {
			return err
		}
		redis, err := f.redisSecret(c.Name)
		if err != nil {
			return err
		}
		api, err := f.client(c.Name, argocd.DataManager)
		if err != nil {
			return err
		}
		return api.Apply(ctx, time.Minute, append(argocd.Data(local), redis)...)
	})
}

func (f *Fleet) installInto(ctx context.Context, c topology.Cluster, report func(string)) error {
	api, err := f.client(c.Name, argocd.SyncManager)
	if err != nil {
		return err
	}
	if why := keepsItself(ctx, api); why != nil {
		report(c.Name + ": " + why.Error())
		installation, err := f.installation(ctx, c)
		if err != nil {
			return err
		}
		return api.Apply(ctx, 2*time.Minute, installation...)
	}
	return nil
}

// keepsItself reports why Argo CD cannot be left to itself: it never found itself to be
// as Git says, or lacks a part that would make it so.
func keepsItself(ctx context.Context, api *kubeapi.Client) error {
	app, err := api.Dynamic.Resource(applications).Namespace(argocd.Namespace).Get(ctx, argocd.Application, metav1.GetOptions{})
	if err != nil {
		return errors.New("first installation")
	}
	if text(app.Object, "status", "sync", "status") != "Synced" && text(app.Object, "status", "operationState", "phase") != "Succeeded" {
		return errors.New("it is not through with its first sync")
	}
	for _, name := range []string{"argocd-redis", "argocd-repo-server"} {
		if _, err := api.Dynamic.Resource(deployments).Namespace(argocd.Namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return fmt.Errorf("it lacks %s: %w", name, err)
		}
	}
	if _, err := api.Dynamic.Resource(statefulSets).Namespace(argocd.Namespace).Get(ctx, "argocd-application-controller", metav1.GetOptions{}); err != nil {
		return fmt.Errorf("it lacks its controller: %w", err)
	}
	return nil
}

// redisSecret is the password that Argo CD and its cache share. Upstream's init
// container makes it if it is missing; until then other Pods fail to start and
// back off.
func (f *Fleet) redisSecret(cluster string) (*unstructured.Unstructured, error) {
	password, err := f.secret(cluster, "redis-password")
	if err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata":   map[string]any{"name": "argocd-redis", "namespace": argocd.Namespace},
		"stringData": map[string]any{"auth": password},
	}}, nil
}

// awaitArgoCD waits until Argo CD can compare: an Application whose first
// comparison fails is not compared again for minutes.
func (f *Fleet) awaitArgoCD(ctx context.Context, report func(string)) error {
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		api, err := f.client(c.Name, "omnivision-status")
		if err != nil {
			return err
		}
		for _, name := range []string{"argocd-redis", "argocd-repo-server", "argocd-server"} {
			report(c.Name + ": " + name)
			if err := api.Until(ctx, 5*time.Minute, deployments, argocd.Namespace, name, available); err != nil {
				return err
			}
		}
		return nil
	})
}

// available holds for a Deployment with a Pod that serves.
func available(o *unstructured.Unstructured) error {
	if number(o.Object, "status", "availableReplicas") > 0 {
		return nil
	}
	reasons := []string{"no Pod is available"}
	for _, condition := range fields.Objects(o.Object, "status", "conditions") {
		if text(condition, "status") != "True" {
			reasons = append(reasons, text(condition, "message"))
		}
	}
	return errors.New(strings.Join(reasons, ": "))
}

// applyRoot applies the one manifest that is applied by hand in production.
func (f *Fleet) applyRoot(ctx context.Context, _ func(string)) error {
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		described, err := f.Tree.Cluster(c.Name)
		if err != nil {
			return err
		}
		root, err := argocd.Root(os.DirFS(filepath.Join(f.Source, treeDir)), described)
		if err != nil {
			return err
		}
		api, err := f.client(c.Name, argocd.SyncManager)
		if err != nil {
			return err
		}
		return api.Apply(ctx, time.Minute, root)
	})
}

// installation is the first Argo CD of a cluster, from the checkout's tree.
func (f *Fleet) installation(ctx context.Context, c topology.Cluster) ([]*unstructured.Unstructured, error) {
	described, err := f.Tree.Cluster(c.Name)
	if err != nil {
		return nil, err
	}
	upstream := func(source fleet.Source) (fs.FS, error) { return f.upstream(ctx, source) }
	return argocd.Installation(os.DirFS(filepath.Join(f.Source, treeDir)), described, upstream)
}

// argocdOptions make a local cluster's Argo CD trust the edge and the forge.
func (f *Fleet) argocdOptions(c topology.Cluster) (argocd.Options, error) {
	edge, err := f.edgeAuthority()
	if err != nil {
		return argocd.Options{}, err
	}
	secret, err := f.webhookSecret(c.Name)
	if err != nil {
		return argocd.Options{}, err
	}
	forges, registries := f.hosts()
	return argocd.Options{CA: edge.CertPEM(), Hosts: append(forges, registries...), WebhookSecret: secret}, nil
}

// webhooks tells the forge to report pushes to each cluster's Argo CD.
func (f *Fleet) webhooks(ctx context.Context, _ func(string)) error {
	for _, c := range f.Plan.Clusters {
		secret, err := f.webhookSecret(c.Name)
		if err != nil {
			return err
		}
		hook := hubURL(webhookPort(c)) + "/api/webhook"
		if err := f.forge.EnsureWebhook(ctx, f.gitopsRepository(), hook, secret); err != nil {
			return err
		}
	}
	return nil
}

// webhookPort is where the hub leads the forge's webhooks on to a cluster.
func webhookPort(c topology.Cluster) int { return 9001 + c.Index }

// writeJSON writes value as a file that is whole or not there.
func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// GPUControlSocket is where a node's simulated GPUs are controlled.
func (f *Fleet) GPUControlSocket(cluster, nodeName string) (string, error) {
	c, err := f.Plan.Cluster(cluster)
	if err != nil {
		return "", err
	}
	for _, n := range c.Nodes {
		if n.Name == nodeName && n.GPUs > 0 {
			return gpu.NodePaths{StateDir: filepath.Join(n.Dir, "gpu")}.ControlSocket(), nil
		}
	}
	return "", fmt.Errorf("%s has no node %q with GPUs", cluster, nodeName)
}

// Kubeconfig returns a kubeconfig with one context per cluster, for use on this
// machine.
func (f *Fleet) Kubeconfig() ([]byte, error) {
	merged := clientcmdapi.NewConfig()
	for _, cluster := range f.Plan.Clusters {
		plane, err := f.ControlPlane(cluster.Name)
		if err != nil {
			return nil, err
		}
		data, err := plane.AdminKubeconfig()
		if err != nil {
			return nil, err
		}
		config, err := clientcmd.Load(data)
		if err != nil {
			return nil, err
		}
		maps.Copy(merged.Clusters, config.Clusters)
		maps.Copy(merged.AuthInfos, config.AuthInfos)
		maps.Copy(merged.Contexts, config.Contexts)
	}
	merged.CurrentContext = f.Plan.Clusters[0].Name
	return clientcmd.Write(*merged)
}
