package server

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ListenShared listens on a TCP port that other processes of the same network namespace and the same user may have
// open as well (SO_REUSEPORT, socket(7)). The kernel gives each new connection to one of them. When one is gone, however
// it went, the others get them all, and no caller is refused.
func ListenShared(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		if err != nil {
			return err
		}
		return failed
	}}
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("sharing %s: %w", address, err)
	}
	return listener, nil
}

// SharedPort is a listener as ListenShared's that is opened only when its process can answer: until then the kernel gives
// all connections to the processes that can.
type SharedPort struct {
	address  *net.TCPAddr
	prepared func() error

	ending context.Context
	end    context.CancelFunc

	mu     sync.Mutex
	opened net.Listener // nil before
}

// NewSharedPort returns a listener on an address that is opened by the first Accept, once prepared returns nil.
func NewSharedPort(address string, prepared func() error) (*SharedPort, error) {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("reading the address %q: %w", address, err)
	}
	p := &SharedPort{address: resolved, prepared: prepared}
	p.ending, p.end = context.WithCancel(context.Background())
	return p, nil
}

// Ready says why no connection comes here yet; nil once the port is open.
func (p *SharedPort) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened == nil {
		return fmt.Errorf("%s is not open yet", p.address)
	}
	return nil
}

// Accept implements net.Listener.
func (p *SharedPort) Accept() (net.Conn, error) {
	listener, err := p.open()
	if err != nil {
		return nil, err
	}
	return listener.Accept()
}

func (p *SharedPort) open() (net.Listener, error) {
	if p.Ready() == nil {
		return p.opened, nil // which nobody changes any more
	}
	if err := p.wait(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending.Err() != nil {
		return nil, net.ErrClosed
	}
	listener, err := ListenShared(p.ending, p.address.String())
	if err != nil {
		return nil, err
	}
	p.opened = listener
	return listener, nil
}

// preparedEvery is how often it is asked whether the process can answer by now.
const preparedEvery = 50 * time.Millisecond

func (p *SharedPort) wait() error {
	tick := time.NewTicker(preparedEvery)
	defer tick.Stop()
	for p.prepared() != nil {
		select {
		case <-p.ending.Done():
			return net.ErrClosed
		case <-tick.C:
		}
	}
	return nil
}

// Close implements net.Listener.
func (p *SharedPort) Close() error {
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened == nil {
		return nil
	}
	return p.opened.Close()
}

// Addr implements net.Listener.
func (p *SharedPort) Addr() net.Addr { return p.address }
