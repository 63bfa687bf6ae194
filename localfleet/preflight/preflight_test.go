package preflight

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// refused wants the check to fail with one error that says what is wrong and
// what to do about it.
func refused(t *testing.T, check Check, what, remedy string) {
	t.Helper()
	results := Run(t.Context(), []Check{check})
	if r := results[0]; r.OK || !strings.Contains(r.Detail, what) || !strings.Contains(r.Remedy, remedy) {
		t.Errorf("%s: %+v, want it refused with %q and the remedy %q", check.Name, r, what, remedy)
	}
	err := Failed(results)
	if err == nil {
		t.Fatalf("%s: no error", check.Name)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 3 { // a headline, what is wrong, what to do
		t.Errorf("%s: the error has %d lines:\n%v", check.Name, len(lines), err)
	}
}

func accepted(t *testing.T, check Check) {
	t.Helper()
	if r := Run(t.Context(), []Check{check})[0]; !r.OK || r.Detail == "" || r.Remedy != "" {
		t.Errorf("%s: %+v, want it accepted", check.Name, r)
	}
}

func TestWithoutRootTheRemedyIsSudo(t *testing.T) {
	refused(t, Root(1000), "not root", "sudo")
	accepted(t, Root(0))
}

func TestEachKernelFeatureThatIsMissingIsNamed(t *testing.T) {
	missing := func(func() error) error { return unix.EPERM }
	want := map[string]string{
		"kernel: network namespaces":  "CONFIG_NET_NS",
		"kernel: mount namespaces":    "CONFIG_NAMESPACES",
		"kernel: overlay file system": "modprobe overlay",
		"kernel: control groups":      "/sys/fs/cgroup",
	}
	for _, check := range Kernel(missing) {
		feature := strings.TrimPrefix(check.Name, "kernel: ")
		refused(t, check, feature+" does not work: operation not permitted", want[check.Name])
		delete(want, check.Name)
	}
	if len(want) > 0 {
		t.Errorf("not asked for: %v", want)
	}
	for _, check := range Kernel(func(func() error) error { return nil }) {
		accepted(t, check)
	}
}

func TestOverlayIsLookedForAmongTheFileSystems(t *testing.T) {
	list := write(t, "nodev\tsysfs\nnodev\toverlayfs\n\text4\n")
	if err := inFile(list, "ext4"); err != nil {
		t.Error(err)
	}
	if err := inFile(list, "overlay"); err == nil || !strings.Contains(err.Error(), list) {
		t.Errorf("err = %v, want one that names %s", err, list)
	}
}

func TestControlGroupsOfEitherVersionWillDo(t *testing.T) {
	second := t.TempDir()
	touch(t, filepath.Join(second, "cgroup.controllers"))
	if err := cgroups(second); err != nil {
		t.Error(err)
	}
	first := t.TempDir()
	for _, hierarchy := range []string{"pids", "memory", "cpu", "devices", "freezer"} {
		touch(t, filepath.Join(first, hierarchy, "tasks"))
	}
	if err := cgroups(first); err == nil || !strings.Contains(err.Error(), "cpuset hierarchy") {
		t.Errorf("err = %v, want one that names cpuset", err)
	}
	touch(t, filepath.Join(first, "cpuset", "tasks"))
	if err := cgroups(first); err != nil {
		t.Error(err)
	}
}

func TestThePacketFilterIsTriedInANetworkOfItsOwn(t *testing.T) {
	refused(t, NFTables(func(func() error) error { return unix.EPERM }), "dnat and masquerade is refused: operation not permitted", "nf_tables")
	accepted(t, NFTables(func(func() error) error { return nil }))
}

func TestATakenPortIsNamed(t *testing.T) {
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close() //nolint:errcheck // end of test
	port := holder.Addr().(*net.TCPAddr).Port
	refused(t, Ports([]int{0, port}), "somebody else listens on 127.0.0.1, port "+strconv.Itoa(port), "--port-base")
	accepted(t, Ports([]int{0}))
	accepted(t, Ports(nil))
}

func TestAPortThatIsNoneIsNotSaidToBeTaken(t *testing.T) {
	refused(t, Ports([]int{70000}), "port 70000 cannot be listened on", "--port-base")
}

func TestAFullDiskIsNamedByAFolderThatExists(t *testing.T) {
	dir := t.TempDir()
	later := filepath.Join(dir, "not", "yet")
	refused(t, Disk("state", later, 1<<62), "GB free at "+dir+", 4611686018.4 GB needed", "--state")
	accepted(t, Disk("state", later, 1))
	accepted(t, Disk("state", "relative/and/not/there", 1))
}

func TestTooLittleMemoryIsSaid(t *testing.T) {
	meminfo := write(t, "MemTotal:       8000000 kB\nMemAvailable:   2000000 kB\n")
	refused(t, memory(meminfo, 5e9), "2.0 GB available, 5.0 GB needed", "more memory")
	accepted(t, memory(meminfo, 2e9))
	accepted(t, Memory(1))
}

func TestUnknownMemoryIsNoReasonToGuess(t *testing.T) {
	for name, content := range map[string]string{"no line": "MemTotal: 8 kB\n", "no number": "MemAvailable: much kB\n", "nothing": ""} {
		t.Run(name, func(t *testing.T) { refused(t, memory(write(t, content), 1), "MemAvailable", "meminfo") })
	}
	refused(t, memory(filepath.Join(t.TempDir(), "none"), 1), "no such file", "/proc")
}

func TestMissingPackagesAreNamedOnceWithTheCommandThatInstallsThem(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	header := write(t, "a file that is no program")
	there := map[string]string{program: "here", header: "headers"}
	accepted(t, Packages(there))
	refused(t, Packages(map[string]string{
		program: "here", "ovtest-no-runc": "runc", "ovtest-no-containerd": "containerd", "/none/containerd-shim": "containerd",
	}), "not installed: containerd runc", "apt-get install --no-install-recommends containerd runc")
}

// fakeApt puts an apt-get first in PATH that prints and fails as told, and
// returns the file that it notes its arguments in.
func fakeApt(t *testing.T, update, install string) string {
	t.Helper()
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho \"$DEBIAN_FRONTEND $*\" >> " + calls + "\ncase $1 in update) " + update + ";; install) " + install + ";; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return calls
}

func TestAnUnreachableMirrorIsNamedWithWhatToDo(t *testing.T) {
	const fetch = "W: Failed to fetch http://deb.example.org/debian/dists/bookworm/InRelease  Could not resolve 'deb.example.org'"
	cases := map[string]struct{ update, install string }{
		// What apt-get does when it has older lists: it complains and goes on.
		"lists are kept":     {"echo \"" + fetch + "\"", "echo reading; echo 'E: Unable to locate package runc' >&2; exit 100"},
		"lists are refused":  {"echo \"" + fetch + "\"; echo 'E: Some index files failed to download.'; exit 100", "exit 0"},
		"download is broken": {"exit 0", "echo \"E: Failed to fetch http://deb.example.org/runc.deb\"; exit 100"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fakeApt(t, c.update, c.install)
			err := Install(t.Context(), []string{"runc", "nftables"})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range []string{"install the packages runc nftables", "deb.example.org", "exit status 100", "check that a package mirror can be reached"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in the error:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "reading") {
				t.Errorf("the error has more than the complaints:\n%v", err)
			}
		})
	}
}

func TestAHeldLockIsNotBlamedOnTheMirror(t *testing.T) {
	fakeApt(t, "exit 0", "echo 'E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 12'; exit 100")
	err := Install(t.Context(), []string{"runc"})
	if err == nil || !strings.Contains(err.Error(), "wait until it ends") || strings.Contains(err.Error(), "mirror") {
		t.Errorf("err = %v", err)
	}
}

func TestWhatAptGetSaysLastIsShownWhenItComplainsOfNothing(t *testing.T) {
	fakeApt(t, "exit 0", "for n in 1 2 3 4 5 6 7; do echo line $n; done; exit 1")
	err := Install(t.Context(), []string{"runc"})
	if err == nil || !strings.Contains(err.Error(), "line 7") || strings.Contains(err.Error(), "line 2") {
		t.Errorf("err = %v", err)
	}
}

func TestPackagesAreInstalledWithoutQuestions(t *testing.T) {
	calls := fakeApt(t, "exit 0", "exit 0")
	if err := Install(t.Context(), []string{"runc", "nftables"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	want := "noninteractive update\nnoninteractive install --yes --no-install-recommends runc nftables\n"
	if string(got) != want {
		t.Errorf("apt-get was called with\n%swant\n%s", got, want)
	}
}

func TestInterruptedInstallationIsCalledThat(t *testing.T) {
	fakeApt(t, "exec tail -f /dev/null", "exit 0")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Install(ctx, []string{"runc"}); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want that it was cancelled", err)
	}
}

func TestEveryFailedCheckIsInTheOneError(t *testing.T) {
	ok := Check{"fine", func(context.Context) (string, error) { return "works", nil }}
	plain := Check{"odd", func(context.Context) (string, error) { return "", errors.New("no idea") }}
	results := Run(t.Context(), []Check{Root(1), ok, plain})
	err := Failed(results)
	if err == nil || !strings.Contains(err.Error(), "root: you are not root") || !strings.Contains(err.Error(), "odd: no idea") || strings.Contains(err.Error(), "fine") {
		t.Errorf("err = %v", err)
	}
	if results[1].Name != "fine" || results[2].Name != "odd" {
		t.Errorf("the results are not in the order of the checks: %+v", results)
	}
	if err := Failed(results[1:2]); err != nil {
		t.Errorf("no check failed, and there is an error: %v", err)
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}
