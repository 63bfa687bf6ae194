package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the version 1 hierarchies that a daemon is put in: one to
// find it by, one to measure it by, and one so that daemons and Pods get their
// shares of the processors from the same pot. The kubelet makes its own groups
// below the same path in the others.
var hierarchies = []string{"pids", "memory", "cpu"}

// cpuShares is the fleet's weight among everything else on the machine, of
// which a single program has 1024: a fleet is dozens of programs.
const cpuShares = "16384"

// unified reports whether the machine mounts the version 2 hierarchy alone.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// joinCgroup arranges that a child forked from the calling thread is born in
// the control group: with version 1 by moving the thread, with version 2 by the
// descriptor that clone takes. The returned function releases it.
func joinCgroup(group string, attr *syscall.SysProcAttr) (func(), error) {
	if unified() {
		dir := filepath.Join(cgroupRoot, group, "daemons")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make control group: %w", err)
		}
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open control group %s: %w", dir, err)
		}
		attr.UseCgroupFD, attr.CgroupFD = true, fd
		return func() { _ = unix.Close(fd) }, nil
	}
	for _, hierarchy := range hierarchies {
		dir := filepath.Join(cgroupRoot, hierarchy, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make control group: %w", err)
		}
		tid := strconv.Itoa(unix.Gettid())
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(tid), 0); err != nil {
			return nil, fmt.Errorf("join control group %s: %w", dir, err)
		}
		if hierarchy == "cpu" {
			top, _, _ := strings.Cut(group, "/")
			if err := os.WriteFile(filepath.Join(cgroupRoot, hierarchy, top, "cpu.shares"), []byte(cpuShares), 0); err != nil {
				return nil, fmt.Errorf("set the weight of control group %s: %w", top, err)
			}
		}
	}
	return func() {}, nil
}

// trees returns the folders of the group in every mounted hierarchy.
func trees(group string) []string {
	if unified() {
		return []string{filepath.Join(cgroupRoot, group)}
	}
	found, err := filepath.Glob(filepath.Join(cgroupRoot, "*", group))
	if err != nil { // only a malformed pattern fails
		return nil
	}
	return found
}

// members returns the processes in the group and below it, in any hierarchy.
func members(group string) map[int]bool {
	pids := map[int]bool{}
	for _, tree := range trees(group) {
		_ = filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil //nolint:nilerr // groups vanish while they are walked
			}
			data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				return nil //nolint:nilerr // likewise
			}
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
					pids[pid] = true
				}
			}
			return nil
		})
	}
	delete(pids, os.Getpid())
	return pids
}

// Members returns the ids of all processes of the fleet, Pods included.
func (s *Supervisor) Members() []int {
	var pids []int
	for pid := range members(s.Cgroup) {
		pids = append(pids, pid)
	}
	sort.Ints(pids)
	return pids
}

// Sweep kills everything in the supervisor's control group below the path sub
// ("" is all of it), whoever started it, and removes the groups. It is how
// Pods' processes end, and daemons of a run that was killed before it could
// record them.
func (s *Supervisor) Sweep(ctx context.Context, sub string) error {
	if s.Cgroup == "" {
		return errors.New("sweep: the supervisor has no control group")
	}
	group := filepath.Join(s.Cgroup, sub)
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids := members(group)
		if len(pids) == 0 {
			break
		}
		for pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("sweep control group %s: %d processes are still there after SIGKILL", group, len(pids))
		}
		waitAny(pids)
	}
	return removeGroups(ctx, group)
}

// waitAny waits a moment for one of the processes to end.
func waitAny(pids map[int]bool) {
	for pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200) //nolint:gosec // descriptors are small
		_ = unix.Close(fd)
		return
	}
}

// removeGroups removes the group's folders, deepest first. The kernel lets go
// of a group a little after its last process is reaped, on a busy machine seconds after.
func removeGroups(ctx context.Context, group string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := removeGroupsOnce(group)
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func removeGroupsOnce(group string) error {
	for _, tree := range trees(group) {
		var dirs []string
		_ = filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove control group %s: %w", dirs[i], err)
			}
		}
	}
	return nil
}

// MemoryBytes returns the resident memory of the whole fleet, without the page
// cache, in bytes.
func (s *Supervisor) MemoryBytes() (uint64, error) {
	var total uint64
	for pid := range members(s.Cgroup) {
		proportional, err := proportionalMemory(pid)
		if err != nil {
			continue // ended since
		}
		total += proportional
	}
	return total, nil
}

// proportionalMemory is the process' share (Pss): a page that several have, such as
// the program that four kubelets run, counts once in the sum.
func proportionalMemory(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kilobytes, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no Pss", pid)
}

// EnsureGroup makes the control group in every hierarchy, for a program such as
// the kubelet that wants to find it there.
func EnsureGroup(group string) error {
	roots := []string{cgroupRoot}
	if !unified() {
		found, err := filepath.Glob(filepath.Join(cgroupRoot, "*"))
		if err != nil {
			return fmt.Errorf("list control group hierarchies: %w", err)
		}
		roots = found
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue // a link or a folder that is no hierarchy
		}
		at := root
		for part := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
			parent := at
			at = filepath.Join(at, part)
			if err := os.MkdirAll(at, 0o755); err != nil {
				return fmt.Errorf("make control group: %w", err)
			}
			if err := inheritCPUSet(parent, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCPUSet gives a new group of the version 1 cpuset hierarchy what its
// parent may use: it begins with nothing, and no process could join it.
func inheritCPUSet(parent, group string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(group, file))
		if err != nil || strings.TrimSpace(string(have)) != "" {
			continue // not the cpuset hierarchy, or set
		}
		inherited, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return fmt.Errorf("read %s of %s: %w", file, parent, err)
		}
		if len(strings.TrimSpace(string(inherited))) == 0 {
			continue // version 2 shows an empty list for "as the parent"
		}
		if err := os.WriteFile(filepath.Join(group, file), inherited, 0); err != nil {
			return fmt.Errorf("set %s of %s: %w", file, group, err)
		}
	}
	return nil
}
