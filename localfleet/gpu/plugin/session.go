package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginv1beta1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	kubeletSocket = "kubelet.sock"
	socketPrefix  = "gpu-substitute-"

	registerTimeout = 10 * time.Second
	firstBackoff    = 250 * time.Millisecond
	lastBackoff     = 15 * time.Second
	// checkInterval catches what inotify missed: an event queue that overflowed, a directory that was replaced.
	checkInterval = 2 * time.Second
	// streamGrace is how long a kubelet that is there may be without a ListAndWatch stream before it is told again.
	streamGrace = 5 * time.Second
	stopTimeout = 2 * time.Second
)

// errDirectoryGone ends Run: the directory that was mounted into this Pod is no longer the kubelet's, and only a new
// container gets the new one.
var errDirectoryGone = errors.New("the device-plugin directory was deleted; this container must be started anew to see the new one")

// Run keeps the devices registered with the kubelet until ctx is done: it waits for the kubelet, registers, and
// registers again whenever the kubelet is started anew or has let go of the devices.
func (p *Plugin) Run(ctx context.Context) error {
	defer p.setState("the plugin is stopped")
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the device-plugin directory: %w (raise fs.inotify.max_user_instances if there are too many watchers)", err)
	}
	defer watcher.Close()
	if err := watcher.Add(p.cfg.Dir); err != nil {
		return fmt.Errorf("watching the device-plugin directory %s: %w", p.cfg.Dir, err)
	}
	p.removeStaleSockets()
	backoff, waitingSince := firstBackoff, time.Now()
	for {
		if err := p.waitForKubelet(ctx, watcher, waitingSince); err != nil {
			return ignoreCanceled(ctx, err)
		}
		started := time.Now()
		err := p.session(ctx, watcher)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errDirectoryGone) {
			return err
		}
		if time.Since(started) > lastBackoff {
			backoff = firstBackoff
		}
		waitingSince = time.Now()
		p.setState(err.Error())
		if newKubelet := p.pause(ctx, watcher, backoff); newKubelet {
			backoff = firstBackoff
		} else {
			backoff = min(2*backoff, lastBackoff)
		}
	}
}

// pause waits before the next attempt, not longer than until a kubelet starts, which it reports.
func (p *Plugin) pause(ctx context.Context, watcher *fsnotify.Watcher, backoff time.Duration) (newKubelet bool) {
	over := time.After(backoff)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-over:
			return false
		case event := <-watcher.Events:
			if filepath.Base(event.Name) == kubeletSocket && event.Has(fsnotify.Create) {
				return true
			}
		}
	}
}

func ignoreCanceled(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// removeStaleSockets clears away what a killed predecessor left; the lock on the devices' state says that it is gone.
func (p *Plugin) removeStaleSockets() {
	stale, _ := filepath.Glob(filepath.Join(p.cfg.Dir, socketPrefix+"*.sock"))
	for _, socket := range stale {
		_ = os.Remove(socket)
	}
}

// waitForKubelet returns when the kubelet's socket is there.
func (p *Plugin) waitForKubelet(ctx context.Context, watcher *fsnotify.Watcher, since time.Time) error {
	socket := filepath.Join(p.cfg.Dir, kubeletSocket)
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	lastReport := time.Time{}
	for {
		if _, err := identify(socket); err == nil {
			return nil
		}
		if directoryGone(p.cfg.Dir) {
			return errDirectoryGone
		}
		if time.Since(lastReport) > 30*time.Second {
			// The wait has no end of its own, since a DaemonSet Pod has nothing better to do; it reports instead.
			p.setState(fmt.Sprintf("waiting for the kubelet to make %s (for %s)", socket, time.Since(since).Round(time.Second)))
			lastReport = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-watcher.Events:
		case <-watcher.Errors:
		case <-check.C:
		}
	}
}

// session serves and registers the devices once, and returns why that came to an end.
func (p *Plugin) session(ctx context.Context, watcher *fsnotify.Watcher) error {
	kubelet := filepath.Join(p.cfg.Dir, kubeletSocket)
	registeredWith, err := identify(kubelet)
	if err != nil {
		return fmt.Errorf("looking at the kubelet's socket: %w", err)
	}
	// Each session has a socket name of its own: the kubelet keeps plugins by socket path, and one that comes back
	// under the same path before the kubelet noticed that it was gone is refused, or taken for its predecessor.
	endpoint := socketPrefix + strings.ToLower(rand.Text()[:8]) + ".sock"
	listener, err := net.Listen("unix", filepath.Join(p.cfg.Dir, endpoint))
	if err != nil {
		return fmt.Errorf("serving the device plugin: %w", err)
	}
	ownSocket, err := identify(filepath.Join(p.cfg.Dir, endpoint))
	if err != nil {
		_ = listener.Close()
		return fmt.Errorf("serving the device plugin: %w", err)
	}
	stop := make(chan struct{})
	server, answers := grpc.NewServer(), &service{plugin: p, stop: stop, streams: make(chan int)}
	pluginv1beta1.RegisterDevicePluginServer(server, answers)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		close(stop)
		stopServer(server)
	}()

	// The kubelet calls back before it answers, so the streams are counted while the registration runs.
	registered := make(chan error, 1)
	go func() { registered <- p.register(ctx, kubelet, endpoint) }()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	streams, answered, withoutStream := 0, false, time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-served:
			return fmt.Errorf("serving the device plugin: %w", err)
		case err := <-registered:
			if err != nil {
				return err
			}
			answered, withoutStream = true, time.Now()
		case delta := <-answers.streams:
			streams += delta
			withoutStream = time.Now()
		case event := <-watcher.Events:
			if event.Name != kubelet && event.Name != filepath.Join(p.cfg.Dir, endpoint) {
				continue
			}
		case err := <-watcher.Errors:
			p.cfg.Log.Warn("watching the device-plugin directory", "error", err)
		case <-check.C:
		}
		if !answered {
			continue
		}
		if streams > 0 {
			p.setState("")
		} else if time.Since(withoutStream) > streamGrace {
			return errors.New("the kubelet does not watch the devices; registering again")
		}
		// A kubelet that starts removes every socket of the directory, ours too, and then makes its own.
		if now, err := identify(kubelet); err != nil {
			p.setState("the kubelet's socket is gone; waiting for the kubelet to start again")
			if directoryGone(p.cfg.Dir) {
				return errDirectoryGone
			}
		} else if now != registeredWith {
			return errors.New("the kubelet was started anew; registering again")
		}
		if now, err := identify(filepath.Join(p.cfg.Dir, endpoint)); err != nil || now != ownSocket {
			return errors.New("the plugin's socket was removed; registering again")
		}
	}
}

func (p *Plugin) register(ctx context.Context, kubelet, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dialling the kubelet at %s: %w", kubelet, err)
	}
	defer conn.Close()
	_, err = pluginv1beta1.NewRegistrationClient(conn).Register(ctx, &pluginv1beta1.RegisterRequest{
		Version:      pluginv1beta1.Version,
		Endpoint:     endpoint,
		ResourceName: Resource,
		Options:      &pluginv1beta1.DevicePluginOptions{GetPreferredAllocationAvailable: true},
	})
	if err != nil {
		return fmt.Errorf("registering %s with the kubelet at %s: %w", Resource, kubelet, err)
	}
	p.mu.Lock()
	p.registrations++
	p.mu.Unlock()
	p.cfg.Log.Info("registered with the kubelet", "resource", Resource, "endpoint", endpoint)
	return nil
}

func stopServer(server *grpc.Server) {
	done := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopTimeout):
		server.Stop()
		<-done
	}
}

// identity tells a socket from one that was made later under the same name.
type identity struct {
	device, inode uint64
	changed       syscall.Timespec
}

func identify(path string) (identity, error) {
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return identity{}, fmt.Errorf("%s is not a socket", path)
	}
	return identity{device: uint64(stat.Dev), inode: stat.Ino, changed: stat.Ctim}, nil
}

// directoryGone reports whether the directory has no name any more, which a bind mount of it does not hide.
func directoryGone(path string) bool {
	var stat syscall.Stat_t
	err := syscall.Stat(path, &stat)
	return errors.Is(err, syscall.ENOENT) || err == nil && stat.Nlink == 0
}
