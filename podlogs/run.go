package podlogs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registerv1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	socketName = "csi.sock"
	// checkInterval is how soon a socket that somebody removed is missed.
	checkInterval = 2 * time.Second
	stopTimeout   = 5 * time.Second
)

// socket is the driver's endpoint, which the kubelet dials.
func (d *Driver) socket() string { return filepath.Join(d.cfg.PluginDir, socketName) }

// registration is the socket that the kubelet finds in the directory that it watches. It finds it again when it is
// started anew, so nothing has to be done then.
func (d *Driver) registration() string {
	return filepath.Join(d.cfg.RegistryDir, DriverName+"-reg.sock")
}

// Run serves until ctx is done, and then lets calls that have begun come to their end. Mounts stay: running Pods go on
// reading while the driver is exchanged. An error means that the sockets cannot be made or were removed; a new process
// makes them anew.
func (d *Driver) Run(ctx context.Context) error {
	if err := os.MkdirAll(d.cfg.PluginDir, 0o750); err != nil {
		return fmt.Errorf("make the driver's directory: %w", err)
	}
	endpoint, err := listen(d.socket())
	if err != nil {
		return err
	}
	registry, err := listen(d.registration())
	if err != nil {
		_ = endpoint.Close()
		return err
	}
	driver, registrar := grpc.NewServer(), grpc.NewServer()
	csi.RegisterIdentityServer(driver, identity{driver: d})
	csi.RegisterNodeServer(driver, node{driver: d})
	registerv1.RegisterRegistrationServer(registrar, registrationService{driver: d})
	ended := make(chan error, 2)
	go func() { ended <- driver.Serve(endpoint) }()
	go func() { ended <- registrar.Serve(registry) }()
	defer stop(driver)
	defer stop(registrar) // first: a kubelet is not to find a driver that is about to go
	d.cfg.Log.Info("serving", "driver", DriverName, "node", d.cfg.NodeName, "socket", d.socket(), "logs", d.cfg.LogDir)
	return d.watch(ctx, ended)
}

// watch returns when the driver can no longer be reached, or need not be; then it takes its sockets away.
func (d *Driver) watch(ctx context.Context, ended <-chan error) error {
	var sockets [2]fileIdentity
	for i, path := range []string{d.socket(), d.registration()} {
		var err error
		if sockets[i], err = identify(path); err != nil {
			return err
		}
		defer func() {
			// A successor may have its own there by now.
			if now, err := identify(path); err == nil && now == sockets[i] {
				_ = os.Remove(path)
			}
		}()
	}
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fmt.Errorf("serving the kubelet: %w", err)
		case <-check.C:
		}
		for i, path := range []string{d.socket(), d.registration()} {
			if now, err := identify(path); err != nil || now != sockets[i] {
				return fmt.Errorf("socket %s was removed or replaced: is a second driver running on this node?", path)
			}
		}
	}
}

// listen makes a socket that root alone may use, in place of one that a predecessor left.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of an earlier driver: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the kubelet: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("protect the socket: %w", err)
	}
	// A successor may have its socket there by the time that this listener closes.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	return listener, nil
}

func stop(server *grpc.Server) {
	timer := time.AfterFunc(stopTimeout, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

// fileIdentity tells a socket from one that was made later under the same name.
type fileIdentity struct {
	device, inode uint64
	changed       syscall.Timespec
}

func identify(path string) (fileIdentity, error) {
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		return fileIdentity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileIdentity{device: stat.Dev, inode: stat.Ino, changed: stat.Ctim}, nil
}

// registrationService answers the kubelet's plugin watcher.
type registrationService struct {
	registerv1.UnimplementedRegistrationServer
	driver *Driver
}

func (s registrationService) GetInfo(context.Context, *registerv1.InfoRequest) (*registerv1.PluginInfo, error) {
	return &registerv1.PluginInfo{
		Type: registerv1.CSIPlugin, Name: DriverName, Endpoint: s.driver.socket(), SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus keeps what the kubelet says; the kubelet tries again by itself.
func (s registrationService) NotifyRegistrationStatus(_ context.Context, r *registerv1.RegistrationStatus) (*registerv1.RegistrationStatusResponse, error) {
	if r.GetPluginRegistered() {
		s.driver.setState(nil)
		s.driver.cfg.Log.Info("registered with the kubelet", "driver", DriverName)
	} else {
		s.driver.setState(fmt.Errorf("the kubelet refuses the driver: %s", r.GetError()))
		s.driver.cfg.Log.Warn("the kubelet refuses the driver", "error", r.GetError())
	}
	return &registerv1.RegistrationStatusResponse{}, nil
}
