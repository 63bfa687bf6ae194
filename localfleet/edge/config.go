package edge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/omnivision/omnivision/localfleet/edge/forward"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/edge/loadbalancer"
	"github.com/omnivision/omnivision/localfleet/edge/target"
)

// Config is what the edge serves. Everything but StateDir may change at a reload.
type Config struct {
	// StateDir holds the control socket, the lock and the logs.
	StateDir string `json:"stateDir"`
	// CADir is the folder of the fleet's authority; see package ca.
	CADir string `json:"caDir"`
	Hub   Hub    `json:"hub"`
	// Routes are the production names; see front.Routes.
	Routes []front.Route `json:"routes"`
	// Writers may push to the registries; by default the hub's own address and its loopback.
	Writers  []netip.Prefix `json:"writers,omitempty"`
	Forwards []forward.Spec `json:"forwards,omitempty"`
	Clusters []Cluster      `json:"clusters,omitempty"`
}

// Hub is where the front listens.
type Hub struct {
	// NetNS is the hub's network namespace; empty is the machine's own, where only loopback is accepted.
	NetNS string `json:"netns,omitempty"`
	// Address is the one that the clusters resolve the production names to.
	Address netip.Addr `json:"address"`
	// HTTPSPort and HTTPPort default to 443 and 80.
	HTTPSPort uint16 `json:"httpsPort,omitempty"`
	HTTPPort  uint16 `json:"httpPort,omitempty"`
}

// Cluster is a cluster whose Services the edge may lead to.
type Cluster struct {
	Name string `json:"name"`
	// Kubeconfig is a file. The edge waits for it, and reads it again when it changes.
	Kubeconfig string `json:"kubeconfig"`
	// APINetNS is the network namespace that the kubeconfig's server is reached in; empty is the machine's own.
	APINetNS string `json:"apiNetns,omitempty"`
	// NodeNetNS are the network namespaces of the nodes, from which cluster IPs are reached, in the order to try.
	NodeNetNS []string `json:"nodeNetns,omitempty"`
	// LoadBalancer, when set, substitutes for the cloud's load balancers.
	LoadBalancer *loadbalancer.Options `json:"loadBalancer,omitempty"`
}

func (c Cluster) equal(o Cluster) bool {
	if c.Name != o.Name || c.Kubeconfig != o.Kubeconfig || c.APINetNS != o.APINetNS || !slices.Equal(c.NodeNetNS, o.NodeNetNS) {
		return false
	}
	if (c.LoadBalancer == nil) != (o.LoadBalancer == nil) {
		return false
	}
	return c.LoadBalancer == nil || c.LoadBalancer.Class == o.LoadBalancer.Class && slices.Equal(c.LoadBalancer.Addresses, o.LoadBalancer.Addresses)
}

// ReadConfig reads and validates a configuration file. The digest identifies its content.
func ReadConfig(path string) (config Config, digest string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, "", fmt.Errorf("reading the edge's configuration: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		return Config{}, "", fmt.Errorf("the edge's configuration %s: %w", path, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Config{}, "", fmt.Errorf("the edge's configuration %s: something follows the object", path)
	}
	config.setDefaults()
	if err := config.Validate(); err != nil {
		return Config{}, "", fmt.Errorf("the edge's configuration %s: %w", path, err)
	}
	return config, Digest(data), nil
}

// WriteConfig validates a configuration and replaces the file in one step.
func WriteConfig(path string, c Config) error {
	c.setDefaults()
	if err := c.Validate(); err != nil {
		return fmt.Errorf("the edge's configuration: %w", err)
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the edge's configuration: %w", err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the edge's configuration: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("writing the edge's configuration: %w", err)
	}
	return nil
}

// Digest identifies the content of a configuration file, as Status does.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Hosts are the production names that the fleet's resolvers must send to the hub's address, and that the
// fleet's authority must be able to vouch for.
func (c Config) Hosts() []string {
	var hosts []string
	for _, r := range c.Routes {
		hosts = append(hosts, r.Hosts...)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func (c *Config) setDefaults() {
	if c.Hub.HTTPSPort == 0 {
		c.Hub.HTTPSPort = 443
	}
	if c.Hub.HTTPPort == 0 {
		c.Hub.HTTPPort = 80
	}
	if len(c.Writers) == 0 && c.Hub.Address.IsValid() {
		c.Writers = []netip.Prefix{
			netip.PrefixFrom(c.Hub.Address, c.Hub.Address.BitLen()),
			netip.MustParsePrefix("127.0.0.0/8"),
			netip.MustParsePrefix("::1/128"),
		}
	}
}

// maxSocketPath is the kernel's limit for the path of a unix socket (sun_path), its final zero included.
const maxSocketPath = 107

// Validate checks the whole configuration; the error names the first thing that is wrong.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.StateDir) || !filepath.IsAbs(c.CADir) {
		return fmt.Errorf("stateDir %q and caDir %q must be absolute paths", c.StateDir, c.CADir)
	}
	if p := socketPath(c.StateDir); len(p) > maxSocketPath {
		return fmt.Errorf("stateDir: the path of the control socket, %s, is longer than the %d bytes that the kernel takes", p, maxSocketPath)
	}
	if err := c.Hub.validate(); err != nil {
		return err
	}
	if err := c.validateRoutes(); err != nil {
		return err
	}
	clusters, err := c.validateClusters()
	if err != nil {
		return err
	}
	return c.validateForwards(clusters)
}

func (h Hub) validate() error {
	switch {
	case !h.Address.IsValid() || h.Address.IsUnspecified():
		return errors.New("hub.address: want the one address that the clusters reach, such as 10.111.0.1")
	case h.NetNS == "" && !h.Address.IsLoopback():
		return fmt.Errorf("hub.address %s: outside a network namespace only loopback is allowed, or others could reach the fleet", h.Address)
	case h.HTTPSPort == h.HTTPPort:
		return fmt.Errorf("hub: httpsPort and httpPort are both %d", h.HTTPSPort)
	}
	return nil
}

func (h Hub) listen(port uint16) string { return netip.AddrPortFrom(h.Address, port).String() }

func (c Config) validateRoutes() error {
	seen := map[string]bool{}
	for _, r := range c.Routes {
		if err := r.Validate(); err != nil {
			return err
		}
		for _, h := range r.Hosts {
			if seen[h] {
				return fmt.Errorf("host %q has two routes", h)
			}
			seen[h] = true
		}
	}
	return nil
}

func (c Config) validateClusters() (names map[string]bool, err error) {
	names = map[string]bool{}
	for _, cl := range c.Clusters {
		switch {
		case cl.Name == "":
			return nil, errors.New("a cluster has no name")
		case names[cl.Name]:
			return nil, fmt.Errorf("cluster %q is there twice", cl.Name)
		case !filepath.IsAbs(cl.Kubeconfig):
			return nil, fmt.Errorf("cluster %q: kubeconfig %q must be an absolute path", cl.Name, cl.Kubeconfig)
		}
		names[cl.Name] = true
		if cl.LoadBalancer != nil {
			if err := cl.LoadBalancer.Validate(); err != nil {
				return nil, fmt.Errorf("cluster %q: %w", cl.Name, err)
			}
		}
	}
	for _, r := range c.Routes {
		if err := knownCluster(r.Target, names); err != nil {
			return nil, fmt.Errorf("route %s: %w", r.Hosts[0], err)
		}
	}
	return names, nil
}

func (c Config) validateForwards(clusters map[string]bool) error {
	taken := map[string]string{
		c.Hub.NetNS + "!" + c.Hub.listen(c.Hub.HTTPSPort): "the front",
		c.Hub.NetNS + "!" + c.Hub.listen(c.Hub.HTTPPort):  "the front",
	}
	for _, f := range c.Forwards {
		if err := f.Validate(); err != nil {
			return err
		}
		if err := knownCluster(f.Target, clusters); err != nil {
			return fmt.Errorf("forward %q: %w", f.Name, err)
		}
		if other, ok := taken[f.Key()]; ok {
			return fmt.Errorf("forward %q listens on %s, as %s does", f.Name, f.Listen, other)
		}
		taken[f.Key()] = fmt.Sprintf("forward %q", f.Name)
	}
	return nil
}

func knownCluster(t target.Target, names map[string]bool) error {
	if t.Service != nil && !names[t.Service.Cluster] {
		return fmt.Errorf("%s: the configuration has no such cluster", t.Service)
	}
	return nil
}

func (h Hub) ip() net.IP { return net.IP(h.Address.AsSlice()) }

func socketPath(stateDir string) string { return filepath.Join(stateDir, "edge.sock") }
