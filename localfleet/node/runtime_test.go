package node

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// slowRuntime listens before it can answer, as containerd does.
type slowRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	initialized atomic.Bool
}

func (r *slowRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if !r.initialized.Load() {
		return nil, status.Error(codes.Unknown, "server is not initialized yet")
	}
	return &runtimeapi.VersionResponse{RuntimeName: "containerd"}, nil
}

func TestARuntimeThatListensIsNotYetReady(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	if err := askRuntime(t.Context(), socket); err == nil {
		t.Error("a runtime without a socket is called ready")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	runtime := &slowRuntime{}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, runtime)
	go server.Serve(listener) //nolint:errcheck // ends with the test
	t.Cleanup(server.Stop)

	if err := askRuntime(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "not initialized") {
		t.Errorf("a runtime that only listens: %v, want the reason", err)
	}
	runtime.initialized.Store(true)
	if err := askRuntime(t.Context(), socket); err != nil {
		t.Errorf("a runtime that answers: %v", err)
	}
}
