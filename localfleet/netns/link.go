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
	// Either end alone is what is left of a pair whose other namespace is going away.
	if !deviceExists(c.NodeNS, c.Device) || !deviceExists(c.HubNS, c.Port) {
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
	temporary := c.Port + "p"
	for _, stale := range []struct{ ns, device string }{{c.HubNS, c.Port}, {c.NodeNS, c.Device}, {c.NodeNS, temporary}} {
		if err := removeDevice(stale.ns, stale.device); err != nil {
			return err
		}
	}
	return Do(c.HubNS, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.Port
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: temporary}); err != nil {
			return fmt.Errorf("add veth pair %s: %w", c.Port, err)
		}
		if err := move(temporary, c.NodeNS); err != nil {
			return err
		}
		return Do(c.NodeNS, func() error {
			moved, err := netlink.LinkByName(temporary)
			if err != nil {
				return fmt.Errorf("find %s: %w", temporary, err)
			}
			return netlink.LinkSetName(moved, c.Device)
		})
	})
}

// removeDevice removes a device, and with it the other end of a pair. One that
// is not there is no error.
func removeDevice(ns, device string) error {
	return Do(ns, func() error {
		link, err := netlink.LinkByName(device)
		if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for stale device %s: %w", device, err)
		}
		// The kernel may be taking it away already, with the namespace of the other end.
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove stale device %s: %w", device, err)
		}
		return nil
	})
}

// move moves a device of the current namespace into another one.
func move(device, ns string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	fd, err := unix.Open(Path(ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", ns, err)
	}
	defer unix.Close(fd) //nolint:errcheck // a read-only descriptor
	if err := netlink.LinkSetNsFd(link, fd); err != nil {
		return fmt.Errorf("move %s: %w", device, err)
	}
	return nil
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
