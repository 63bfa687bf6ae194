// Package lokitest starts a real Loki for a test, on loopback, with the configuration that clusters get.
package lokitest

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
)

// limit is for what takes a second on an idle machine.
const limit = 2 * time.Minute

// Server is a Loki that may be stopped and started again with what it holds.
type Server struct {
	// URL is its address, Port the last part of that.
	URL, Port string

	t       testing.TB
	command []string
	process *exec.Cmd
	ended   chan error
	said    *strings.Builder
}

// Start starts a Loki and waits until it is ready, or skips the test when its program is not built. It ends with the
// test. root is the path of the repository from the test's folder.
func Start(t testing.TB, root string) *Server {
	t.Helper()
	engines := os.Getenv("OMNIVISION_ENGINES")
	if engines == "" {
		t.Skip("OMNIVISION_ENGINES does not say where Loki's program is; make engines builds it")
	}
	text, err := os.ReadFile(filepath.Join(root, "omnivision-gitops/components/loki/manifests/loki.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	dir, port, grpcPort := t.TempDir(), strconv.Itoa(int(freeport.Port(t))), strconv.Itoa(int(freeport.Port(t)))
	replaced := strings.NewReplacer(": /loki", ": "+dir, "http_listen_port: 3100", "http_listen_port: "+port,
		"grpc_listen_port: 9095", "grpc_listen_port: "+grpcPort, "127.0.0.1:9095", "127.0.0.1:"+grpcPort)
	config := filepath.Join(dir, "loki.yaml")
	if err := os.WriteFile(config, []byte(replaced.Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: "http://127.0.0.1:" + port, Port: port, t: t, command: []string{
		filepath.Join(engines, "loki"), "-config.file=" + config, "-config.expand-env=true", "-server.http-listen-address=127.0.0.1", "-server.grpc-listen-address=127.0.0.1",
	}}
	t.Cleanup(s.Stop)
	s.Again()
	return s
}

// Again starts it after Stop, and waits until it is ready.
func (s *Server) Again() {
	s.t.Helper()
	s.said = &strings.Builder{}
	s.process = exec.Command(s.command[0], s.command[1:]...)
	s.process.Stdout, s.process.Stderr = s.said, s.said
	if err := s.process.Start(); err != nil {
		s.t.Fatalf("start Loki: %v", err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.process.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !s.ready(ctx) {
		select {
		case err := <-s.ended:
			s.process = nil
			s.t.Fatalf("Loki ended: %v\n%s", err, s.said.String())
		case <-ctx.Done():
			s.t.Fatalf("Loki was not ready within %s", limit)
		case <-tick.C:
		}
	}
}

func (s *Server) ready(ctx context.Context) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/ready", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// Stop ends it as the kubelet does.
func (s *Server) Stop() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		_ = s.process.Process.Kill()
		<-s.ended
	}
	s.process = nil
}
