package localfleet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/omnivision/omnivision/localfleet/edge"
	"github.com/omnivision/omnivision/localfleet/edge/forward"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/edge/loadbalancer"
	"github.com/omnivision/omnivision/localfleet/edge/target"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// EdgeCommand is the hidden subcommand that Up runs the edge with.
const EdgeCommand = "edge"

const edgeDaemon = "edge"

// startEdge starts the process that answers for the production host names,
// leads from the machine's loopback into the fleet, and stands for the clouds'
// load balancers.
func (f *Fleet) startEdge(ctx context.Context, _ func(string)) error {
	config, err := f.edgeConfig()
	if err != nil {
		return err
	}
	if err := makeDirs(config.StateDir); err != nil {
		return err
	}
	path := f.path("edge", "config.json")
	before, _ := os.ReadFile(path) // missing the first time
	if err := edge.WriteConfig(path, config); err != nil {
		return err
	}
	program, err := ownProgram()
	if err != nil {
		return err
	}
	started, err := f.sup.Start(ctx, process.Spec{
		Name: edgeDaemon, Path: program, Args: []string{EdgeCommand, path}, StopGrace: 3 * time.Second,
	})
	if err != nil {
		return err
	}
	err = f.sup.Wait(ctx, edgeDaemon, 30*time.Second, func(ctx context.Context) error { return edge.Ready(ctx, config.StateDir) })
	if err != nil {
		return err
	}
	after, err := os.ReadFile(path)
	if err != nil || started || string(before) == string(after) {
		return err
	}
	return edge.Reload(ctx, config.StateDir)
}

func (f *Fleet) edgeConfig() (edge.Config, error) {
	if _, err := f.edgeAuthority(); err != nil {
		return edge.Config{}, err
	}
	hub, err := netip.ParseAddr(topology.HubAddress)
	if err != nil {
		return edge.Config{}, err
	}
	forge := target.Target{NetNS: topology.HubNS, Address: forgeAddress}
	config := edge.Config{
		StateDir: f.path("edge"), CADir: f.path("edge", "ca"),
		Hub:    edge.Hub{NetNS: topology.HubNS, Address: hub},
		Routes: f.routes(forge),
		Forwards: []forward.Spec{{
			Name: "forge", Kind: forward.HTTP, Listen: loopback(f.Plan.ForgePort()), Target: forge,
		}},
	}
	for _, c := range f.Plan.Clusters {
		cluster, err := f.edgeCluster(c)
		if err != nil {
			return edge.Config{}, err
		}
		config.Clusters = append(config.Clusters, cluster)
		config.Forwards = append(config.Forwards, f.forwards(c)...)
	}
	return config, nil
}

// routes are the production names with who answers for them.
func (f *Fleet) routes(forge target.Target) []front.Route {
	forges, registries := f.hosts()
	own := front.Routes(forges, registries, forge, target.Target{NetNS: topology.HubNS, Address: registryAddress})
	return append(own, conveyorRoutes()...)
}

func (f *Fleet) edgeCluster(c topology.Cluster) (edge.Cluster, error) {
	plane, err := f.ControlPlane(c.Name)
	if err != nil {
		return edge.Cluster{}, err
	}
	config, err := plane.Kubeconfig("cloud", "omnivision-cloud", "system:masters")
	if err != nil {
		return edge.Cluster{}, err
	}
	path := f.path("clusters", c.Name, "cloud.kubeconfig")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return edge.Cluster{}, err
	}
	cluster := edge.Cluster{Name: c.Name, Kubeconfig: path, APINetNS: c.NetNS, LoadBalancer: &loadbalancer.Options{}}
	for _, n := range c.Nodes {
		cluster.NodeNetNS = append(cluster.NodeNetNS, n.NetNS)
		cluster.LoadBalancer.Addresses = append(cluster.LoadBalancer.Addresses, n.Address.String())
	}
	return cluster, nil
}

// forwards lead to a cluster: its API server, its region's page and its Argo CD
// from the machine's loopback, and webhooks from the hub.
func (f *Fleet) forwards(c topology.Cluster) []forward.Spec {
	service := func(namespace, name, port string) target.Target {
		return target.Target{Service: &target.Service{Cluster: c.Name, Namespace: namespace, Name: name, Port: port}}
	}
	argocd := service("argocd", "argocd-server", "http")
	return []forward.Spec{
		{
			Name: "API server of " + c.Name, Kind: forward.TCP, Listen: loopback(c.APIPort),
			Target: target.Target{NetNS: c.NetNS, Address: c.Address.String() + ":6443"},
		},
		{Name: "UI of " + c.Name, Kind: forward.HTTP, Listen: loopback(c.UIPort), Target: service("traefik", "traefik", "web")},
		{Name: "Argo CD of " + c.Name, Kind: forward.HTTP, Listen: loopback(c.ArgoPort), Target: argocd},
		{
			Name: "webhooks to " + c.Name, Kind: forward.HTTP, ListenNetNS: topology.HubNS,
			Listen: fmt.Sprintf("%s:%d", topology.HubAddress, webhookPort(c)), Target: argocd,
		},
	}
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
