// Package podresources asks a kubelet which container uses which GPU, over the pod-resources API that dcgm-exporter
// uses for the same question.
package podresources

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// callTimeout bounds one question. The kubelet answers within milliseconds; a scrape must not hang on one that died.
const callTimeout = 3 * time.Second

// Owner is the container that uses a device.
type Owner struct {
	Namespace, Pod, Container string
}

// Lister asks the kubelet behind a socket.
type Lister struct {
	// Socket is the kubelet's pod-resources socket, ROOT/pod-resources/kubelet.sock.
	Socket string
	// Resource is the extended resource to look at, such as nvidia.com/gpu.
	Resource string
}

// Owners returns the owner of each device that a container uses, by device ID. It dials anew each time, because the
// kubelet makes its socket anew each time it starts and a connection that is backing off would miss that.
func (l Lister) Owners(ctx context.Context) (map[string]Owner, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+l.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dialling the kubelet's pod-resources socket %s: %w", l.Socket, err)
	}
	defer conn.Close()
	list, err := podresourcesv1.NewPodResourcesListerClient(conn).List(ctx, &podresourcesv1.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking the kubelet at %s which containers use %s: %w", l.Socket, l.Resource, err)
	}
	owners := map[string]Owner{}
	for _, pod := range list.GetPodResources() {
		for _, container := range pod.GetContainers() {
			for _, devices := range container.GetDevices() {
				if devices.GetResourceName() != l.Resource {
					continue
				}
				for _, id := range devices.GetDeviceIds() {
					owners[id] = Owner{Namespace: pod.GetNamespace(), Pod: pod.GetName(), Container: container.GetName()}
				}
			}
		}
	}
	return owners, nil
}

// InUse reports whether a container uses the device.
func (l Lister) InUse(ctx context.Context, id string) (bool, error) {
	owners, err := l.Owners(ctx)
	if err != nil {
		return false, err
	}
	_, used := owners[id]
	return used, nil
}
