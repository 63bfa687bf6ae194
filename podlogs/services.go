package podlogs

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// identity is the Identity service of the Container Storage Interface.
type identity struct {
	csi.UnimplementedIdentityServer
	driver *Driver
}

func (i identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: DriverName, VendorVersion: i.driver.cfg.Version}, nil
}

// GetPluginCapabilities names none: there is no controller service and no topology.
func (i identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

func (i identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	root, err := openRoot(i.driver.cfg.LogDir)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the node's log directory: %v", err)
	}
	closeFD(root)
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// node is the Node service of the Container Storage Interface, without any optional capability.
type node struct {
	csi.UnimplementedNodeServer
	driver *Driver
}

func (n node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.driver.cfg.NodeName}, nil
}

func (n node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// NodePublishVolume mounts the Pod's log directory. Refusals are InvalidArgument: the kubelet shows the message in an
// Event of the Pod and tries again.
func (n node) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	err := n.publish(r)
	n.driver.record("publish", r.GetTargetPath(), err)
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (n node) publish(r *csi.NodePublishVolumeRequest) error {
	p, t, err := parsePublish(n.driver.pods, r)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if !n.driver.begin(r.GetTargetPath()) {
		return status.Errorf(codes.Aborted, "another call is at work on %s", r.GetTargetPath())
	}
	defer n.driver.end(r.GetTargetPath())
	if err := n.driver.publish(p, t); err != nil {
		return status.Errorf(codes.Internal, "show Pod %s/%s its logs: %v", p.namespace, p.name, err)
	}
	return nil
}

func (n node) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	err := n.unpublish(r)
	n.driver.record("unpublish", r.GetTargetPath(), err)
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (n node) unpublish(r *csi.NodeUnpublishVolumeRequest) error {
	if r.GetVolumeId() == "" {
		return status.Error(codes.InvalidArgument, "volume id is missing")
	}
	if r.GetTargetPath() == "" {
		return status.Error(codes.InvalidArgument, "target path is missing")
	}
	t, err := parseTarget(n.driver.pods, r.GetTargetPath())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if !n.driver.begin(r.GetTargetPath()) {
		return status.Errorf(codes.Aborted, "another call is at work on %s", r.GetTargetPath())
	}
	defer n.driver.end(r.GetTargetPath())
	if err := n.driver.unpublish(t); err != nil {
		return status.Errorf(codes.Internal, "take the logs away from %s: %v", r.GetTargetPath(), err)
	}
	return nil
}

func (d *Driver) record(method, target string, err error) {
	code := status.Code(err)
	d.metrics.calls.WithLabelValues(method, code.String()).Inc()
	if err != nil {
		d.cfg.Log.Warn(method, "target", target, "code", code.String(), "error", status.Convert(err).Message())
		return
	}
	d.cfg.Log.Info(method, "target", target)
}
