package node

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageService has some images, and pulls all but those of a registry that is away.
type imageService struct {
	runtimeapi.UnimplementedImageServiceServer
	have, pulled []string
}

func (s *imageService) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if slices.Contains(s.have, r.Image.Image) {
		return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: r.Image.Image}}, nil
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (s *imageService) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if strings.HasPrefix(r.Image.Image, "away.example.com/") {
		return nil, status.Error(codes.Unavailable, "the registry is away")
	}
	s.pulled = append(s.pulled, r.Image.Image)
	return &runtimeapi.PullImageResponse{}, nil
}

func TestPullAsksForWhatTheNodeDoesNotHave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "containerd.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	service := &imageService{have: []string{"example.com/here:1"}}
	server := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(server, service)
	go server.Serve(listener) //nolint:errcheck // ends with the test
	t.Cleanup(server.Stop)

	if err := pull(t.Context(), path, []string{"example.com/here:1", "example.com/new:1", "example.com/new:2"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"example.com/new:1", "example.com/new:2"}; !slices.Equal(service.pulled, want) {
		t.Errorf("pulled %q, want %q", service.pulled, want)
	}
	if err := pull(t.Context(), path, []string{"away.example.com/a:1"}); err == nil || !strings.Contains(err.Error(), "pull away.example.com/a:1") {
		t.Errorf("error is %v, want which image", err)
	}
}
