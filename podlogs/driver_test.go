package podlogs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registerv1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const apart = "PODLOGS_TEST_IN_A_MOUNT_NAMESPACE"

// As root the tests run in a mount namespace of their own: no mount of theirs is to be seen outside, or outlives them.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(apart) == "" {
		os.Exit(runApart())
	}
	os.Exit(m.Run())
}

func runApart() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), apart+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "in a mount namespace of its own:", err)
		return 1
	}
	return 0
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// machine is a node as the driver sees it, and the kubelet's side of the two sockets.
type machine struct {
	t        *testing.T
	cfg      Config
	driver   *Driver
	registry *prometheus.Registry
	node     csi.NodeClient
	identity csi.IdentityClient
	kubelet  registerv1.RegistrationClient
	stop     func()
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	// Paths of sockets are at most 107 bytes long, and the names of tests make temporary directories longer.
	dir, err := os.MkdirTemp("", "podlogs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := Config{NodeName: "gpu-0", LogDir: filepath.Join(dir, "logs"), KubeletDir: filepath.Join(dir, "kubelet"), PluginDir: filepath.Join(dir, "plugin"), Version: "1.2.3"}
	for _, d := range []string{cfg.LogDir, filepath.Join(cfg.KubeletDir, "pods"), filepath.Join(cfg.KubeletDir, "plugins_registry")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := &machine{t: t, cfg: cfg}
	m.start()
	t.Cleanup(func() { m.stop() })
	return m
}

// start runs a driver and waits until it answers.
func (m *machine) start() {
	m.t.Helper()
	m.registry = prometheus.NewRegistry()
	driver, err := New(m.cfg, m.registry)
	if err != nil {
		m.t.Fatal(err)
	}
	m.driver = driver
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(ctx) }()
	endpoint, registration := dial(m.t, driver.socket()), dial(m.t, driver.registration())
	m.node, m.identity, m.kubelet = csi.NewNodeClient(endpoint), csi.NewIdentityClient(endpoint), registerv1.NewRegistrationClient(registration)
	m.stop = func() {
		m.stop = func() {}
		_ = endpoint.Close()
		_ = registration.Close()
		cancel()
		if err := <-ended; err != nil {
			m.t.Errorf("the driver ended with %v", err)
		}
	}
	deadline, done := context.WithTimeout(context.Background(), 30*time.Second)
	defer done()
	for _, call := range []func() error{
		func() error {
			_, err := m.identity.Probe(deadline, &csi.ProbeRequest{}, grpc.WaitForReady(true))
			return err
		},
		func() error {
			_, err := m.kubelet.GetInfo(deadline, &registerv1.InfoRequest{}, grpc.WaitForReady(true))
			return err
		},
	} {
		if err := call(); err != nil {
			m.t.Fatalf("the driver does not answer: %v", err)
		}
	}
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (m *machine) pods() string   { return filepath.Join(m.cfg.KubeletDir, "pods") }
func (m *machine) target() string { return targetPath(m.pods(), uid) }
func (m *machine) logs() string   { return filepath.Join(m.cfg.LogDir, "omnivision_worker-0_"+uid) }

// request is the kubelet's, which makes the directory above the target.
func (m *machine) request() *csi.NodePublishVolumeRequest {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.target()), 0o750); err != nil {
		m.t.Fatal(err)
	}
	return publishRequest(m.pods())
}

func (m *machine) publish() error {
	_, err := m.node.NodePublishVolume(m.t.Context(), m.request())
	return err
}

func (m *machine) unpublish() error {
	_, err := m.node.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: "csi-0123", TargetPath: m.target()})
	return err
}

// mounts counts the mounts at the target, stacked ones too.
func (m *machine) mounts() (count int) {
	m.t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Fields(line)[4] == m.target() {
			count++
		}
	}
	return count
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestKubeletRegistersTheDriver(t *testing.T) {
	m := newMachine(t)
	info, err := m.kubelet.GetInfo(t.Context(), &registerv1.InfoRequest{})
	must(t, err)
	if info.GetType() != registerv1.CSIPlugin || info.GetName() != DriverName || info.GetEndpoint() != m.driver.socket() || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("plugin info %v", info)
	}
	if m.driver.Ready() == nil {
		t.Error("ready before the kubelet registered it")
	}
	for _, said := range []struct {
		status *registerv1.RegistrationStatus
		ready  bool
	}{
		{&registerv1.RegistrationStatus{PluginRegistered: true}, true},
		{&registerv1.RegistrationStatus{Error: "not today"}, false},
		{&registerv1.RegistrationStatus{PluginRegistered: true}, true},
	} {
		_, err := m.kubelet.NotifyRegistrationStatus(t.Context(), said.status)
		must(t, err)
		if ready := m.driver.Ready() == nil; ready != said.ready || (testutil.ToFloat64(m.driver.metrics.registered) == 1) != said.ready {
			t.Errorf("after %v: ready %t (%v)", said.status, ready, m.driver.Ready())
		}
	}
	node, err := m.node.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	must(t, err)
	plugin, err := m.identity.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	must(t, err)
	if node.GetNodeId() != "gpu-0" || plugin.GetName() != DriverName || plugin.GetVendorVersion() != "1.2.3" {
		t.Errorf("node %v, plugin %v", node, plugin)
	}
	if info, err := os.Stat(m.driver.socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v (%v): others could mount with it", info.Mode(), err)
	}
}

func TestRefusalsReachTheKubeletAndTouchNothing(t *testing.T) {
	m := newMachine(t)
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			r := m.request()
			c.change(r)
			_, err := m.node.NodePublishVolume(t.Context(), r)
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("error %v, want InvalidArgument", err)
			}
		})
	}
	entries, err := os.ReadDir(m.cfg.LogDir)
	must(t, err)
	if len(entries) > 0 || m.mounts() > 0 {
		t.Errorf("something was made: %v, %d mounts", entries, m.mounts())
	}
	if got := testutil.ToFloat64(m.driver.metrics.calls.WithLabelValues("publish", "InvalidArgument")); got != float64(len(refusals)) {
		t.Errorf("%v refusals counted, want %d", got, len(refusals))
	}
	for _, r := range []*csi.NodeUnpublishVolumeRequest{{TargetPath: m.target()}, {VolumeId: "x"}, {VolumeId: "x", TargetPath: "/etc"}, {VolumeId: "x", TargetPath: m.cfg.KubeletDir + "/pods/../../logs"}} {
		if _, err := m.node.NodeUnpublishVolume(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("unpublish %v: %v, want InvalidArgument", r, err)
		}
	}
}

func TestPodSeesItsOwnLogsReadOnly(t *testing.T) {
	needsRoot(t)
	m := newMachine(t)
	must(t, m.publish()) // before the kubelet has made the log directory
	must(t, os.MkdirAll(filepath.Join(m.logs(), "main"), 0o755))
	must(t, os.WriteFile(filepath.Join(m.logs(), "main/0.log"), []byte("line\n"), 0o640))
	if text, err := os.ReadFile(filepath.Join(m.target(), "main/0.log")); err != nil || string(text) != "line\n" {
		t.Fatalf("read %q, %v", text, err)
	}
	if err := os.WriteFile(filepath.Join(m.target(), "main/0.log"), []byte("forged"), 0o640); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a log: %v, want a read-only file system", err)
	}
	if err := os.Mkdir(filepath.Join(m.target(), "new"), 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("making a directory: %v, want a read-only file system", err)
	}
	var fs unix.Statfs_t
	must(t, unix.Statfs(m.target(), &fs))
	if fs.Flags&statfsFlags != statfsFlags {
		t.Errorf("flags %#x lack one of ro, nosuid, nodev, noexec", fs.Flags)
	}
	if info, err := os.Stat(m.logs()); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the log directory is %v (%v), want as the kubelet makes it", info.Mode(), err)
	}
}

func TestPublishAndUnpublishCanBeRepeated(t *testing.T) {
	needsRoot(t)
	m := newMachine(t)
	must(t, m.unpublish()) // of what never was
	for range 3 {
		must(t, m.publish())
	}
	if m.mounts() != 1 {
		t.Errorf("%d mounts after three calls", m.mounts())
	}
	must(t, os.WriteFile(filepath.Join(m.logs(), "0.log"), nil, 0o640))
	for range 3 {
		must(t, m.unpublish())
	}
	if m.mounts() != 0 {
		t.Errorf("%d mounts are left", m.mounts())
	}
	if _, err := os.Lstat(m.target()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.logs(), "0.log")); err != nil {
		t.Errorf("the logs went with the mount: %v", err)
	}
}

// What earlier drivers left is put right by the next call of the kubelet.
func TestNextDriverGoesOnWhereAKilledOneStopped(t *testing.T) {
	needsRoot(t)
	left := map[string]func(t *testing.T, m *machine){
		"a mount point without a mount": func(t *testing.T, m *machine) { must(t, os.Mkdir(m.target(), 0o750)) },
		"a mount of something else": func(t *testing.T, m *machine) {
			must(t, os.Mkdir(m.target(), 0o750))
			must(t, unix.Mount(t.TempDir(), m.target(), "", unix.MS_BIND, ""))
		},
		"a mount that can be written to": func(t *testing.T, m *machine) {
			must(t, os.Mkdir(m.target(), 0o750))
			must(t, os.Mkdir(m.logs(), 0o755))
			must(t, unix.Mount(m.logs(), m.target(), "", unix.MS_BIND, ""))
		},
		"a mount of a log directory that was removed": func(t *testing.T, m *machine) {
			must(t, m.publish())
			must(t, os.Remove(m.logs()))
		},
		"two mounts, one on the other": func(t *testing.T, m *machine) {
			must(t, os.Mkdir(m.target(), 0o750))
			for range 2 {
				must(t, unix.Mount(t.TempDir(), m.target(), "", unix.MS_BIND, ""))
			}
		},
	}
	for name, leave := range left {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.request()
			leave(t, m)
			m.stop()
			// A killed driver leaves its sockets, which are now only names.
			must(t, os.WriteFile(m.driver.socket(), nil, 0o600))
			m.start()
			must(t, m.publish())
			must(t, os.WriteFile(filepath.Join(m.logs(), "0.log"), []byte("x"), 0o640))
			if _, err := os.ReadFile(filepath.Join(m.target(), "0.log")); err != nil || m.mounts() != 1 {
				t.Errorf("%d mounts, reading through them: %v", m.mounts(), err)
			}
			if err := os.WriteFile(filepath.Join(m.target(), "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing: %v", err)
			}
			must(t, m.unpublish())
			if m.mounts() != 0 {
				t.Errorf("%d mounts are left", m.mounts())
			}
		})
	}
}

func TestRunningPodsKeepTheirLogsWhileTheDriverIsExchanged(t *testing.T) {
	needsRoot(t)
	m := newMachine(t)
	must(t, m.publish())
	m.stop()
	must(t, os.WriteFile(filepath.Join(m.logs(), "0.log"), nil, 0o640))
	if _, err := os.Stat(filepath.Join(m.target(), "0.log")); err != nil {
		t.Errorf("without a driver: %v", err)
	}
	m.start()
	must(t, m.publish())
	must(t, m.unpublish())
}

// A symbolic link, wherever it stands, is never followed.
func TestLinksAreNotFollowed(t *testing.T) {
	needsRoot(t)
	links := map[string]func(t *testing.T, m *machine, secret string){
		"the log directory": func(t *testing.T, m *machine, secret string) { must(t, os.Symlink(secret, m.logs())) },
		"the mount point":   func(t *testing.T, m *machine, secret string) { must(t, os.Symlink(secret, m.target())) },
		"the volume": func(t *testing.T, m *machine, secret string) {
			volume := filepath.Dir(m.target())
			must(t, os.Remove(volume))
			must(t, os.Symlink(secret, volume))
		},
		"the Pod's directory": func(t *testing.T, m *machine, secret string) {
			pod := filepath.Join(m.pods(), uid)
			must(t, os.RemoveAll(pod))
			must(t, os.MkdirAll(filepath.Join(secret, "volumes/kubernetes.io~csi/pod-logs"), 0o755))
			must(t, os.Symlink(secret, pod))
		},
	}
	for name, link := range links {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			r, secret := m.request(), t.TempDir()
			link(t, m, secret)
			if _, err := m.node.NodePublishVolume(t.Context(), r); status.Code(err) != codes.Internal {
				t.Errorf("published through a link: %v", err)
			}
			_ = m.unpublish()
			if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), secret) {
				t.Error("something is mounted at the link's end")
			}
		})
	}
}

func TestRemovedSocketEndsTheDriver(t *testing.T) {
	m := newMachine(t)
	m.stop()
	driver, err := New(m.cfg, nil)
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(t.Context()) }()
	conn := dial(t, driver.registration())
	defer conn.Close()
	_, err = registerv1.NewRegistrationClient(conn).GetInfo(t.Context(), &registerv1.InfoRequest{}, grpc.WaitForReady(true))
	must(t, err)
	must(t, os.Remove(driver.registration()))
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "removed") {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("nobody noticed that the kubelet cannot find the driver")
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		says string
	}{
		"no node":           {Config{}, "--node"},
		"no log directory":  {Config{NodeName: "n", LogDir: filepath.Join(t.TempDir(), "none")}, "--log-dir"},
		"a relative folder": {Config{NodeName: "n", LogDir: "logs"}, "absolute"},
		"a file":            {Config{NodeName: "n", LogDir: "/proc/self/status"}, "not a directory"},
	} {
		if _, err := New(c.cfg, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
		}
	}
}
