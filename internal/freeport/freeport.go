// Package freeport finds ports of the loopback interface for servers under test that are told their address before they
// listen, as a daemon in a process of its own is.
//
// A listener at port 0 that is closed again does not do: its port is of the range from which the kernel gives every
// outgoing connection one (ip(7), ip_local_port_range, from 32768), so that until the server listens anybody's connection
// may take it. These are below that range, and one test at a time has a port, whichever process it runs in.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

const (
	first = 20000
	last  = 30000 // where the ports of Kubernetes' Services begin
	tries = 1000
)

// Address is one of 127.0.0.1 on which nobody listens. It is the test's until it ends.
func Address(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", Port(t))
}

// Port is that of an Address.
func Port(t testing.TB) uint16 {
	t.Helper()
	port, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Errorf("giving port %d back: %v", port, err)
		}
	})
	return port
}

// Reserve finds a port for what outlives a test; release gives it back, as the end of the process does.
func Reserve() (port uint16, release func() error, err error) {
	for range tries {
		port = first + rand.N[uint16](last-first)
		mark, taken := reserve(port)
		if taken == nil {
			return port, mark.Close, nil
		}
		err = taken
	}
	return 0, nil, fmt.Errorf("no free port of 127.0.0.1 after %d tries: %w", tries, err)
}

// reserve marks a port by an abstract socket, which ends with its process at the latest, and looks whether anybody listens there.
func reserve(port uint16) (net.Listener, error) {
	mark, err := net.Listen("unix", fmt.Sprintf("@omnivision-port-%d", port))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		_ = mark.Close() // it says less than why the port is taken
		return nil, err
	}
	if err := l.Close(); err != nil {
		_ = mark.Close()
		return nil, err
	}
	return mark, nil
}
