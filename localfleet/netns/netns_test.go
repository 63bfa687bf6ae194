package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

// testName is a namespace that belongs to this test run alone.
func testName(t *testing.T, suffix string) string {
	t.Helper()
	name := fmt.Sprintf("ovtest-%d-%s", os.Getpid(), suffix)
	t.Cleanup(func() {
		if err := Delete(name); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return name
}

func TestEnsureIsIdempotentAndReplacesAStaleFile(t *testing.T) {
	requireRoot(t)
	name := testName(t, "a")
	if err := os.MkdirAll(Root, 0o755); err != nil {
		t.Fatal(err)
	}
	// A run that was killed between making the file and binding the namespace.
	if err := os.WriteFile(Path(name), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if Exists(name) {
		t.Fatal("a file counts as a namespace")
	}
	for range 2 {
		if err := Ensure(name); err != nil {
			t.Fatal(err)
		}
		if !Exists(name) {
			t.Fatal("the namespace is not there")
		}
	}
	if err := Do(name, func() error { return nil }); err != nil {
		t.Fatalf("the namespace cannot be entered: %v", err)
	}
	names, err := List("ovtest-")
	if err != nil || !strings.Contains(strings.Join(names, " "), name) {
		t.Fatalf("List = %v, %v; want it to name %s", names, err, name)
	}
	if err := Delete(name); err != nil {
		t.Fatal(err)
	}
	if Exists(name) {
		t.Fatal("the namespace is still there")
	}
}

func TestTwoNamespacesTalkOverACableAndNobodyElseHears(t *testing.T) {
	requireRoot(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	hub, node := testName(t, "hub"), testName(t, "node")
	for _, name := range []string{hub, node} {
		if err := Ensure(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := EnsureBridge(hub, "br", "10.99.0.1/24"); err != nil {
		t.Fatal(err)
	}
	cable := Cable{
		HubNS: hub, Bridge: "br", Port: "ovtestport", NodeNS: node, Device: "eth0",
		Address: "10.99.0.2/24", Gateway: net.IPv4(10, 99, 0, 1),
	}
	for range 2 { // the second finds it made
		if err := EnsureCable(cable); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := Listen(ctx, node, "tcp", "10.99.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // end of test
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = conn.Write([]byte("hello"))
			_ = conn.Close()
		}
	}()
	conn, err := Dialer(hub)(ctx, "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // end of test
	buffer := make([]byte, 5)
	if _, err := conn.Read(buffer); err != nil || string(buffer) != "hello" {
		t.Fatalf("read %q, %v", buffer, err)
	}
	if _, err := net.DialTimeout("tcp", listener.Addr().String(), 300*time.Millisecond); err == nil {
		t.Error("the machine's own network reaches into the namespace")
	}
	if interfaces, err := net.Interfaces(); err == nil {
		for _, i := range interfaces {
			if strings.HasPrefix(i.Name, "ovtest") {
				t.Errorf("the machine has a device %s", i.Name)
			}
		}
	}
}

func TestDialerRefusesNames(t *testing.T) {
	_, err := Dialer("ovtest-none")(context.Background(), "tcp", "example.com:80")
	if err == nil || !strings.Contains(err.Error(), "not a literal address") {
		t.Fatalf("err = %v", err)
	}
}
