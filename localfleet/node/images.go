package node

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// Pull has a running node's containerd pull images, one after the other, by the Container
// Runtime Interface as the kubelet does. The kubelet then finds them there.
func Pull(ctx context.Context, sup *process.Supervisor, c topology.Cluster, n topology.Node, references ...string) error {
	holder, ok := sup.Running(daemon(c, n, "mounts"))
	if !ok {
		return fmt.Errorf("node %s: nothing holds its mounts", n.Name)
	}
	if err := pull(ctx, socket(holder), references); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// socket is where the machine finds the containerd of a node.
func socket(holder int) string {
	return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", holder)
}

func pull(ctx context.Context, socket string, references []string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	images := runtimeapi.NewImageServiceClient(conn)
	for _, reference := range references {
		spec := &runtimeapi.ImageSpec{Image: reference}
		have, err := images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
		if err == nil && have.GetImage() != nil {
			continue
		}
		if _, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
			return fmt.Errorf("pull %s: %w", reference, err)
		}
	}
	return nil
}
