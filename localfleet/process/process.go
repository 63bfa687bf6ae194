// Package process runs the local fleet's daemons: each is started once, in its
// own session and network namespace, with its output in a log file and a
// record on disk, so that it outlives the command that started it and a later
// command finds, keeps, replaces or ends it.
//
// A daemon is known by its process id together with the time that the process
// started, so a process id that the kernel has given to somebody else is never
// signalled.
package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
	"golang.org/x/sys/unix"
)

// Spec is what a daemon is started with.
type Spec struct {
	Name  string   // unique; also the name of its log: a path below the supervisor's folder, such as cluster-aws/etcd
	Path  string   // of the program
	Args  []string // without the program's name
	Env   []string // in full; nothing of the caller's environment is inherited
	Dir   string   // working directory; empty is /
	NetNS string   // name of the network namespace; empty is the machine's own
	UID   uint32   // 0 is root
	GID   uint32

	// MountNS is the process id of the daemon whose mount namespace this one
	// joins; 0 is the machine's own.
	MountNS int
	// Prepare runs, if set, on the thread that the daemon is forked from, once
	// its namespaces are joined: what it changes of the thread is inherited.
	Prepare func() error `json:"-"`

	// Subgroup is the daemon's control group below the supervisor's; empty is
	// the supervisor's own.
	Subgroup string

	// StopGrace is how long the daemon may take to end by itself. The zero
	// value is ten seconds.
	StopGrace time.Duration
	// KillGroup also ends the daemon's children that share its process group.
	KillGroup bool
	// Inputs are digests or contents of files that the daemon reads only when
	// it starts: a change restarts it.
	Inputs []string
}

// hash identifies the Spec: a daemon is restarted when it changes.
func (s Spec) hash() string {
	data, err := json.Marshal(s)
	if err != nil { // strings, numbers and slices of them always marshal
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// record is what is kept of a running daemon.
type record struct {
	PID     int       `json:"pid"`
	Started uint64    `json:"started"` // clock ticks since boot, from /proc/PID/stat
	Boot    string    `json:"boot"`    // kernel's boot id
	Spec    string    `json:"spec"`    // hash of the Spec
	Grace   int64     `json:"graceMillis"`
	Group   bool      `json:"group"`
	Time    time.Time `json:"time"`
}

// Supervisor starts and ends daemons whose records and logs are below Dir.
type Supervisor struct {
	Dir string
	// Cgroup, if set, is the control group that all daemons and their children
	// are members of, such as "omnivision"; Sweep ends whatever is in it.
	Cgroup string
}

func (s *Supervisor) recordPath(name string) string {
	return filepath.Join(s.Dir, "run", filepath.FromSlash(name)+".json")
}

// LogPath returns the file that holds the daemon's output.
func (s *Supervisor) LogPath(name string) string {
	return filepath.Join(s.Dir, "logs", filepath.FromSlash(name)+".log")
}

// Start starts the daemon unless it runs already with the same Spec; one that
// runs with another Spec is ended first. It reports whether it started one.
func (s *Supervisor) Start(ctx context.Context, spec Spec) (bool, error) {
	if rec, ok := s.alive(spec.Name); ok {
		if rec.Spec == spec.hash() {
			return false, nil
		}
		if err := s.Stop(ctx, spec.Name); err != nil {
			return false, err
		}
	}
	if err := s.start(spec); err != nil {
		return false, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return true, nil
}

func (s *Supervisor) start(spec Spec) error {
	logPath := s.LogPath(spec.Name)
	if err := os.MkdirAll(filepath.Dir(logPath), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the daemon has its own descriptor

	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env = spec.Env
	cmd.Dir = spec.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if spec.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: spec.UID, Gid: spec.GID}
	}
	if err := s.fork(spec, cmd); err != nil {
		return err
	}
	// Reap the child if it ends while this command still runs; its record says
	// more than its exit code, and a zombie would look alive.
	go func() { _ = cmd.Wait() }()

	if err := s.remember(spec, cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		return err
	}
	return nil
}

// fork starts the child from a thread that is already where the child belongs,
// so that there is no moment at which it runs elsewhere.
func (s *Supervisor) fork(spec Spec, cmd *exec.Cmd) error {
	return netns.OnThread(func() error {
		if s.Cgroup != "" {
			done, err := joinCgroup(filepath.Join(s.Cgroup, spec.Subgroup), cmd.SysProcAttr)
			if err != nil {
				return err
			}
			defer done()
		}
		// The network first: another mount namespace may not see its file.
		if err := netns.Enter(spec.NetNS); err != nil {
			return err
		}
		if err := joinMounts(spec.MountNS); err != nil {
			return err
		}
		if spec.Prepare != nil {
			if err := spec.Prepare(); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
}

// Within runs f on a thread inside the network namespace called netNS and the mount
// namespace of the process mountNS; processes that f starts are there too. The empty
// name and 0 are the machine's own.
func Within(netNS string, mountNS int, f func() error) error {
	return netns.OnThread(func() error {
		// The network first: another mount namespace may not see its file.
		if err := netns.Enter(netNS); err != nil {
			return err
		}
		if err := joinMounts(mountNS); err != nil {
			return err
		}
		return f()
	})
}

// joinMounts moves the calling thread into the mount namespace of pid.
func joinMounts(pid int) error {
	if pid == 0 {
		return nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open mount namespace of process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // a read-only descriptor
	// A thread that shares its file system view with others may not leave it.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system view: %w", err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace of process %d: %w", pid, err)
	}
	return nil
}

func (s *Supervisor) remember(spec Spec, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("ended at once: %w%s", err, s.tailSuffix(spec.Name))
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	grace := spec.StopGrace
	if grace == 0 {
		grace = 10 * time.Second
	}
	data, err := json.Marshal(record{
		PID: pid, Started: started, Boot: boot, Spec: spec.hash(),
		Grace: grace.Milliseconds(), Group: spec.KillGroup, Time: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	path := s.recordPath(spec.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// alive returns the record of the daemon called name if its process lives.
func (s *Supervisor) alive(name string) (record, bool) {
	data, err := os.ReadFile(s.recordPath(name))
	if err != nil {
		return record{}, false
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil || rec.PID <= 1 {
		return record{}, false
	}
	boot, err := bootID()
	if err != nil || boot != rec.Boot {
		return rec, false
	}
	started, err := startTime(rec.PID)
	return rec, err == nil && started == rec.Started
}

// Running returns the process id of the daemon called name, if it lives.
func (s *Supervisor) Running(name string) (int, bool) {
	rec, ok := s.alive(name)
	return rec.PID, ok
}

// Names returns the names of all daemons that have a record, sorted.
func (s *Supervisor) Names() ([]string, error) {
	root := filepath.Join(s.Dir, "run")
	var names []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if name, isRecord := strings.CutSuffix(path, ".json"); isRecord && !entry.IsDir() {
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			names = append(names, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list daemons: %w", err)
	}
	sort.Strings(names)
	return names, nil
}

// Stop ends the daemon called name: by SIGTERM, and by SIGKILL when its grace
// has passed or ctx is done. One that does not run is no error.
func (s *Supervisor) Stop(ctx context.Context, name string) error {
	rec, ok := s.alive(name)
	if ok {
		if err := end(ctx, rec); err != nil {
			return fmt.Errorf("stop %s (process %d): %w", name, rec.PID, err)
		}
	}
	if err := os.Remove(s.recordPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return nil
}

// Kill ends the daemon called name by SIGKILL and keeps its record, as a crash
// would. It is for rehearsing one.
func (s *Supervisor) Kill(ctx context.Context, name string) error {
	rec, ok := s.alive(name)
	if !ok {
		return fmt.Errorf("kill %s: it does not run", name)
	}
	rec.Grace = 0
	if err := end(ctx, rec); err != nil {
		return fmt.Errorf("kill %s (process %d): %w", name, rec.PID, err)
	}
	return nil
}

// end signals the process through a pidfd, which cannot mean another process,
// and waits until it is gone.
func end(ctx context.Context, rec record) error {
	pidfd, err := unix.PidfdOpen(rec.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(pidfd) //nolint:errcheck // a descriptor without data
	if started, err := startTime(rec.PID); err != nil || started != rec.Started {
		return nil
	}
	grace := time.Duration(rec.Grace) * time.Millisecond
	if grace > 0 {
		if err := signal(rec, pidfd, unix.SIGTERM); err != nil {
			return err
		}
		if waitGone(ctx, pidfd, grace) {
			return nil
		}
	}
	if err := signal(rec, pidfd, unix.SIGKILL); err != nil {
		return err
	}
	if !waitGone(context.WithoutCancel(ctx), pidfd, 5*time.Second) {
		return errors.New("still there 5 s after SIGKILL")
	}
	return nil
}

func signal(rec record, pidfd int, sig unix.Signal) error {
	var err error
	if rec.Group {
		err = unix.Kill(-rec.PID, sig) // Setsid made it the leader of its group
	} else {
		err = unix.PidfdSendSignal(pidfd, sig, nil, 0)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s: %w", sig, err)
	}
	return nil
}

// waitGone waits until the process behind pidfd has ended.
func waitGone(ctx context.Context, pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
		n, err := unix.Poll(poll, 100)
		if err == nil && n > 0 {
			return true
		}
	}
	return false
}

// LogTail returns the last n lines of the daemon's output.
func (s *Supervisor) LogTail(name string, n int) string {
	const window = 64 << 10
	file, err := os.Open(s.LogPath(name))
	if err != nil {
		return ""
	}
	defer file.Close() //nolint:errcheck // read only
	if info, err := file.Stat(); err == nil && info.Size() > window {
		if _, err := file.Seek(-window, 2); err != nil {
			return ""
		}
	}
	buffer := make([]byte, window)
	read, _ := file.Read(buffer)
	lines := bytes.Split(bytes.TrimSpace(buffer[:read]), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return string(bytes.Join(lines, []byte("\n")))
}

func (s *Supervisor) tailSuffix(name string) string {
	if tail := s.LogTail(name, 5); tail != "" {
		return "\n" + tail
	}
	return ""
}

// Wait calls ready until it returns nil, and fails when the daemon ends, the
// limit passes or ctx is done, with the last reason and the end of its log.
func (s *Supervisor) Wait(ctx context.Context, name string, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if _, ok := s.Running(name); !ok {
			return fmt.Errorf("%s ended before it was ready: %w%s\nits log is %s", name, err, s.tailSuffix(name), s.LogPath(name))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s was not ready within %s: %w%s\nits log is %s", name, limit, err, s.tailSuffix(name), s.LogPath(name))
		case <-tick.C:
		}
	}
}

// startTime returns field 22 of /proc/PID/stat: when the process started, in
// clock ticks since boot. A zombie counts as ended.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The command's name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: short stat line", pid)
	}
	if fields[0] == "Z" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
