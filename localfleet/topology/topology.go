// Package topology decides the names, addresses, folders and ports of a local
// fleet. It only computes: the same clusters always get the same plan.
//
// Every cluster is a network segment of its own, a bridge in the hub's
// namespace. The hub forwards nothing, so clusters reach the hub's address
// and not each other, as if an ocean lay between them.
package topology

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Names and addresses of the hub, where the servers around the clusters run.
const (
	HubNS      = "ov-hub"
	HubAddress = "10.111.0.1"
	Prefix     = "ov-"        // of every namespace's name
	Cgroup     = "omnivision" // control group of every process

	// GPUSubstituteLabel marks the nodes whose GPUs are simulated.
	GPUSubstituteLabel = "omnivision.dev/gpu-substitute"

	// maxClusters is what the address plan has room for.
	maxClusters = 16

	// maxAdded is how many nodes a cluster takes besides its own: each is in a zone of its
	// own, and regions have few.
	maxAdded = 3
)

// ClusterSpec is what the fleet's description says of a cluster.
type ClusterSpec struct {
	Name   string // such as cluster-aws
	Cloud  string // aws or gcp
	Region string // such as us-west-2
}

// Plan is a whole fleet on this machine.
type Plan struct {
	StateDir string
	PortBase int
	Clusters []Cluster
}

// Cluster is one cluster's place on this machine.
type Cluster struct {
	ClusterSpec
	Index       int
	Dir         string // of its state
	Bridge      string // in the hub's namespace
	Gateway     net.IP // the hub's address on the segment
	GatewayCIDR string
	NetNS       string // of the control plane
	Port        string // device of the control plane's cable at the bridge
	Address     net.IP // of the API server
	CIDR        string // the same with the segment's mask
	ServiceCIDR string
	ServiceIP   net.IP // of the Service kubernetes
	DNSAddress  net.IP // of the Service kube-dns
	Nodes       []Node

	APIPort  int // on loopback of the machine
	UIPort   int
	ArgoPort int
}

// Node is one node of a cluster.
type Node struct {
	Name    string
	Dir     string
	NetNS   string
	Port    string // device of its cable at the bridge
	Address net.IP
	CIDR    string
	PodCIDR string
	Cgroup  string // the kubelet's root, below /sys/fs/cgroup/HIERARCHY
	GPUs    int
	Labels  map[string]string
	Taint   string // as the kubelet takes it; "" for none
	Added   bool   // besides those that the cloud gives every cluster
}

// New plans a fleet of the given clusters whose state is in dir and whose
// loopback ports begin at portBase: the forge takes the first, then each
// cluster three.
func New(dir string, portBase int, specs []ClusterSpec) (*Plan, error) {
	if len(specs) == 0 {
		return nil, errors.New("the fleet names no cluster: describe one in fleet.yaml")
	}
	if len(specs) > maxClusters {
		return nil, fmt.Errorf("a local fleet has room for %d clusters, fleet.yaml names %d: choose some with --only", maxClusters, len(specs))
	}
	plan := &Plan{StateDir: dir, PortBase: portBase}
	for i, spec := range specs {
		cluster, err := newCluster(dir, portBase, i, spec)
		if err != nil {
			return nil, err
		}
		plan.Clusters = append(plan.Clusters, cluster)
	}
	if err := plan.checkPorts(); err != nil {
		return nil, err
	}
	return plan, plan.checkNames()
}

func (p *Plan) checkPorts() error {
	const lastPort = 65535
	if last := slices.Max(p.Ports()); p.PortBase < 1 || last > lastPort {
		return fmt.Errorf("the fleet's ports would be %d to %d: choose a --port-base from 1 to %d", p.PortBase, last, lastPort-(last-p.PortBase))
	}
	return nil
}

// maxNameLength is what the folders, control groups and names of a cluster have
// room for: that of a DNS label.
const maxNameLength = 63

var clusterName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// checkNames refuses names that are no file names, and two things of one name:
// a cluster called hub, or one that is called as another cluster's node.
func (p *Plan) checkNames() error {
	owners := map[string]string{HubNS: "the hub"}
	for _, c := range p.Clusters {
		if len(c.Name) > maxNameLength || !clusterName.MatchString(c.Name) {
			return fmt.Errorf("cluster %q: want a name of at most %d lower-case letters, digits and dashes in fleet.yaml", c.Name, maxNameLength)
		}
		if err := claim(owners, c.NetNS, "cluster "+c.Name); err != nil {
			return err
		}
		for _, n := range c.Nodes {
			if err := claim(owners, n.NetNS, "node "+n.Name+" of cluster "+c.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func claim(owners map[string]string, namespace, owner string) error {
	if other, taken := owners[namespace]; taken {
		return fmt.Errorf("%s and %s would share the network namespace %s: name the cluster otherwise, and once", other, owner, namespace)
	}
	owners[namespace] = owner
	return nil
}

// ForgePort is where the forge answers on loopback.
func (p *Plan) ForgePort() int { return p.PortBase }

// Cluster returns the cluster called name.
func (p *Plan) Cluster(name string) (Cluster, error) {
	var names []string
	for _, c := range p.Clusters {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return Cluster{}, fmt.Errorf("no cluster is called %q: the fleet has %s", name, strings.Join(names, ", "))
}

// Ports lists the loopback ports that the fleet listens on.
func (p *Plan) Ports() []int {
	ports := []int{p.ForgePort()}
	for _, c := range p.Clusters {
		ports = append(ports, c.APIPort, c.UIPort, c.ArgoPort)
	}
	return ports
}

func newCluster(dir string, portBase, i int, spec ClusterSpec) (Cluster, error) {
	shapes, err := nodeShapes(spec)
	if err != nil {
		return Cluster{}, err
	}
	segment := i + 1
	c := Cluster{
		ClusterSpec: spec,
		Index:       i,
		Dir:         filepath.Join(dir, "clusters", spec.Name),
		Bridge:      fmt.Sprintf("ovbr%d", i),
		Gateway:     net.IPv4(10, 111, byte(segment), 1),
		NetNS:       Prefix + spec.Name,
		Port:        fmt.Sprintf("ov%dcp", i),
		Address:     net.IPv4(10, 111, byte(segment), 2),
		ServiceCIDR: "10.96.0.0/16",
		ServiceIP:   net.IPv4(10, 96, 0, 1),
		DNSAddress:  net.IPv4(10, 96, 0, 10),
		APIPort:     portBase + 10*segment,
		UIPort:      portBase + 10*segment + 1,
		ArgoPort:    portBase + 10*segment + 2,
	}
	c.GatewayCIDR = c.Gateway.String() + "/24"
	c.CIDR = c.Address.String() + "/24"
	for position, shape := range shapes {
		c.Nodes = append(c.Nodes, c.place(shape, position))
	}
	return c, nil
}

// place gives a node its place in the cluster: position counts from 0, and is its alone.
func (c *Cluster) place(node Node, position int) Node {
	segment := c.Index + 1
	node.Dir = filepath.Join(c.Dir, "nodes", node.Name)
	node.NetNS = c.NetNS + "-" + node.Name
	node.Port = fmt.Sprintf("ov%dn%d", c.Index, position)
	node.Address = net.IPv4(10, 111, byte(segment), byte(11+position))
	node.CIDR = node.Address.String() + "/24"
	node.PodCIDR = fmt.Sprintf("10.%d.%d.0/24", 120+segment, position+1)
	node.Cgroup = filepath.Join("/", Cgroup, c.Name, node.Name)
	return node
}

// NextNode is the name of the node that a cluster would get next.
func (p *Plan) NextNode(cluster string) (string, error) {
	c, err := p.Cluster(cluster)
	if err != nil {
		return "", err
	}
	for ordinal := 1; ordinal <= maxAdded; ordinal++ {
		name := gpuName(ordinal)
		if !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.Name == name }) {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s has %d added nodes, which is as many as there is room for: remove one with 'omnivision node remove'", cluster, maxAdded)
}

// AddNode plans a further GPU node of a cluster, gpu-1 or a later one. Its place follows from
// its name alone: neither those that are there nor the order in which nodes come matter.
func (p *Plan) AddNode(cluster, name string) (Node, error) {
	i := slices.IndexFunc(p.Clusters, func(c Cluster) bool { return c.Name == cluster })
	if i < 0 {
		_, err := p.Cluster(cluster)
		return Node{}, err
	}
	c := &p.Clusters[i]
	ordinal, err := strconv.Atoi(strings.TrimPrefix(name, gpuPrefix))
	if err != nil || gpuName(ordinal) != name || ordinal < 1 || ordinal > maxAdded {
		return Node{}, fmt.Errorf("%s cannot get a node %q: those that can be added are %s to %s", cluster, name, gpuName(1), gpuName(maxAdded))
	}
	if slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.Name == name }) {
		return Node{}, fmt.Errorf("%s has a node %s already", cluster, name)
	}
	position := ordinal + 1 // after gpu-0 and cpu-0
	node, err := gpuNode(c.ClusterSpec, ordinal, position)
	if err != nil {
		return Node{}, err
	}
	node.Added = true
	node = c.place(node, position)
	c.Nodes = append(c.Nodes, node)
	return node, p.checkNames()
}

// RemoveNode takes an added node out of the plan.
func (p *Plan) RemoveNode(cluster, name string) {
	for i := range p.Clusters {
		if c := &p.Clusters[i]; c.Name == cluster {
			c.Nodes = slices.DeleteFunc(c.Nodes, func(n Node) bool { return n.Added && n.Name == name })
		}
	}
}

// Node returns a cluster's node.
func (c Cluster) Node(name string) (Node, error) {
	var names []string
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return Node{}, fmt.Errorf("%s has no node %q: it has %s", c.Name, name, strings.Join(names, ", "))
}

// nodeShapes gives a cluster one GPU node and one CPU node with the labels and
// taints that the cloud's own node groups have, each in a zone of its own. Two
// workers are two GPUs, and as many again when a canary of theirs is promoted.
func nodeShapes(spec ClusterSpec) ([]Node, error) {
	gpu, err := gpuNode(spec, 0, 0)
	if err != nil {
		return nil, err
	}
	cpu := Node{Name: "cpu-0"}
	switch spec.Cloud {
	case "aws":
		cpu.Labels = labels(spec.Region, awsZone(spec, 1), "m7i.xlarge", "eks.amazonaws.com/nodegroup", "general")
	case "gcp":
		cpu.Labels = labels(spec.Region, gcpZone(spec, 1), "e2-standard-4", "cloud.google.com/gke-nodepool", "general")
	}
	return []Node{gpu, cpu}, nil
}

const gpuPrefix = "gpu-"

func gpuName(ordinal int) string { return gpuPrefix + strconv.Itoa(ordinal) }

// gpuNode is a GPU node of the cloud's GPU node group, in the zone of its position.
func gpuNode(spec ClusterSpec, ordinal, position int) (Node, error) {
	node := Node{Name: gpuName(ordinal), GPUs: 4, Taint: "nvidia.com/gpu=present:NoSchedule"}
	switch spec.Cloud {
	case "aws":
		node.Labels = labels(spec.Region, awsZone(spec, position), "g4dn.2xlarge", "eks.amazonaws.com/nodegroup", "gpu-workers")
	case "gcp":
		node.Labels = labels(spec.Region, gcpZone(spec, position), "n1-standard-8", "cloud.google.com/gke-nodepool", "gpu-workers")
		node.Labels["cloud.google.com/gke-accelerator"] = "nvidia-tesla-t4"
	default:
		return Node{}, fmt.Errorf("cluster %s: no nodes are known for the cloud %q: use aws or gcp", spec.Name, spec.Cloud)
	}
	node.Labels[GPUSubstituteLabel] = "true"
	return node, nil
}

// Zones are named by letters; Belgium's region has none called a.
func awsZone(spec ClusterSpec, position int) string {
	return fmt.Sprintf("%s%c", spec.Region, 'a'+position)
}
func gcpZone(spec ClusterSpec, position int) string {
	return fmt.Sprintf("%s-%c", spec.Region, 'b'+position)
}

func labels(region, zone, instance, poolKey, pool string) map[string]string {
	return map[string]string{
		"topology.kubernetes.io/region":    region,
		"topology.kubernetes.io/zone":      zone,
		"node.kubernetes.io/instance-type": instance,
		poolKey:                            pool,
	}
}
