// Package network makes a local fleet's namespaces, bridges and routes, and
// takes them away again. Nothing of it is in the machine's own namespace: no
// device, address, route or firewall rule.
package network

import (
	"fmt"
	"net"
	"os"

	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// Ensure makes what is missing of the plan's network.
func Ensure(plan *topology.Plan) error {
	if err := ensureHub(); err != nil {
		return err
	}
	for _, cluster := range plan.Clusters {
		if err := ensureCluster(cluster); err != nil {
			return fmt.Errorf("network of %s: %w", cluster.Name, err)
		}
	}
	return nil
}

func ensureHub() error {
	if err := netns.Ensure(topology.HubNS); err != nil {
		return err
	}
	if err := netns.EnsureAddress(topology.HubNS, "lo", topology.HubAddress+"/32"); err != nil {
		return err
	}
	// The hub forwards nothing: clusters reach its own address and no further.
	return netns.Do(topology.HubNS, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
			return fmt.Errorf("forbid forwarding in the hub: %w", err)
		}
		return nil
	})
}

func ensureCluster(c topology.Cluster) error {
	if err := netns.EnsureBridge(topology.HubNS, c.Bridge, c.GatewayCIDR); err != nil {
		return err
	}
	cables := []netns.Cable{cable(c, c.NetNS, c.Port, c.CIDR)}
	for _, node := range c.Nodes {
		cables = append(cables, cable(c, node.NetNS, node.Port, node.CIDR))
	}
	for _, cable := range cables {
		if err := netns.Ensure(cable.NodeNS); err != nil {
			return err
		}
		if err := netns.EnsureCable(cable); err != nil {
			return err
		}
	}
	return ensurePodRoutes(c)
}

func cable(c topology.Cluster, ns, port, cidr string) netns.Cable {
	return netns.Cable{
		HubNS: topology.HubNS, Bridge: c.Bridge, Port: port,
		NodeNS: ns, Device: "eth0", Address: cidr, Gateway: c.Gateway,
	}
}

// ensurePodRoutes tells everybody on the segment which node a Pod is behind.
func ensurePodRoutes(c topology.Cluster) error {
	for _, node := range c.Nodes {
		for _, ns := range namespaces(c) {
			if ns == node.NetNS {
				continue
			}
			if err := netns.EnsureRoute(ns, node.PodCIDR, net.IP(node.Address)); err != nil {
				return err
			}
		}
	}
	return nil
}

// namespaces lists who is on the cluster's segment, the hub included.
func namespaces(c topology.Cluster) []string {
	names := []string{topology.HubNS, c.NetNS}
	for _, node := range c.Nodes {
		names = append(names, node.NetNS)
	}
	return names
}

// Remove takes every namespace of a fleet away, and with them all devices,
// routes and rules inside.
func Remove() error {
	names, err := netns.List(topology.Prefix)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := netns.Delete(name); err != nil {
			return err
		}
	}
	return nil
}
