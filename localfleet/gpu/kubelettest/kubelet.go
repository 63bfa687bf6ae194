// Package kubelettest is a kubelet for tests of device plugins, as far as a device plugin can see one: the registration
// server, the client of the plugin and the pod-resources server, over real unix sockets. It does what the kubelet's
// device manager does in that order: on start it removes every socket of the directory, on Register it dials back,
// asks for the options and only then answers, and it watches the devices until the stream ends.
package kubelettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginv1beta1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// Kubelet can be started, stopped, killed and started again.
type Kubelet struct {
	pluginv1beta1.UnimplementedRegistrationServer
	podresourcesv1.UnimplementedPodResourcesListerServer

	Root string

	mu            sync.Mutex
	servers       []*grpc.Server
	plugin        *grpc.ClientConn
	registrations []*pluginv1beta1.RegisterRequest
	devices       map[string]string // by ID, their health; nil without a stream
	pods          []*podresourcesv1.PodResources
}

// New makes a kubelet with a root directory of its own, which is not started.
func New(t testing.TB) *Kubelet {
	t.Helper()
	// Not t.TempDir: the name of a test can make a path that is too long for a socket.
	root, err := os.MkdirTemp("", "kubelet-")
	if err != nil {
		t.Fatal(err)
	}
	k := &Kubelet{Root: root}
	t.Cleanup(func() {
		k.Stop()
		_ = os.RemoveAll(root)
	})
	for _, dir := range []string{k.DevicePluginDir(), filepath.Dir(k.PodResourcesSocket())} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// DevicePluginDir is where plugins make their sockets.
func (k *Kubelet) DevicePluginDir() string { return filepath.Join(k.Root, "device-plugins") }

// PodResourcesSocket is where the pod-resources API answers.
func (k *Kubelet) PodResourcesSocket() string {
	return filepath.Join(k.Root, "pod-resources", "kubelet.sock")
}

// Start lets the kubelet run.
func (k *Kubelet) Start(t testing.TB) {
	t.Helper()
	sockets, _ := filepath.Glob(filepath.Join(k.DevicePluginDir(), "*.sock"))
	for _, socket := range append(sockets, k.PodResourcesSocket()) {
		_ = os.Remove(socket)
	}
	registry, pods := grpc.NewServer(), grpc.NewServer()
	pluginv1beta1.RegisterRegistrationServer(registry, k)
	podresourcesv1.RegisterPodResourcesListerServer(pods, k)
	for path, server := range map[string]*grpc.Server{filepath.Join(k.DevicePluginDir(), "kubelet.sock"): registry, k.PodResourcesSocket(): pods} {
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Serve(listener) }()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.servers = []*grpc.Server{registry, pods}
}

// Stop ends the kubelet as SIGTERM does: its sockets go with it.
func (k *Kubelet) Stop() {
	k.mu.Lock()
	servers, plugin := k.servers, k.plugin
	k.servers, k.plugin, k.devices = nil, nil, nil
	k.mu.Unlock()
	if plugin != nil {
		_ = plugin.Close()
	}
	for _, server := range servers {
		server.Stop()
	}
}

// Disconnect drops the plugin as a kubelet does that lost the stream, without being started anew.
func (k *Kubelet) Disconnect() {
	k.mu.Lock()
	plugin := k.plugin
	k.plugin, k.devices = nil, nil
	k.mu.Unlock()
	if plugin != nil {
		_ = plugin.Close()
	}
}

// Register is the kubelet's side of a registration.
func (k *Kubelet) Register(ctx context.Context, request *pluginv1beta1.RegisterRequest) (*pluginv1beta1.Empty, error) {
	if request.GetVersion() != pluginv1beta1.Version {
		return nil, fmt.Errorf("version %q is not supported", request.GetVersion())
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(k.DevicePluginDir(), request.GetEndpoint()), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	if _, err := pluginv1beta1.NewDevicePluginClient(conn).GetDevicePluginOptions(ctx, &pluginv1beta1.Empty{}); err != nil {
		return nil, errors.Join(fmt.Errorf("dialling back: %w", err), conn.Close())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.registrations = append(k.registrations, request)
	k.plugin = conn
	go k.watch(conn)
	return &pluginv1beta1.Empty{}, nil
}

func (k *Kubelet) watch(conn *grpc.ClientConn) {
	stream, err := pluginv1beta1.NewDevicePluginClient(conn).ListAndWatch(context.Background(), &pluginv1beta1.Empty{})
	for err == nil {
		var list *pluginv1beta1.ListAndWatchResponse
		if list, err = stream.Recv(); err == nil {
			k.mu.Lock()
			if k.plugin == conn {
				k.devices = map[string]string{}
				for _, device := range list.GetDevices() {
					k.devices[device.GetID()] = device.GetHealth()
				}
			}
			k.mu.Unlock()
		}
	}
	_ = conn.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.plugin == conn {
		k.plugin, k.devices = nil, nil
	}
}

// List is the kubelet's answer to the question who uses which device.
func (k *Kubelet) List(context.Context, *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &podresourcesv1.ListPodResourcesResponse{PodResources: k.pods}, nil
}

// RunPod lets a container use devices, as far as the pod-resources API shows it.
func (k *Kubelet) RunPod(namespace, pod, container, resource string, devices ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods = append(k.pods, &podresourcesv1.PodResources{Namespace: namespace, Name: pod, Containers: []*podresourcesv1.ContainerResources{
		{Name: container, Devices: []*podresourcesv1.ContainerDevices{{ResourceName: resource, DeviceIds: devices}}},
	}})
}

// DeletePods lets no container use a device any more.
func (k *Kubelet) DeletePods() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods = nil
}

// Registrations are the registrations so far.
func (k *Kubelet) Registrations() []*pluginv1beta1.RegisterRequest {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]*pluginv1beta1.RegisterRequest(nil), k.registrations...)
}

// Devices are the devices that the kubelet has, with their health; nil without a plugin.
func (k *Kubelet) Devices() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	devices := map[string]string{}
	for id, health := range k.devices {
		devices[id] = health
	}
	return devices
}

// Plugin is a client of the plugin that registered last.
func (k *Kubelet) Plugin(t testing.TB) pluginv1beta1.DevicePluginClient {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.plugin == nil {
		t.Fatal("no plugin is connected")
	}
	return pluginv1beta1.NewDevicePluginClient(k.plugin)
}

// Eventually waits until condition returns an empty string, and fails with what it returned last.
func Eventually(t testing.TB, condition func() string) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		missing := condition()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute still: %s", missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
