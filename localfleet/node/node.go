// Package node runs a Kubernetes node on this machine: a containerd, a kubelet
// and a kube-proxy of its own in a network namespace and a mount namespace of
// their own.
//
// The mount namespace gives every node the paths that nodes have everywhere
// (/var/lib/kubelet, /run/containerd, /var/log/pods, /etc/cni), so that device
// plugins, CSI drivers and log readers run as they do on a cloud's node. It is
// held by a process that sleeps; everything mounted for the node is gone when
// the node's processes are.
package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Config is what a node is started with.
type Config struct {
	Cluster topology.Cluster
	Node    topology.Node
	// Binary returns the path of an engine's program.
	Binary func(name string) (string, error)

	ClusterCA       []byte // PEM
	KubeletConfig   []byte // kubeconfig of the kubelet
	ProxyConfig     []byte // kubeconfig of kube-proxy
	ServingCert     []byte // PEM, of the kubelet's own server
	ServingKey      []byte
	EdgeCA          []byte // PEM, of the registries' front
	RegistryAddress string // host or host:port of the registries' front
}

// daemon returns the supervisor's name for one of the node's daemons.
func daemon(c topology.Cluster, n topology.Node, what string) string {
	return c.Name + "/" + n.Name + "/" + what
}

// Daemons lists the names of the node's daemons in the order in which they end.
func Daemons(c topology.Cluster, n topology.Node) []string {
	var names []string
	for _, what := range []string{"kubelet", "kube-proxy", "containerd", "mounts"} {
		names = append(names, daemon(c, n, what))
	}
	return names
}

// binds are the folders of the node that appear at the usual places: the
// folder's name below the node's own, and where it appears.
var binds = [][2]string{
	{"kubelet", "/var/lib/kubelet"},
	{"containerd", "/var/lib/containerd"},
	{"cni-state", "/var/lib/cni"},
	{"log/pods", "/var/log/pods"},
	{"log/containers", "/var/log/containers"},
	{"etc/containerd", "/etc/containerd"},
	{"etc/cni", "/etc/cni"},
	{"etc/kubernetes", "/etc/kubernetes"},
}

// memoryMounts are file systems of the node that do not survive it.
var memoryMounts = []string{"/run/containerd", "/run/netns"}

// Start starts the node's daemons that do not run, and waits until containerd
// and kubelet answer. The node then registers itself.
func Start(ctx context.Context, sup *process.Supervisor, cfg Config) error {
	if err := writeFiles(cfg); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	if err := setForwarding(cfg.Node.NetNS); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	holder, err := startMounts(ctx, sup, cfg)
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	if err := process.EnsureGroup(cfg.Node.Cgroup); err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	for _, start := range []func(context.Context, *process.Supervisor, Config, int) error{
		startContainerd, startProxy, startKubelet,
	} {
		if err := start(ctx, sup, cfg, holder); err != nil {
			return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
		}
	}
	return nil
}

// Kill ends the node as a power cut would: every process of it, its Pods' too,
// at once.
func Kill(ctx context.Context, sup *process.Supervisor, c topology.Cluster, n topology.Node) error {
	for _, name := range Daemons(c, n) {
		if _, ok := sup.Running(name); !ok {
			continue
		}
		if err := sup.Kill(ctx, name); err != nil {
			return err
		}
	}
	return sup.Sweep(ctx, filepath.Join(c.Name, n.Name))
}

// Remove ends the node as Kill does, and nothing remembers that it ran.
func Remove(ctx context.Context, sup *process.Supervisor, c topology.Cluster, n topology.Node) error {
	if err := sup.Sweep(ctx, filepath.Join(c.Name, n.Name)); err != nil {
		return err
	}
	for _, name := range Daemons(c, n) {
		if err := sup.Stop(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// startMounts starts the process that holds the node's mount namespace and
// returns its id.
func startMounts(ctx context.Context, sup *process.Supervisor, cfg Config) (int, error) {
	name := daemon(cfg.Cluster, cfg.Node, "mounts")
	if _, ok := sup.Running(name); !ok {
		// What ran in the namespace of a holder that is gone sees other files
		// than what is started now: it ends first.
		for _, other := range Daemons(cfg.Cluster, cfg.Node) {
			if err := sup.Stop(ctx, other); err != nil {
				return 0, err
			}
		}
		if err := sup.Sweep(ctx, filepath.Join(cfg.Cluster.Name, cfg.Node.Name)); err != nil {
			return 0, err
		}
	}
	_, err := sup.Start(ctx, process.Spec{
		Name: name, Path: "/usr/bin/sleep", Args: []string{"infinity"}, NetNS: cfg.Node.NetNS,
		Prepare: func() error { return makeMounts(cfg.Node.Dir) }, StopGrace: time.Second,
		Subgroup: nodeGroup(cfg),
	})
	if err != nil {
		return 0, err
	}
	pid, ok := sup.Running(name)
	if !ok {
		return 0, fmt.Errorf("the holder of the mount namespace ended at once")
	}
	return pid, nil
}

func nodeGroup(cfg Config) string {
	return filepath.Join(cfg.Cluster.Name, cfg.Node.Name, "system")
}

// makeMounts gives the calling thread a mount namespace with the node's own
// folders in the usual places. Nothing of it is seen outside.
func makeMounts(dir string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	// First cut the tie to the machine's mounts, then share among the node's
	// own namespaces, which mount propagation to containers needs.
	for _, flag := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", flag|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("set mount propagation: %w", err)
		}
	}
	for _, bind := range binds {
		source := filepath.Join(dir, bind[0])
		if err := unix.Mount(source, bind[1], "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", source, bind[1], err)
		}
	}
	for _, target := range memoryMounts {
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", target, err)
		}
	}
	return nil
}

func startContainerd(ctx context.Context, sup *process.Supervisor, cfg Config, holder int) error {
	name := daemon(cfg.Cluster, cfg.Node, "containerd")
	_, err := sup.Start(ctx, process.Spec{
		Name: name, Path: "/usr/bin/containerd", Args: []string{"--config", "/etc/containerd/config.toml"},
		Env: environment(), NetNS: cfg.Node.NetNS, MountNS: holder, Subgroup: nodeGroup(cfg),
		Inputs: []string{digest([]byte(containerdConfig)), digest([]byte(hostsConfig(cfg)))},
	})
	if err != nil {
		return err
	}
	socket := fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", holder)
	return sup.Wait(ctx, name, 30*time.Second, func(ctx context.Context) error { return askRuntime(ctx, socket) })
}

// askRuntime asks containerd for its version by the Container Runtime Interface, as the
// kubelet does first of all. Its socket is there before it can answer, and a kubelet that
// comes in between ends.
func askRuntime(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	if _, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return fmt.Errorf("waiting for its runtime service: %w", err)
	}
	return nil
}

func startProxy(ctx context.Context, sup *process.Supervisor, cfg Config, holder int) error {
	path, err := cfg.Binary("kube-proxy")
	if err != nil {
		return err
	}
	_, err = sup.Start(ctx, process.Spec{
		Name: daemon(cfg.Cluster, cfg.Node, "kube-proxy"), Path: path,
		Args: []string{"--config", "/etc/kubernetes/kube-proxy.yaml", "--hostname-override", cfg.Node.Name},
		Env:  environment(), NetNS: cfg.Node.NetNS, MountNS: holder, Subgroup: nodeGroup(cfg),
		Inputs: []string{digest([]byte(proxyConfig(cfg))), digest(cfg.ProxyConfig)},
	})
	return err
}

func startKubelet(ctx context.Context, sup *process.Supervisor, cfg Config, holder int) error {
	path, err := cfg.Binary("kubelet")
	if err != nil {
		return err
	}
	args := []string{
		"--config", "/etc/kubernetes/kubelet.yaml",
		"--kubeconfig", "/etc/kubernetes/kubelet.kubeconfig",
		"--hostname-override", cfg.Node.Name,
		"--node-ip", cfg.Node.Address.String(),
		"--node-labels", joinLabels(cfg.Node.Labels),
	}
	if cfg.Node.Taint != "" {
		args = append(args, "--register-with-taints", cfg.Node.Taint)
	}
	name := daemon(cfg.Cluster, cfg.Node, "kubelet")
	_, err = sup.Start(ctx, process.Spec{
		Name: name, Path: path, Args: args,
		Env: environment(), NetNS: cfg.Node.NetNS, MountNS: holder, Subgroup: nodeGroup(cfg),
		Inputs: []string{digest([]byte(kubeletConfig(cfg))), digest(cfg.KubeletConfig), digest(cfg.ServingCert)},
	})
	if err != nil {
		return err
	}
	return sup.Wait(ctx, name, time.Minute, func(ctx context.Context) error {
		conn, err := netns.Dialer(cfg.Node.NetNS)(ctx, "tcp", "127.0.0.1:10248")
		if err != nil {
			return fmt.Errorf("waiting for its health port: %w", err)
		}
		return conn.Close()
	})
}

// proxyAttempts is how often a kube-proxy is started that ends. Upstream's can end on a nil
// pointer when it hears of its node while it still registers who wants to know
// (NodeTopologyConfig of v1.37); in a cloud its DaemonSet starts it again.
const proxyAttempts = 3

// AwaitProxy waits until the node's kube-proxy has written its rules, and starts it again if
// it ended before.
func AwaitProxy(ctx context.Context, sup *process.Supervisor, cfg Config) error {
	name := daemon(cfg.Cluster, cfg.Node, "kube-proxy")
	holder, ok := sup.Running(daemon(cfg.Cluster, cfg.Node, "mounts"))
	if !ok {
		return fmt.Errorf("node %s: nothing holds its mounts", cfg.Node.Name)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: netns.Dialer(cfg.Node.NetNS), DisableKeepAlives: true}, Timeout: 2 * time.Second}
	var err error
	for range proxyAttempts {
		if err = startProxy(ctx, sup, cfg, holder); err != nil {
			break
		}
		err = sup.Wait(ctx, name, time.Minute, func(ctx context.Context) error { return askProxy(ctx, client) })
		if _, runs := sup.Running(name); err == nil || runs {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", cfg.Node.Name, err)
	}
	return nil
}

func askProxy(ctx context.Context, client *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10256/healthz", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("waiting for its health port: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // its status is what is asked for
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("waiting for its first rules: it answers %s", response.Status)
	}
	return nil
}

// setForwarding lets the node route between its Pods and its network card.
func setForwarding(ns string) error {
	return netns.Do(ns, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return fmt.Errorf("allow forwarding in namespace %s: %w", ns, err)
		}
		return nil
	})
}

func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "GOGC=200"}
}

func joinLabels(labels map[string]string) string {
	var pairs []string
	for key, value := range labels {
		pairs = append(pairs, key+"="+value)
	}
	sort.Strings(pairs)
	return strings.Join(pairs, ",")
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
