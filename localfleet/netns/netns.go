// Package netns makes named network namespaces and runs code inside them.
//
// A namespace is named as iproute2 names it (a bind mount below /run/netns),
// so `ip netns exec NAME …` reaches it. Only the network is switched: mounts,
// cgroups and processes stay the machine's, which the kubelet depends on.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Root is where named namespaces are bound.
const Root = "/run/netns"

// Path returns the file that holds the namespace called name.
func Path(name string) string { return filepath.Join(Root, name) }

// Exists reports whether a namespace called name is bound. The file alone is
// none: it is made first, and stays where a run was killed before binding it.
func Exists(name string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(Path(name), &stat) == nil && int64(stat.Type) == unix.NSFS_MAGIC
}

// Ensure makes the namespace called name, with its loopback device up, unless
// it is there already.
func Ensure(name string) error {
	if Exists(name) {
		return Do(name, loopbackUp) // a killed run may have come no further than the name
	}
	// A file without a namespace on it is what a killed run leaves behind.
	if err := os.Remove(Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale namespace file %s: %w", Path(name), err)
	}
	if err := create(name); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return Do(name, loopbackUp)
}

// create makes the namespace on a thread of its own, since making one also
// moves the calling thread into it.
func create(name string) error {
	return OnThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		return ns.Close()
	})
}

// Delete unbinds the namespace called name; the kernel frees it, and every
// device in it, when its last process ends. A missing one is no error.
func Delete(name string) error {
	err := unix.Unmount(Path(name), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// List returns the names of the bound namespaces that begin with prefix, sorted.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix) {
			names = append(names, entry.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Do runs f on a thread that is inside the namespace called name, and waits
// for it. The empty name is the caller's own namespace. Goroutines that f
// starts are not in the namespace; sockets that f opens stay in it.
func Do(name string, f func() error) error {
	if name == "" {
		return f()
	}
	return OnThread(func() error {
		if err := Enter(name); err != nil {
			return err
		}
		return f()
	})
}

// Enter moves the calling thread, which must be one of OnThread, into the
// namespace called name; the empty name is where it is already.
func Enter(name string) error {
	if name == "" {
		return nil
	}
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// OnThread runs f on a thread that ends with it: what f changes of the thread
// (namespaces, control group) is never put back, so the thread must not serve
// another goroutine. Processes that f starts inherit the thread's settings.
func OnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		result <- f()
	}()
	return <-result
}

// Listen opens a listener inside the namespace called name.
func Listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := Do(name, func() error {
		var config net.ListenConfig
		l, err := config.Listen(ctx, network, address)
		listener = l
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in namespace %q: %w", address, name, err)
	}
	return listener, nil
}

// Dialer returns a dial function whose connections are made inside the
// namespace called name. Addresses must be literal: a name would be looked up
// by another thread, outside the namespace.
func Dialer(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("dial %s in namespace %q: %w", address, name, err)
		}
		if net.ParseIP(host) == nil {
			return nil, fmt.Errorf("dial %s in namespace %q: not a literal address", address, name)
		}
		var conn net.Conn
		err = Do(name, func() error {
			// A connection to one literal address is dialled by this very goroutine.
			var dialer net.Dialer
			c, err := dialer.DialContext(ctx, network, address)
			conn = c
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("dial %s in namespace %q: %w", address, name, err)
		}
		return conn, nil
	}
}
