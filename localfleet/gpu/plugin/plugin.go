// Package plugin is a kubelet device plugin (v1beta1) for simulated GPUs. To the kubelet it is the real thing: it
// registers, streams the devices and their health, and allocates them; only the devices are simulated.
//
// A container that is given devices sees
//
//	NVIDIA_VISIBLE_DEVICES=UUID[,UUID]           as with NVIDIA's device plugin
//	OMNIVISION_GPU_XID_LOG=/run/omnivision-gpu/xid
//
// and in that directory, for each of its devices and for no other, the read-only file UUID.jsonl of Xid events.
package plugin

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginv1beta1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
)

const (
	// Resource is what the devices are advertised as.
	Resource = "nvidia.com/gpu"
	// VisibleDevicesEnv and XidLogEnv are what a container with devices finds in its environment.
	VisibleDevicesEnv = "NVIDIA_VISIBLE_DEVICES"
	XidLogEnv         = "OMNIVISION_GPU_XID_LOG"
	// ContainerXidDir is where a container finds the Xid logs of its devices.
	ContainerXidDir = "/run/omnivision-gpu/xid"
)

// Config says which devices are offered to which kubelet.
type Config struct {
	// Dir is the kubelet's device-plugin directory as this process sees it; the kubelet's socket is kubelet.sock in it.
	Dir string
	// HostXidDir is the directory of the Xid logs as the node's container runtime sees it: mounts are made from there.
	HostXidDir string
	Devices    *device.Set
	Log        *slog.Logger
}

// Plugin offers devices to a kubelet for as long as Run runs.
type Plugin struct {
	cfg Config

	mu            sync.Mutex
	state         string // why the kubelet does not have the devices; empty when it has
	registrations int
}

// New makes a plugin; Run starts it.
func New(cfg Config) *Plugin {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Plugin{cfg: cfg, state: "has not registered with the kubelet yet"}
}

// Ready returns nil while the kubelet has the devices, and otherwise what is missing.
func (p *Plugin) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == "" {
		return nil
	}
	return errors.New(p.state)
}

// Registrations counts how often the devices were registered with a kubelet.
func (p *Plugin) Registrations() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.registrations
}

func (p *Plugin) setState(state string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if state == p.state {
		return
	}
	p.state = state
	if state == "" {
		p.cfg.Log.Info("the kubelet has the simulated GPUs", "resource", Resource)
	} else {
		p.cfg.Log.Warn("the kubelet does not have the simulated GPUs", "resource", Resource, "reason", state)
	}
}

// service answers the kubelet in one session, from a registration until the kubelet or the plugin goes.
type service struct {
	pluginv1beta1.UnimplementedDevicePluginServer
	plugin *Plugin
	stop   <-chan struct{}
	// streams receives +1 and -1 as ListAndWatch streams begin and end.
	streams chan int
}

func (s *service) GetDevicePluginOptions(context.Context, *pluginv1beta1.Empty) (*pluginv1beta1.DevicePluginOptions, error) {
	return &pluginv1beta1.DevicePluginOptions{GetPreferredAllocationAvailable: true}, nil
}

// ListAndWatch sends the devices at once and after every change of their health.
func (s *service) ListAndWatch(_ *pluginv1beta1.Empty, stream grpc.ServerStreamingServer[pluginv1beta1.ListAndWatchResponse]) error {
	s.count(+1)
	defer s.count(-1)
	var sent []*pluginv1beta1.Device
	for {
		devices, changed := s.plugin.cfg.Devices.Devices()
		if list := advertise(devices); sent == nil || !equal(sent, list) {
			if err := stream.Send(&pluginv1beta1.ListAndWatchResponse{Devices: list}); err != nil {
				return err
			}
			sent = list
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		case <-s.stop:
			return nil
		}
	}
}

func (s *service) count(delta int) {
	select {
	case s.streams <- delta:
	case <-s.stop:
	}
}

func advertise(devices []device.Device) []*pluginv1beta1.Device {
	list := make([]*pluginv1beta1.Device, 0, len(devices))
	for _, d := range devices {
		health := pluginv1beta1.Healthy
		if !d.Healthy {
			health = pluginv1beta1.Unhealthy
		}
		list = append(list, &pluginv1beta1.Device{ID: d.UUID, Health: health})
	}
	return list
}

func equal(a, b []*pluginv1beta1.Device) bool {
	return slices.EqualFunc(a, b, func(x, y *pluginv1beta1.Device) bool { return x.GetID() == y.GetID() && x.GetHealth() == y.GetHealth() })
}

// GetPreferredAllocation prefers the lowest indices, so that what a Pod gets is predictable.
func (s *service) GetPreferredAllocation(_ context.Context, request *pluginv1beta1.PreferredAllocationRequest) (*pluginv1beta1.PreferredAllocationResponse, error) {
	devices, _ := s.plugin.cfg.Devices.Devices()
	response := &pluginv1beta1.PreferredAllocationResponse{}
	for _, wanted := range request.GetContainerRequests() {
		chosen := slices.Clone(wanted.GetMustIncludeDeviceIDs())
		for _, d := range devices {
			if len(chosen) < int(wanted.GetAllocationSize()) && slices.Contains(wanted.GetAvailableDeviceIDs(), d.UUID) && !slices.Contains(chosen, d.UUID) {
				chosen = append(chosen, d.UUID)
			}
		}
		if len(chosen) < int(wanted.GetAllocationSize()) {
			return nil, status.Errorf(codes.InvalidArgument, "%d GPUs are wanted and only %d of the available ones are known", wanted.GetAllocationSize(), len(chosen))
		}
		response.ContainerResponses = append(response.ContainerResponses, &pluginv1beta1.ContainerPreferredAllocationResponse{DeviceIDs: chosen})
	}
	return response, nil
}

// Allocate tells the kubelet what a container with the devices gets.
func (s *service) Allocate(_ context.Context, request *pluginv1beta1.AllocateRequest) (*pluginv1beta1.AllocateResponse, error) {
	devices, _ := s.plugin.cfg.Devices.Devices()
	response := &pluginv1beta1.AllocateResponse{}
	for _, wanted := range request.GetContainerRequests() {
		chosen, err := choose(devices, wanted.GetDevicesIds())
		if err != nil {
			return nil, err
		}
		response.ContainerResponses = append(response.ContainerResponses, s.plugin.grant(chosen))
	}
	for _, container := range request.GetContainerRequests() {
		for _, uuid := range container.GetDevicesIds() {
			if err := s.plugin.cfg.Devices.Allocated(uuid); err != nil {
				return nil, status.Error(codes.NotFound, err.Error())
			}
		}
	}
	s.plugin.cfg.Log.Info("allocated simulated GPUs", "request", request.String())
	return response, nil
}

// choose finds the devices of a request, by index whatever the order of the request is.
func choose(devices []device.Device, uuids []string) ([]device.Device, error) {
	var chosen []device.Device
	for _, d := range devices {
		if !slices.Contains(uuids, d.UUID) {
			continue
		}
		if !d.Healthy {
			return nil, status.Errorf(codes.FailedPrecondition, "GPU %d (%s) became unhealthy by Xid %d: reset it, or let the Pod go to another node", d.Index, d.UUID, d.Cause.Xid)
		}
		chosen = append(chosen, d)
	}
	if len(uuids) == 0 || len(chosen) != len(uuids) {
		return nil, status.Errorf(codes.InvalidArgument, "cannot allocate %v: each must be a GPU of this node, named once", uuids)
	}
	return chosen, nil
}

func (p *Plugin) grant(devices []device.Device) *pluginv1beta1.ContainerAllocateResponse {
	grant := &pluginv1beta1.ContainerAllocateResponse{}
	uuids := make([]string, 0, len(devices))
	for _, d := range devices {
		uuids = append(uuids, d.UUID)
		// One mount a file, not one for the directory: a container must not see other containers' devices.
		grant.Mounts = append(grant.Mounts, &pluginv1beta1.Mount{
			ContainerPath: path.Join(ContainerXidDir, device.LogName(d.UUID)),
			HostPath:      path.Join(p.cfg.HostXidDir, device.LogName(d.UUID)),
			ReadOnly:      true,
		})
	}
	grant.Envs = map[string]string{VisibleDevicesEnv: strings.Join(uuids, ","), XidLogEnv: ContainerXidDir}
	return grant
}

func (s *service) PreStartContainer(context.Context, *pluginv1beta1.PreStartContainerRequest) (*pluginv1beta1.PreStartContainerResponse, error) {
	return &pluginv1beta1.PreStartContainerResponse{}, nil
}
