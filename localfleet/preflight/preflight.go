// Package preflight says, before anything is started, whether this machine can
// run a local fleet, and if not, what is missing and what to do about it.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Result is what one check found.
type Result struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`           // what was found, or what is wrong
	Remedy string `json:"remedy,omitempty"` // what to do about it
}

// Check is one question to the machine.
type Check struct {
	Name string
	Run  func(context.Context) (detail string, err error)
}

// problem is an error with a remedy.
type problem struct {
	what   string
	remedy string
}

func (p problem) Error() string { return p.what }

// Run runs all checks side by side and returns their results in order.
func Run(ctx context.Context, checks []Check) []Result {
	results := make([]Result, len(checks))
	var group sync.WaitGroup
	for i, check := range checks {
		group.Go(func() { results[i] = run(ctx, check) })
	}
	group.Wait()
	return results
}

func run(ctx context.Context, check Check) Result {
	detail, err := check.Run(ctx)
	result := Result{Name: check.Name, OK: err == nil, Detail: detail}
	if err != nil {
		result.Detail = err.Error()
		var p problem
		if errors.As(err, &p) {
			result.Remedy = p.remedy
		}
	}
	return result
}

// Failed returns one error that names every check that failed, or nil.
func Failed(results []Result) error {
	var lines []string
	for _, result := range results {
		if result.OK {
			continue
		}
		line := result.Name + ": " + result.Detail
		if result.Remedy != "" {
			line += "\n    " + result.Remedy
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("this machine cannot run the fleet yet:\n  %s", strings.Join(lines, "\n  "))
}

// Root asks for the rights to make namespaces, mounts and control groups. uid
// is the effective user id of the command.
func Root(uid int) Check {
	return Check{"root", func(context.Context) (string, error) {
		if uid != 0 {
			return "", problem{"you are not root, and nodes need namespaces, mounts and control groups", "run the command with sudo"}
		}
		return "running as root", nil
	}}
}

// Kernel asks for the kernel's features that nodes need. Each is tried, in a
// thread of its own, rather than looked up.
func Kernel(try func(func() error) error) []Check {
	feature := func(name, remedy string, f func() error) Check {
		return Check{"kernel: " + name, func(context.Context) (string, error) {
			if err := try(f); err != nil {
				return "", problem{fmt.Sprintf("%s does not work: %v", name, err), remedy}
			}
			return "works", nil
		}}
	}
	return []Check{
		feature("network namespaces", "use a kernel with CONFIG_NET_NS, outside an unprivileged container",
			func() error { return unix.Unshare(unix.CLONE_NEWNET) }),
		feature("mount namespaces", "use a kernel with CONFIG_NAMESPACES, outside an unprivileged container",
			func() error { return unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS) }),
		feature("overlay file system", "load it with 'modprobe overlay'",
			func() error { return inFile("/proc/filesystems", "overlay") }),
		feature("control groups", "mount the control group file systems at /sys/fs/cgroup",
			func() error { return cgroups("/sys/fs/cgroup") }),
	}
}

func inFile(path, word string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, field := range strings.Fields(string(data)) {
		if field == word {
			return nil
		}
	}
	return fmt.Errorf("%s does not name it", path)
}

// cgroups asks for the file system of version 2 or the hierarchies of version 1
// that nodes put processes in.
func cgroups(root string) error {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return nil
	}
	for _, hierarchy := range []string{"pids", "memory", "cpu", "devices", "freezer", "cpuset"} {
		if _, err := os.Stat(filepath.Join(root, hierarchy, "tasks")); err != nil {
			return fmt.Errorf("the %s hierarchy is not mounted: %w", hierarchy, err)
		}
	}
	return nil
}

// NFTables asks for the packet filter that kube-proxy writes its rules to, by
// adding a table in a namespace that is thrown away.
func NFTables(inNamespace func(func() error) error) Check {
	return Check{"nftables", func(ctx context.Context) (string, error) {
		err := inNamespace(func() error {
			rules := "add table ip probe; add chain ip probe out { type nat hook output priority 0; }; " +
				"add chain ip probe post { type nat hook postrouting priority 0; }; " +
				"add rule ip probe out ip daddr 10.0.0.1 dnat to 10.0.0.2; add rule ip probe post masquerade"
			out, err := exec.CommandContext(ctx, "nft", rules).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
			}
			return nil
		})
		if err != nil {
			return "", problem{fmt.Sprintf("a rule with dnat and masquerade is refused: %v", err),
				"use a kernel with nf_tables and nft_nat, and the package nftables"}
		}
		return "works", nil
	}}
}

// Packages asks for the programs of Debian's packages.
func Packages(programs map[string]string) Check {
	return Check{"packages", func(context.Context) (string, error) {
		missing := MissingPackages(programs)
		if len(missing) > 0 {
			return "", problem{"these packages are not installed: " + strings.Join(missing, " "),
				"apt-get install --no-install-recommends " + strings.Join(missing, " ")}
		}
		return fmt.Sprintf("all %d are there", len(programs)), nil
	}}
}

// Ports asks that nobody else listens on the loopback ports.
func Ports(ports []int) Check {
	return Check{"ports", func(ctx context.Context) (string, error) {
		var taken []string
		for _, port := range ports {
			listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			switch {
			case errors.Is(err, unix.EADDRINUSE):
				taken = append(taken, strconv.Itoa(port))
			case err != nil:
				return "", problem{fmt.Sprintf("port %d cannot be listened on: %v", port, err), "choose other ports with --port-base"}
			default:
				_ = listener.Close()
			}
		}
		if len(taken) > 0 {
			return "", problem{"somebody else listens on 127.0.0.1, port " + strings.Join(taken, ", "),
				"end that program, or choose other ports with --port-base"}
		}
		return fmt.Sprintf("all %d on 127.0.0.1 are free", len(ports)), nil
	}}
}

// Disk asks for so many free bytes where dir is or will be.
func Disk(name, dir string, bytes uint64) Check {
	return Check{"disk: " + name, func(context.Context) (string, error) {
		existing := dir
		for existing != filepath.Dir(existing) {
			if _, err := os.Stat(existing); err == nil {
				break
			}
			existing = filepath.Dir(existing)
		}
		var stat unix.Statfs_t
		if err := unix.Statfs(existing, &stat); err != nil {
			return "", problem{fmt.Sprintf("the file system at %s does not say how full it is: %v", existing, err),
				"choose another folder with --state or --cache"}
		}
		free := stat.Bavail * uint64(stat.Bsize) //nolint:gosec // block sizes are positive
		detail := fmt.Sprintf("%.1f GB free at %s, %.1f GB needed", gigabytes(free), existing, gigabytes(bytes))
		if free < bytes {
			return "", problem{detail, "free some space, or choose another folder with --state or --cache"}
		}
		return detail, nil
	}}
}

// Memory asks for so many bytes that can still be had.
func Memory(bytes uint64) Check { return memory("/proc/meminfo", bytes) }

func memory(meminfo string, bytes uint64) Check {
	return Check{"memory", func(context.Context) (string, error) {
		available, err := availableMemory(meminfo)
		if err != nil {
			return "", problem{"it is unknown how much memory is available: " + err.Error(), "use a kernel whose /proc is mounted and has meminfo"}
		}
		detail := fmt.Sprintf("%.1f GB available, %.1f GB needed", gigabytes(available), gigabytes(bytes))
		if available < bytes {
			return "", problem{detail, "end what you do not need, or use a machine with more memory"}
		}
		return detail, nil
	}}
}

// AvailableMemory is how many bytes of memory the kernel believes that programs can still have.
func AvailableMemory() (uint64, error) { return availableMemory("/proc/meminfo") }

func availableMemory(meminfo string) (uint64, error) {
	data, err := os.ReadFile(meminfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "MemAvailable:" {
			continue
		}
		kilobytes, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("line MemAvailable of %s: %w", meminfo, err)
		}
		return kilobytes << 10, nil
	}
	return 0, fmt.Errorf("%s has no line MemAvailable", meminfo)
}

func gigabytes(bytes uint64) float64 { return float64(bytes) / 1e9 }
