package netns

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func loopbackUp() error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up loopback device: %w", err)
	}
	return nil
}

// EnsureBridge makes a bridge called device with the address cidr inside the
// namespace called name. A cidr already there is kept.
func EnsureBridge(name, device, cidr string) error {
	err := Do(name, func() error {
		link, err := netlink.LinkByName(device)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = device
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return fmt.Errorf("add bridge: %w", err)
			}
			link, err = netlink.LinkByName(device)
		}
		if err != nil {
			return err
		}
		return addressUp(link, cidr)
	})
	if err != nil {
		return fmt.Errorf("bridge %s in namespace %s: %w", device, name, err)
	}
	return nil
}

// EnsureAddress puts cidr on the device called device inside the namespace
// called name and brings the device up.
func EnsureAddress(name, device, cidr string) error {
	err := Do(name, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return addressUp(link, cidr)
	})
	if err != nil {
		return fmt.Errorf("address %s on %s in namespace %s: %w", cidr, device, name, err)
	}
	return nil
}

func addressUp(link netlink.Link, cidr string) error {
	if cidr != "" {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return fmt.Errorf("parse address %q: %w", cidr, err)
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("set address %s: %w", cidr, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return nil
}

// Cable is one veth pair: end A in one namespace, attached to a bridge there,
// end B in another as its network card.
type Cable struct {
	HubNS  string // namespace of the bridge
	Bridge string
	Port   string // device name of the end at the bridge, at most 15 bytes

	NodeNS  string // namespace of the node
	Device  string // device name at the node, such as eth0
	Address string // of the node's end, as CIDR
	Gateway net.IP // default route of the node; nil for none
}

// EnsureCable makes the pair, its address and default route.
func EnsureCable(c Cable) error {
	if err := ensureCable(c); err != nil {
		return fmt.Errorf("connect %s to %s: %w", c.NodeNS, c.Bridge, err)
	}
	return nil
}

func ensureCable(c Cable) error {
	if !deviceExists(c.NodeNS, c.Device) {
		if err := makePair(c); err != nil {
			return err
		}
	}
	if err := plugIn(c); err != nil {
		return err
	}
	return Do(c.NodeNS, func() error {
		link, err := netlink.LinkByName(c.Device)
		if err != nil {
			return err
		}
		if err := addressUp(link, c.Address); err != nil {
			return err
		}
		if c.Gateway == nil {
			return nil
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: c.Gateway}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("default route by %s: %w", c.Gateway, err)
		}
		return nil
	})
}

func deviceExists(name, device string) bool {
	return Do(name, func() error {
		_, err := netlink.LinkByName(device)
		return err
	}) == nil
}

// makePair makes both ends in the hub's namespace, so that no device is ever
// seen in the machine's own, and moves one to the node.
func makePair(c Cable) error {
	return Do(c.HubNS, func() error {
		if stale, err := netlink.LinkByName(c.Port); err == nil {
			if err := netlink.LinkDel(stale); err != nil {
				return fmt.Errorf("remove stale device %s: %w", c.Port, err)
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.Port
		temporary := c.Port + "p"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: temporary}); err != nil {
			return fmt.Errorf("add veth pair %s: %w", c.Port, err)
		}
		peer, err := netlink.LinkByName(temporary)
		if err != nil {
			return err
		}
		fd, err := unix.Open(Path(c.NodeNS), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", c.NodeNS, err)
		}
		defer unix.Close(fd) //nolint:errcheck // a read-only descriptor
		if err := netlink.LinkSetNsFd(peer, fd); err != nil {
			return fmt.Errorf("move %s: %w", temporary, err)
		}
		return Do(c.NodeNS, func() error {
			moved, err := netlink.LinkByName(temporary)
			if err != nil {
				return err
			}
			return netlink.LinkSetName(moved, c.Device)
		})
	})
}

func plugIn(c Cable) error {
	return Do(c.HubNS, func() error {
		port, err := netlink.LinkByName(c.Port)
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(c.Bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(port, bridge); err != nil {
			return fmt.Errorf("attach %s to %s: %w", c.Port, c.Bridge, err)
		}
		return netlink.LinkSetUp(port)
	})
}

// EnsureRoute routes destination (a CIDR) by gateway inside the namespace
// called name.
func EnsureRoute(name, destination string, gateway net.IP) error {
	err := Do(name, func() error {
		_, network, err := net.ParseCIDR(destination)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{Dst: network, Gw: gateway})
	})
	if err != nil {
		return fmt.Errorf("route %s by %s in namespace %s: %w", destination, gateway, name, err)
	}
	return nil
}
