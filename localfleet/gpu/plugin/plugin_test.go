package plugin_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginv1beta1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/kubelettest"
	"github.com/omnivision/omnivision/localfleet/gpu/plugin"
)

const hostXidDir = "/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-0/gpu/xid"

type node struct {
	kubelet *kubelettest.Kubelet
	devices *device.Set
	plugin  *plugin.Plugin
	uuids   []string
	// stop ends the plugin and returns what Run returned.
	stop func() error
}

// startNode runs a plugin with two devices against a kubelet that is not started yet.
func startNode(t *testing.T) *node {
	t.Helper()
	devices, err := device.Open(t.Context(), device.Config{Dir: t.TempDir(), Cluster: "cluster-aws", Node: "gpu-0", Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(devices.Close)
	n := &node{kubelet: kubelettest.New(t), devices: devices}
	list, _ := devices.Devices()
	for _, d := range list {
		n.uuids = append(n.uuids, d.UUID)
	}
	n.plugin = plugin.New(plugin.Config{Dir: n.kubelet.DevicePluginDir(), HostXidDir: hostXidDir, Devices: devices})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- n.plugin.Run(ctx) }()
	n.stop = func() error {
		cancel()
		select {
		case err := <-result:
			result <- err
			return err
		case <-time.After(10 * time.Second):
			t.Error("the plugin does not stop")
			return nil
		}
	}
	t.Cleanup(func() { _ = n.stop() })
	return n
}

// has waits until the kubelet has the devices with these healths.
func (n *node) has(t *testing.T, healths ...string) {
	t.Helper()
	kubelettest.Eventually(t, func() string {
		devices := n.kubelet.Devices()
		for i, health := range healths {
			if devices[n.uuids[i]] != health {
				return fmt.Sprintf("the kubelet has %v, want device %d %s", devices, i, health)
			}
		}
		if len(devices) != len(healths) {
			return fmt.Sprintf("the kubelet has %v, want %d devices", devices, len(healths))
		}
		if err := n.plugin.Ready(); err != nil {
			return "the plugin is not ready: " + err.Error()
		}
		return ""
	})
}

func TestRegistersDevicesWhenTheKubeletStarts(t *testing.T) {
	n := startNode(t)
	if err := n.plugin.Ready(); err == nil {
		t.Error("ready without a kubelet")
	}
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	registrations := n.kubelet.Registrations()
	if len(registrations) != 1 || registrations[0].GetResourceName() != "nvidia.com/gpu" || !registrations[0].GetOptions().GetGetPreferredAllocationAvailable() {
		t.Errorf("registered %v, want nvidia.com/gpu once", registrations)
	}
}

func TestRegistersAgainWithAKubeletThatStartsAnew(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	n.kubelet.Stop()
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	registrations := n.kubelet.Registrations()
	if len(registrations) != 2 || n.plugin.Registrations() != 2 {
		t.Fatalf("%d registrations, and the plugin counts %d, want 2", len(registrations), n.plugin.Registrations())
	}
	// The kubelet keeps plugins by socket path and mistakes one that comes back under its old path.
	if registrations[0].GetEndpoint() == registrations[1].GetEndpoint() {
		t.Errorf("both sessions use the socket %s", registrations[0].GetEndpoint())
	}
}

func TestRegistersAgainWhenTheKubeletLetGoOfTheDevices(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	n.kubelet.Disconnect()
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
}

func TestRegistersAgainWhenItsSocketIsRemoved(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	if err := os.Remove(filepath.Join(n.kubelet.DevicePluginDir(), n.kubelet.Registrations()[0].GetEndpoint())); err != nil {
		t.Fatal(err)
	}
	kubelettest.Eventually(t, func() string {
		if count := len(n.kubelet.Registrations()); count != 2 {
			return fmt.Sprintf("%d registrations, want 2", count)
		}
		return ""
	})
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
}

func TestSurvivesAKubeletThatIsKilled(t *testing.T) {
	n := startNode(t)
	// What SIGKILL leaves: a socket that nobody listens on.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(n.kubelet.DevicePluginDir(), "kubelet.sock")})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	kubelettest.Eventually(t, func() string {
		if err := n.plugin.Ready(); err == nil || !strings.Contains(err.Error(), "registering nvidia.com/gpu with the kubelet") {
			return fmt.Sprintf("the plugin says %v, want that it cannot register", err)
		}
		return ""
	})
	if err := os.Remove(dead.Addr().String()); err != nil {
		t.Fatal(err)
	}
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
}

func TestClearsAwaySocketsOfAKilledPredecessorAndItsOwn(t *testing.T) {
	n := startNode(t)
	_ = n.stop()
	stale := filepath.Join(n.kubelet.DevicePluginDir(), "gpu-substitute-stale.sock")
	foreign := filepath.Join(n.kubelet.DevicePluginDir(), "other-vendor.sock")
	for _, path := range []string{stale, foreign} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := plugin.New(plugin.Config{Dir: n.kubelet.DevicePluginDir(), HostXidDir: hostXidDir, Devices: n.devices})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- again.Run(ctx) }()
	kubelettest.Eventually(t, func() string {
		if _, err := os.Stat(stale); err == nil {
			return "the predecessor's socket is there"
		}
		return ""
	})
	// Started only now: a kubelet that starts would clear the directory itself.
	n.kubelet.Start(t)
	kubelettest.Eventually(t, func() string {
		if err := again.Ready(); err != nil {
			return err.Error()
		}
		return ""
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopped with %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(n.kubelet.DevicePluginDir(), "gpu-substitute-*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestEndsWhenItsDirectoryIsReplaced(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	n.kubelet.Stop()
	if err := os.RemoveAll(n.kubelet.DevicePluginDir()); err != nil {
		t.Fatal(err)
	}
	kubelettest.Eventually(t, func() string {
		if err := n.plugin.Ready(); err == nil || !strings.Contains(err.Error(), "stopped") {
			return fmt.Sprintf("the plugin still runs: %v", err)
		}
		return ""
	})
	if err := n.stop(); err == nil || !strings.Contains(err.Error(), "device-plugin directory was deleted") {
		t.Errorf("ended with %v, want an error that has the container started anew", err)
	}
}

func TestHardwareXidTakesTheDeviceFromTheKubeletUntilReset(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	for _, xid := range []int{31, 79} {
		if _, err := n.devices.Raise(t.Context(), n.uuids[1], xid); err != nil {
			t.Fatal(err)
		}
	}
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Unhealthy)
	_, err := n.kubelet.Plugin(t).Allocate(t.Context(), allocate(n.uuids[1:]))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "Xid 79") {
		t.Errorf("allocating it: %v, want a refusal that names the Xid", err)
	}
	// The kubelet's next start must see it unhealthy at once.
	n.kubelet.Stop()
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Unhealthy)
	if _, err := n.devices.Reset(n.uuids[1]); err != nil {
		t.Fatal(err)
	}
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
}

func allocate(uuids ...[]string) *pluginv1beta1.AllocateRequest {
	request := &pluginv1beta1.AllocateRequest{}
	for _, of := range uuids {
		request.ContainerRequests = append(request.ContainerRequests, &pluginv1beta1.ContainerAllocateRequest{DevicesIds: of})
	}
	return request
}

func TestContainerSeesItsDevicesAndOnlyTheirLogs(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	response, err := n.kubelet.Plugin(t).Allocate(t.Context(), allocate(n.uuids[1:], []string{n.uuids[1], n.uuids[0]}))
	if err != nil {
		t.Fatal(err)
	}
	if len(response.GetContainerResponses()) != 2 {
		t.Fatalf("%d answers for 2 containers", len(response.GetContainerResponses()))
	}
	for i, uuids := range [][]string{n.uuids[1:], n.uuids} { // by index, whatever the order of the request
		got := response.GetContainerResponses()[i]
		if env := got.GetEnvs(); env["NVIDIA_VISIBLE_DEVICES"] != strings.Join(uuids, ",") || env["OMNIVISION_GPU_XID_LOG"] != "/run/omnivision-gpu/xid" || len(env) != 2 {
			t.Errorf("container %d has the environment %v", i, env)
		}
		if len(got.GetMounts()) != len(uuids) {
			t.Fatalf("container %d has the mounts %v, want one for each device", i, got.GetMounts())
		}
		for j, mount := range got.GetMounts() {
			if name := uuids[j] + ".jsonl"; mount.GetContainerPath() != "/run/omnivision-gpu/xid/"+name || mount.GetHostPath() != hostXidDir+"/"+name || !mount.GetReadOnly() {
				t.Errorf("container %d has the mount %v", i, mount)
			}
		}
	}
}

func TestImpossibleAllocationsAreRefused(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	for name, uuids := range map[string][]string{
		"unknown": {"GPU-none"},
		"twice":   {n.uuids[0], n.uuids[0]},
		"none":    {},
		"mixed":   {n.uuids[0], "GPU-none"},
	} {
		if _, err := n.kubelet.Plugin(t).Allocate(t.Context(), allocate(uuids)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}

func TestPrefersLowIndices(t *testing.T) {
	n := startNode(t)
	n.kubelet.Start(t)
	n.has(t, pluginv1beta1.Healthy, pluginv1beta1.Healthy)
	ask := func(available, must []string, size int32) ([]string, error) {
		response, err := n.kubelet.Plugin(t).GetPreferredAllocation(t.Context(), &pluginv1beta1.PreferredAllocationRequest{
			ContainerRequests: []*pluginv1beta1.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: available, MustIncludeDeviceIDs: must, AllocationSize: size}}})
		if err != nil {
			return nil, err
		}
		return response.GetContainerResponses()[0].GetDeviceIDs(), nil
	}
	backwards := []string{n.uuids[1], n.uuids[0]}
	if got, err := ask(backwards, nil, 1); err != nil || !slices.Equal(got, n.uuids[:1]) {
		t.Errorf("one of both: %v (%v), want the first", got, err)
	}
	if got, err := ask(backwards, n.uuids[1:], 1); err != nil || !slices.Equal(got, n.uuids[1:]) {
		t.Errorf("one that must be the second: %v (%v)", got, err)
	}
	if _, err := ask(backwards, nil, 3); err == nil {
		t.Error("three of two pass")
	}
}
