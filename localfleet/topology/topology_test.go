package topology

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// many are as many clusters as fit, on both clouds.
func many(t *testing.T) *Plan {
	t.Helper()
	var specs []ClusterSpec
	for i := range maxClusters {
		cloud := []string{"aws", "gcp"}[i%2]
		specs = append(specs, ClusterSpec{Name: fmt.Sprintf("cluster-%s-%d", cloud, i), Cloud: cloud, Region: "region"})
	}
	plan, err := New("/state", 18000, specs)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// once wants nothing to be there twice.
type once struct {
	*testing.T
	owner map[string]string
}

func newOnce(t *testing.T) once { return once{t, map[string]string{}} }

func (o once) claim(thing, owner string) {
	o.Helper()
	if thing == "" {
		o.Errorf("%s has an empty name", owner)
	}
	if other, taken := o.owner[thing]; taken {
		o.Errorf("%s is that of %s and of %s", thing, other, owner)
	}
	o.owner[thing] = owner
}

func TestAddressesOfManyClustersNeverOverlap(t *testing.T) {
	addresses := newOnce(t)
	addresses.claim(HubAddress, "the hub")
	var networks []netip.Prefix
	for _, c := range many(t).Clusters {
		segment := netip.MustParsePrefix(c.GatewayCIDR).Masked()
		networks = append(networks, segment)
		members := map[string]string{c.Gateway.String(): c.GatewayCIDR, c.Address.String(): c.CIDR}
		for _, n := range c.Nodes {
			members[n.Address.String()] = n.CIDR
			networks = append(networks, netip.MustParsePrefix(n.PodCIDR))
		}
		if len(members) != len(c.Nodes)+2 {
			t.Errorf("%s: two members of the segment have one address: %v", c.Name, members)
		}
		for address, cidr := range members {
			addresses.claim(address, c.Name)
			if p := netip.MustParsePrefix(cidr); p.Addr().String() != address || p.Masked() != segment {
				t.Errorf("%s: %s is not %s on the segment %s", c.Name, cidr, address, segment)
			}
		}
		services := netip.MustParsePrefix(c.ServiceCIDR)
		for _, ip := range []string{c.ServiceIP.String(), c.DNSAddress.String()} {
			if !services.Contains(netip.MustParseAddr(ip)) {
				t.Errorf("%s: the Service address %s is not in %s", c.Name, ip, services)
			}
		}
	}
	// Clusters never meet, so all of them may have the same Service addresses.
	networks = append(networks, netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix(HubAddress+"/32"))
	for i, a := range networks {
		for _, b := range networks[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s and %s overlap", a, b)
			}
		}
	}
}

func TestNamesAndFoldersAreThereOnceAndFitTheKernel(t *testing.T) {
	const maxDevice = 15 // IFNAMSIZ without its end
	devices, namespaces, folders, groups := newOnce(t), newOnce(t), newOnce(t), newOnce(t)
	namespaces.claim(HubNS, "the hub")
	for _, c := range many(t).Clusters {
		devices.claim(c.Bridge, c.Name)
		devices.claim(c.Port, c.Name)
		namespaces.claim(c.NetNS, c.Name)
		folders.claim(c.Dir, c.Name)
		for _, n := range c.Nodes {
			owner := c.Name + "/" + n.Name
			devices.claim(n.Port, owner)
			namespaces.claim(n.NetNS, owner)
			folders.claim(n.Dir, owner)
			groups.claim(n.Cgroup, owner)
			if !strings.HasPrefix(n.Dir, c.Dir+"/") || !strings.HasPrefix(n.Cgroup, "/"+Cgroup+"/") {
				t.Errorf("%s: folder %s, control group %s", owner, n.Dir, n.Cgroup)
			}
		}
	}
	for device, owner := range devices.owner {
		// The cable's other end has one letter more until it is moved.
		if len(device)+1 > maxDevice {
			t.Errorf("%s: the device name %s is longer than the kernel takes", owner, device)
		}
	}
	for ns, owner := range namespaces.owner {
		if !strings.HasPrefix(ns, Prefix) {
			t.Errorf("%s: the namespace %s does not begin with %s, by which it is removed", owner, ns, Prefix)
		}
	}
}

func TestPortsAreThereOnceAndKnownInAdvance(t *testing.T) {
	plan := many(t)
	ports := newOnce(t)
	for _, port := range plan.Ports() {
		ports.claim(fmt.Sprint(port), "the fleet")
		if port < 18000 || port > 18000+10*maxClusters+2 {
			t.Errorf("port %d is outside of what --port-base promises", port)
		}
	}
	if want := 1 + 3*maxClusters; len(ports.owner) != want || plan.ForgePort() != 18000 {
		t.Errorf("%d ports and the forge at %d, want %d and 18000", len(ports.owner), plan.ForgePort(), want)
	}
	if c := plan.Clusters[1]; c.APIPort != 18020 || c.UIPort != 18021 || c.ArgoPort != 18022 {
		t.Errorf("the second cluster is at %d, %d and %d", c.APIPort, c.UIPort, c.ArgoPort)
	}
}

func TestThePlanDependsOnItsInputAlone(t *testing.T) {
	a, b := many(t), many(t)
	if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
		t.Error("the same clusters got another plan")
	}
}

func TestACloudsNodesHaveItsLabelsAndTaints(t *testing.T) {
	plan, err := New("/state", 18000, []ClusterSpec{{"cluster-aws", "aws", "us-west-2"}, {"cluster-gcp", "gcp", "europe-west1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range plan.Clusters {
		zones := newOnce(t)
		for _, n := range c.Nodes {
			zones.claim(n.Labels["topology.kubernetes.io/zone"], n.Name)
			if n.Labels["topology.kubernetes.io/region"] != c.Region {
				t.Errorf("%s/%s: labels %v", c.Name, n.Name, n.Labels)
			}
			_, simulated := n.Labels[GPUSubstituteLabel]
			if gpu := n.GPUs > 0; gpu != (n.Taint == "nvidia.com/gpu=present:NoSchedule") || gpu != simulated {
				t.Errorf("%s/%s: %d GPUs, taint %q, labels %v", c.Name, n.Name, n.GPUs, n.Taint, n.Labels)
			}
		}
		if !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.GPUs > 0 }) || !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.GPUs == 0 }) {
			t.Errorf("%s: wants a node with GPUs and one without", c.Name)
		}
	}
	for i, want := range []string{"eks.amazonaws.com/nodegroup=gpu-workers", "cloud.google.com/gke-accelerator=nvidia-tesla-t4"} {
		key, value, _ := strings.Cut(want, "=")
		if got := plan.Clusters[i].Nodes[0].Labels[key]; got != value {
			t.Errorf("%s: %s is %q, want %q", plan.Clusters[i].Name, key, got, value)
		}
	}
}

func TestPlansThatCannotBeAreRefusedWithTheNextStep(t *testing.T) {
	one := []ClusterSpec{{"a", "aws", "r"}}
	named := func(names ...string) (specs []ClusterSpec) {
		for _, name := range names {
			specs = append(specs, ClusterSpec{name, "aws", "r"})
		}
		return specs
	}
	for name, c := range map[string]struct {
		port  int
		specs []ClusterSpec
		want  []string
	}{
		"no cluster":               {18000, nil, []string{"fleet.yaml"}},
		"too many":                 {18000, make([]ClusterSpec, maxClusters+1), []string{"16", "17", "--only"}},
		"unknown cloud":            {18000, []ClusterSpec{{"a", "azure", "r"}}, []string{"cluster a", `"azure"`, "aws or gcp"}},
		"no port":                  {0, one, []string{"--port-base from 1 to 65523"}},
		"negative port":            {-1, one, []string{"--port-base from 1"}},
		"ports beyond the last":    {65524, one, []string{"65524 to 65536", "--port-base from 1 to 65523"}},
		"the same cluster twice":   {18000, named("a", "a"), []string{"cluster a and cluster a", "once"}},
		"a cluster called hub":     {18000, named("hub"), []string{"the hub and cluster hub", "ov-hub", "otherwise"}},
		"a cluster like a node":    {18000, named("a", "a-gpu-0"), []string{"cluster a-gpu-0", "node gpu-0 of cluster a", "otherwise"}},
		"a name that is a path":    {18000, named("../etc"), []string{`"../etc"`, "lower-case"}},
		"no name":                  {18000, named(""), []string{`cluster ""`, "lower-case"}},
		"a name that is too long":  {18000, named(strings.Repeat("a", 64)), []string{"at most 63"}},
		"a name with capitals":     {18000, named("Oregon"), []string{`"Oregon"`, "lower-case"}},
		"a name with an open dash": {18000, named("a-"), []string{`"a-"`, "lower-case"}},
	} {
		_, err := New("/state", c.port, c.specs)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in the error: %v", name, want, err)
			}
		}
	}
	if _, err := New("/state", 65523, one); err != nil {
		t.Errorf("the last ports: %v", err)
	}
}

func TestAnUnknownClusterIsAnsweredWithTheKnownOnes(t *testing.T) {
	plan, err := New("/state", 18000, []ClusterSpec{{"a", "aws", "r"}, {"b", "gcp", "r"}})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := plan.Cluster("b"); err != nil || c.Index != 1 || c.Dir != filepath.Join("/state", "clusters", "b") {
		t.Errorf("b: %+v, %v", c, err)
	}
	if _, err := plan.Cluster("c"); err == nil || !strings.Contains(err.Error(), `"c"`) || !strings.Contains(err.Error(), "a, b") {
		t.Errorf("c: err = %v", err)
	}
}

// grown is many with every node that can be added, in the given order.
func grown(t *testing.T, names ...string) *Plan {
	t.Helper()
	plan := many(t)
	for _, c := range plan.Clusters {
		for _, name := range names {
			if _, err := plan.AddNode(c.Name, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	return plan
}

func TestAddedNodesHaveTheirPlaceWhateverTheOrder(t *testing.T) {
	plan, back := grown(t, "gpu-1", "gpu-2", "gpu-3"), grown(t, "gpu-3", "gpu-1", "gpu-2")
	before := many(t)
	addresses, networks, devices := newOnce(t), newOnce(t), newOnce(t)
	for i, c := range plan.Clusters {
		zones := newOnce(t)
		addresses.claim(c.Address.String(), c.Name)
		for _, n := range c.Nodes {
			owner := c.Name + "/" + n.Name
			addresses.claim(n.Address.String(), owner)
			networks.claim(n.PodCIDR, owner)
			devices.claim(n.Port, owner)
			zones.claim(n.Labels["topology.kubernetes.io/zone"], owner)
			same, err := back.Clusters[i].Node(n.Name)
			if err != nil || fmt.Sprintf("%+v", same) != fmt.Sprintf("%+v", n) {
				t.Errorf("%s depends on the order: %+v and %+v, %v", owner, n, same, err)
			}
			if own, err := before.Clusters[i].Node(n.Name); n.Added != (err != nil) || err == nil && fmt.Sprintf("%+v", own) != fmt.Sprintf("%+v", n) {
				t.Errorf("%s was %+v and is %+v", owner, own, n)
			}
			if n.Added && (n.GPUs != c.Nodes[0].GPUs || n.Taint != c.Nodes[0].Taint || n.Labels[GPUSubstituteLabel] != "true") {
				t.Errorf("%s is no GPU node: %+v", owner, n)
			}
		}
	}
	for device, owner := range devices.owner {
		if len(device) > 14 {
			t.Errorf("%s: the device name %s is longer than the kernel takes", owner, device)
		}
	}
}

func TestNodesAreAddedAsLongAsThereIsRoom(t *testing.T) {
	plan := many(t)
	name := plan.Clusters[0].Name
	for _, want := range []string{"gpu-1", "gpu-2", "gpu-3"} {
		next, err := plan.NextNode(name)
		if err != nil || next != want {
			t.Fatalf("next is %q, want %q: %v", next, want, err)
		}
		if n, err := plan.AddNode(name, next); err != nil || !n.Added {
			t.Fatalf("%+v, %v", n, err)
		}
	}
	if _, err := plan.NextNode(name); err == nil || !strings.Contains(err.Error(), "omnivision node remove") {
		t.Errorf("a full cluster: %v", err)
	}
	plan.RemoveNode(name, "gpu-2")
	plan.RemoveNode(name, "gpu-0") // which is not an added one
	if next, err := plan.NextNode(name); err != nil || next != "gpu-2" {
		t.Errorf("after one was removed next is %q: %v", next, err)
	}
	if _, err := plan.Clusters[0].Node("gpu-0"); err != nil {
		t.Error(err)
	}
	for _, test := range []struct{ cluster, node, want string }{
		{name, "gpu-1", "already"},
		{name, "gpu-0", "gpu-1 to gpu-3"},
		{name, "gpu-4", "gpu-1 to gpu-3"},
		{name, "gpu-01", "gpu-1 to gpu-3"},
		{name, "../gpu-1", "gpu-1 to gpu-3"},
		{name, "", "gpu-1 to gpu-3"},
		{"atlantis", "gpu-1", "no cluster is called"},
	} {
		if _, err := plan.AddNode(test.cluster, test.node); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s in %s: %v, want %q", test.node, test.cluster, err, test.want)
		}
	}
	twins, err := New("/state", 18000, []ClusterSpec{{"a", "aws", "r"}, {"a-gpu-1", "aws", "r"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := twins.AddNode("a", "gpu-1"); err == nil || !strings.Contains(err.Error(), "ov-a-gpu-1") {
		t.Errorf("a node that is called as another cluster: %v", err)
	}
}

func TestAnUnknownNodeIsAnsweredWithTheKnownOnes(t *testing.T) {
	if _, err := many(t).Clusters[0].Node("gpu-7"); err == nil || !strings.Contains(err.Error(), "gpu-0, cpu-0") {
		t.Errorf("err = %v", err)
	}
}
