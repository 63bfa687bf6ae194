package network

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/topology"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// apart is set for the process that runs the tests.
const apart = "OMNIVISION_NETWORK_TEST_APART"

// TestMain runs the tests in a process that has its own mount and network
// namespaces, with nothing at /run/netns. So a fleet that runs on the machine
// under the same names neither is seen nor can be harmed.
func TestMain(m *testing.M) {
	switch {
	case os.Geteuid() != 0:
		fmt.Println("skipped: network namespaces need root")
	case os.Getenv(apart) == "":
		os.Exit(runApart())
	default:
		if err := hideNamespaces(); err != nil {
			fmt.Fprintln(os.Stderr, "hide the machine's network namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
}

func runApart() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), apart+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in namespaces of its own:", err)
		return 1
	}
	return 0
}

// hideNamespaces puts an empty folder over /run/netns, for this process alone.
func hideNamespaces() error {
	if err := os.MkdirAll(netns.Root, 0o755); err != nil {
		return err
	}
	return unix.Mount("tmpfs", netns.Root, "tmpfs", 0, "")
}

func plan(t *testing.T) *topology.Plan {
	t.Helper()
	p, err := topology.New(t.TempDir(), 18000, []topology.ClusterSpec{{Name: "one", Cloud: "aws", Region: "r"}, {Name: "two", Cloud: "gcp", Region: "r"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func ensure(t *testing.T, p *topology.Plan) {
	t.Helper()
	if err := Ensure(p); err != nil {
		t.Fatal(err)
	}
}

// everyone is who is on a cluster's segment besides the hub, with its address.
func everyone(c topology.Cluster) map[string]net.IP {
	members := map[string]net.IP{c.NetNS: c.Address}
	for _, n := range c.Nodes {
		members[n.NetNS] = n.Address
	}
	return members
}

// reaches reports whether a connection from one namespace arrives in another.
func reaches(t *testing.T, from, to string, address net.IP) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	listener, err := netns.Listen(ctx, to, "tcp", net.JoinHostPort(address.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // end of the question
	conn, err := netns.Dialer(from)(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// works wants every member of every segment to reach the hub and the others.
func works(t *testing.T, p *topology.Plan) {
	t.Helper()
	hub := net.ParseIP(topology.HubAddress)
	for _, c := range p.Clusters {
		for from := range everyone(c) {
			if !reaches(t, from, topology.HubNS, hub) {
				t.Errorf("%s does not reach the hub", from)
			}
			for to, address := range everyone(c) {
				if !reaches(t, from, to, address) {
					t.Errorf("%s does not reach %s", from, to)
				}
			}
		}
	}
}

// picture describes all that is in the fleet's namespaces: devices with their
// kernel's index, addresses and routes.
func picture(t *testing.T) string {
	t.Helper()
	names, err := netns.List("")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, name := range names {
		err := netns.Do(name, func() error {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			for _, link := range links {
				a := link.Attrs()
				addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
				if err != nil {
					return err
				}
				lines = append(lines, fmt.Sprintf("%s %d %s up=%v master=%d %v", name, a.Index, a.Name, a.Flags&net.FlagUp != 0, a.MasterIndex, addresses))
			}
			routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
			for _, r := range routes {
				lines = append(lines, fmt.Sprintf("%s route %v by %v", name, r.Dst, r.Gw))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestClustersReachTheHubAndNotEachOther(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	works(t, p)
	one, two := p.Clusters[0], p.Clusters[1]
	for to, address := range everyone(two) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if conn, err := netns.Dialer(one.Nodes[0].NetNS)(ctx, "tcp", net.JoinHostPort(address.String(), "1")); err == nil || strings.Contains(err.Error(), "refused") {
			t.Errorf("a packet of %s came to %s: %v, %v", one.Name, to, conn, err)
		}
		cancel()
	}
}

func TestPodsOfAnotherNodeAreBehindThatNode(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	c := p.Clusters[0]
	for _, node := range c.Nodes {
		_, pods, err := net.ParseCIDR(node.PodCIDR)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range namespaces(c) {
			want := node.Address
			if from == node.NetNS { // its own Pods are the CNI's: here they are nobody's
				want = c.Gateway
			}
			err := netns.Do(from, func() error {
				routes, err := netlink.RouteGet(pods.IP)
				if err == nil && (len(routes) != 1 || !routes[0].Gw.Equal(want)) {
					err = fmt.Errorf("routes %v, want by %s", routes, want)
				}
				return err
			})
			if err != nil {
				t.Errorf("from %s to Pods of %s: %v", from, node.Name, err)
			}
		}
	}
}

func TestEnsureTwiceChangesNothing(t *testing.T) {
	p := plan(t)
	ensure(t, p)
	first := picture(t)
	ensure(t, p)
	if second := picture(t); second != first {
		t.Errorf("the second time changed something:\n%s\nbefore it was:\n%s", second, first)
	}
	if !strings.Contains(first, "ovbr1") || !strings.Contains(first, "ov-two-gpu-0") {
		t.Errorf("the picture is not one of the fleet:\n%s", first)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	p := plan(t)
	if err := netns.Ensure("somebodys"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Delete("somebodys"); err != nil {
			t.Error(err)
		}
	})
	before := mounts(t)
	ensure(t, p)
	for range 2 { // the second finds nothing to remove
		if err := Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := netns.List(""); err != nil || !slices.Equal(names, []string{"somebodys"}) {
		t.Errorf("namespaces %v, %v, want the one that is not the fleet's", names, err)
	}
	if after := mounts(t); !slices.Equal(after, before) {
		t.Errorf("mounts:\n%s\nbefore there were:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 || links[0].Attrs().Name != "lo" {
		t.Errorf("the machine's own namespace has the devices %v, %v", links, err)
	}
}

// mounts are the places where something is mounted.
func mounts(t *testing.T) (at []string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		at = append(at, strings.Fields(line)[4])
	}
	return at
}

// Each case is where a run may have been killed. Ensure makes the rest.
func TestAHalfMadeNetworkIsFinished(t *testing.T) {
	inHub := func(t *testing.T, f func() error) {
		t.Helper()
		if err := netns.Do(topology.HubNS, f); err != nil {
			t.Fatal(err)
		}
	}
	pair := func(port string) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: port + "p"})
	}
	cases := map[string]func(*testing.T, topology.Cluster){
		"a file and no namespace": func(t *testing.T, c topology.Cluster) {
			if err := os.WriteFile(netns.Path(c.NetNS), nil, 0o444); err != nil {
				t.Fatal(err)
			}
		},
		"a namespace whose loopback is down": func(t *testing.T, c topology.Cluster) {
			if err := netns.Ensure(c.NetNS); err != nil {
				t.Fatal(err)
			}
			if err := netns.Do(c.NetNS, func() error {
				lo, err := netlink.LinkByName("lo")
				if err != nil {
					return err
				}
				return netlink.LinkSetDown(lo)
			}); err != nil {
				t.Fatal(err)
			}
		},
		"a bridge without an address": func(t *testing.T, c topology.Cluster) {
			inHub(t, func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = c.Bridge
				return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
			})
		},
		"a cable whose end was not moved": func(t *testing.T, c topology.Cluster) {
			inHub(t, func() error { return pair(c.Port) })
		},
		"a cable whose end was not renamed": func(t *testing.T, c topology.Cluster) {
			if err := netns.Ensure(c.NetNS); err != nil {
				t.Fatal(err)
			}
			inHub(t, func() error {
				if err := pair(c.Port); err != nil {
					return err
				}
				end, err := netlink.LinkByName(c.Port + "p")
				if err != nil {
					return err
				}
				fd, err := unix.Open(netns.Path(c.NetNS), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd) //nolint:errcheck // read only
				return netlink.LinkSetNsFd(end, fd)
			})
		},
	}
	for name, half := range cases {
		t.Run(name, func(t *testing.T) {
			p := plan(t)
			if err := netns.Ensure(topology.HubNS); err != nil {
				t.Fatal(err)
			}
			half(t, p.Clusters[0])
			ensure(t, p)
			works(t, p)
			if err := netns.Do(p.Clusters[0].NetNS, func() error {
				_, err := net.DialTimeout("udp", "127.0.0.1:9", time.Second) // no route while loopback is down
				return err
			}); err != nil {
				t.Errorf("loopback of the control plane: %v", err)
			}
		})
	}
}

// A cluster may be lost alone, or the hub: what is left is connected again.
func TestWhatWasTakenAwayIsMadeAgain(t *testing.T) {
	for name, lost := range map[string]func(*topology.Plan) string{
		"a node":          func(p *topology.Plan) string { return p.Clusters[0].Nodes[0].NetNS },
		"a control plane": func(p *topology.Plan) string { return p.Clusters[1].NetNS },
		"the hub":         func(*topology.Plan) string { return topology.HubNS },
	} {
		t.Run(name, func(t *testing.T) {
			p := plan(t)
			ensure(t, p)
			if err := netns.Delete(lost(p)); err != nil {
				t.Fatal(err)
			}
			ensure(t, p)
			works(t, p)
		})
	}
}
