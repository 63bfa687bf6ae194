package node

import (
	"fmt"
	"os"
	"path/filepath"
)

// containerdConfig is the node's containerd, which this machine may not let
// raise priorities (restrict_oom_score_adj) and which finds every registry
// behind the fleet's front.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.1"
  restrict_oom_score_adj = true
  max_concurrent_downloads = 4

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

// hostsConfig sends every registry's pulls to the fleet's front, which tells
// them apart by the "ns" parameter that containerd adds.
func hostsConfig(cfg Config) string {
	return fmt.Sprintf(`[host."https://%s"]
  capabilities = ["pull", "resolve"]
  ca = "/etc/containerd/certs.d/fleet-ca.crt"
`, cfg.RegistryAddress)
}

// cniConfig connects each Pod by a routed pair, without a bridge: traffic to a
// Service's Pods on the same node then always passes the node's own rules.
func cniConfig(cfg Config) string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "fleet",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "mtu": 1500,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": %q}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    }
  ]
}
`, cfg.Node.PodCIDR)
}

func kubeletConfig(cfg Config) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/cluster-ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: %[2]s
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDNS: [%[3]s]
clusterDomain: cluster.local
resolvConf: /etc/kubernetes/resolv.conf
# The defaults are shares of the disk, which a machine that is used for other
# things as well may well be short of.
evictionHard:
  memory.available: 100Mi
  nodefs.available: 1Gi
  imagefs.available: 1Gi
  nodefs.inodesFree: 1%%
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
maxParallelImagePulls: 4
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 50
kubeAPIBurst: 100
nodeStatusUpdateFrequency: 5s
shutdownGracePeriod: 0s
containerLogMaxSize: 10Mi
containerLogMaxFiles: 3
`, cfg.Node.Address, cfg.Node.Cgroup, cfg.Cluster.DNSAddress)
}

func proxyConfig(cfg Config) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.kubeconfig}
clusterCIDR: 10.%d.0.0/16
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {syncPeriod: 30s, minSyncPeriod: 100ms}
`, 121+cfg.Cluster.Index)
}

// writeFiles writes everything that the node's daemons read.
func writeFiles(cfg Config) error {
	for _, bind := range binds {
		if err := os.MkdirAll(filepath.Join(cfg.Node.Dir, bind[0]), 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(bind[1], 0o755); err != nil {
			return err
		}
	}
	for _, target := range memoryMounts {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	files := []struct {
		path string
		data []byte
		mode os.FileMode
	}{
		{"etc/containerd/config.toml", []byte(containerdConfig), 0o644},
		{"etc/containerd/certs.d/_default/hosts.toml", []byte(hostsConfig(cfg)), 0o644},
		{"etc/containerd/certs.d/fleet-ca.crt", cfg.EdgeCA, 0o644},
		{"etc/cni/net.d/10-fleet.conflist", []byte(cniConfig(cfg)), 0o644},
		{"etc/kubernetes/kubelet.yaml", []byte(kubeletConfig(cfg)), 0o644},
		{"etc/kubernetes/kubelet.kubeconfig", cfg.KubeletConfig, 0o600},
		{"etc/kubernetes/kubelet.crt", cfg.ServingCert, 0o644},
		{"etc/kubernetes/kubelet.key", cfg.ServingKey, 0o600},
		{"etc/kubernetes/kube-proxy.yaml", []byte(proxyConfig(cfg)), 0o644},
		{"etc/kubernetes/kube-proxy.kubeconfig", cfg.ProxyConfig, 0o600},
		{"etc/kubernetes/cluster-ca.crt", cfg.ClusterCA, 0o644},
		// Pods that ask for the node's resolver get none: the fleet has no way out.
		{"etc/kubernetes/resolv.conf", []byte("options ndots:1\n"), 0o644},
	}
	for _, file := range files {
		path := filepath.Join(cfg.Node.Dir, file.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, file.data, file.mode); err != nil {
			return err
		}
	}
	return nil
}
