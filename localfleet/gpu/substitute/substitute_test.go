package substitute

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pluginv1beta1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/gpu/control"
	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/kubelettest"
)

// start runs the program until the returned function is called, which returns what Run returned.
func start(t *testing.T, cfg Config) func() error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- Run(ctx, cfg) }()
	stop := func() error {
		cancel()
		select {
		case err := <-result:
			result <- err
			return err
		case <-time.After(20 * time.Second):
			t.Error("the program does not stop")
			return nil
		}
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func newConfig(t *testing.T, kubelet *kubelettest.Kubelet) Config {
	t.Helper()
	return Config{
		Cluster: "cluster-aws", Node: "gpu-0", Count: 2,
		StateDir: filepath.Join(kubelet.Root, "gpu"), HostStateDir: "/host/gpu",
		DevicePluginDir: kubelet.DevicePluginDir(), PodResourcesSocket: kubelet.PodResourcesSocket(),
		MetricsListen: freeport.Address(t), Version: "v0",
	}
}

func get(t *testing.T, cfg Config, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cfg.MetricsListen+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func ready(t *testing.T, cfg Config) {
	t.Helper()
	kubelettest.Eventually(t, func() string {
		if code, body := get(t, cfg, "/ready"); code != http.StatusOK {
			return fmt.Sprintf("/ready answers %d %s", code, body)
		}
		return ""
	})
}

// One rehearsal from end to end: a Pod gets a GPU, the GPU falls off the bus, the Pod, Prometheus and the kubelet all
// see it, the program is restarted, and the GPU is what and how it was until it is reset.
func TestXidReachesPodPrometheusAndKubeletAndOutlivesARestart(t *testing.T) {
	kubelet := kubelettest.New(t)
	cfg := newConfig(t, kubelet)
	stop := start(t, cfg)
	kubelettest.Eventually(t, func() string {
		if code, _ := get(t, cfg, "/health"); code != http.StatusOK {
			return "/health does not answer"
		}
		return ""
	})
	if code, body := get(t, cfg, "/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "kubelet") {
		t.Errorf("without a kubelet /ready answers %d %s", code, body)
	}
	kubelet.Start(t)
	ready(t, cfg)

	uuid := device.UUID("cluster-aws", "gpu-0", 0)
	allocation, err := kubelet.Plugin(t).Allocate(t.Context(), &pluginv1beta1.AllocateRequest{ContainerRequests: []*pluginv1beta1.ContainerAllocateRequest{{DevicesIds: []string{uuid}}}})
	if err != nil {
		t.Fatal(err)
	}
	kubelet.RunPod("omnivision", "worker-abc", "worker", "nvidia.com/gpu", uuid)
	mount := allocation.GetContainerResponses()[0].GetMounts()[0]
	if !strings.HasPrefix(mount.GetHostPath(), "/host/gpu/xid/") {
		t.Fatalf("the mount %v is not below the node's own path of the state", mount)
	}
	// What the container would see: the file behind the mount, opened before the Xid.
	seen, err := os.Open(strings.Replace(mount.GetHostPath(), cfg.HostStateDir, cfg.StateDir, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()

	client := control.NewClient(filepath.Join(cfg.StateDir, control.SocketName))
	target, _ := control.ParseTarget("0")
	if _, err := client.RaiseXid(t.Context(), target, 79); err != nil {
		t.Fatal(err)
	}
	check := func(when string, health string) {
		t.Helper()
		kubelettest.Eventually(t, func() string {
			if got := kubelet.Devices()[uuid]; got != health {
				return fmt.Sprintf("%s: the kubelet sees %q, want %q", when, got, health)
			}
			return ""
		})
		_, metrics := get(t, cfg, "/metrics")
		for _, name := range []string{"DCGM_FI_DEV_XID_ERRORS{", "DCGM_EXP_XID_ERRORS_COUNT{"} {
			found := false
			for line := range strings.Lines(metrics) {
				found = found || strings.HasPrefix(line, name) && strings.Contains(line, uuid) && strings.Contains(line, `pod="worker-abc"`) &&
					(strings.Contains(line, `err_code="79"`) || strings.Contains(line, `xid="79"`))
			}
			if !found {
				t.Errorf("%s: no sample of %s…} has the Pod and the Xid in\n%s", when, name, metrics)
			}
		}
	}
	check("after the Xid", pluginv1beta1.Unhealthy)

	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.StateDir, control.SocketName)); err == nil {
		t.Error("the control socket is left behind")
	}
	stop = start(t, cfg)
	ready(t, cfg)
	check("after the restart", pluginv1beta1.Unhealthy)
	if _, err := client.RaiseXid(t.Context(), target, 31); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Reset(t.Context(), control.Target{All: true}); err != nil {
		t.Fatal(err)
	}
	kubelettest.Eventually(t, func() string {
		if got := kubelet.Devices()[uuid]; got != pluginv1beta1.Healthy {
			return fmt.Sprintf("after the reset the kubelet sees %q", got)
		}
		return ""
	})
	content, err := io.ReadAll(seen)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(string(content)), "\n"); len(lines) != 2 || !strings.Contains(lines[0], `"xid":79`) || !strings.Contains(lines[1], `"xid":31`) {
		t.Errorf("the container sees %q, want both Xids, the restart between them unnoticed", content)
	}
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestTakenAddressAndMissingNodeAreNamed(t *testing.T) {
	kubelet := kubelettest.New(t)
	cfg := newConfig(t, kubelet)
	taken, err := net.Listen("tcp", cfg.MetricsListen)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another exporter") {
		t.Errorf("with a taken address: %v", err)
	}
	cfg.Node = ""
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "NODE_NAME") {
		t.Errorf("without a node: %v", err)
	}
	cfg = newConfig(t, kubelet)
	cfg.DevicePluginDir = filepath.Join(kubelet.Root, "missing")
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), cfg.DevicePluginDir) {
		t.Errorf("without the device-plugin directory: %v", err)
	}
}
