package podlogs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func closeFD(fd int) { _ = unix.Close(fd) }

// All paths are walked from a file descriptor of a directory that belongs to the kubelet, by openat2(2), which neither
// follows a symbolic link nor leaves that directory; mounts are made from descriptors, so nothing can be exchanged
// between a check and its use.
const walk = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// mountFlags are what every published directory has.
const mountFlags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// statfsFlags are the same as statfs(2) reports them.
const statfsFlags = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC

// openRoot opens a directory whose own path is trusted, since an administrator configured it.
func openRoot(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func openBeneath(root int, path string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: walk}
	for {
		fd, err := unix.Openat2(root, path, how)
		// EAGAIN: something was renamed while the kernel looked, and it could not tell.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "openat2", Path: path, Err: err}
		}
		return fd, nil
	}
}

// openLogs opens a Pod's log directory and makes it when it is not there yet: the kubelet does so only after the mounts.
func openLogs(logDir string, p pod) (int, error) {
	root, err := openRoot(logDir)
	if err != nil {
		return -1, fmt.Errorf("the node's log directory: %w", err)
	}
	defer unix.Close(root)
	if err := unix.Mkdirat(root, p.directory(), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("make the log directory of Pod %s/%s: %w", p.namespace, p.name, &os.PathError{Op: "mkdirat", Path: p.directory(), Err: err})
	}
	fd, err := openBeneath(root, p.directory())
	if err != nil {
		return -1, fmt.Errorf("the log directory of Pod %s/%s: %w", p.namespace, p.name, err)
	}
	return fd, nil
}

// publish mounts a Pod's log directory at the target, once however often it is called.
func (d *Driver) publish(p pod, t target) error {
	logs, err := openLogs(d.cfg.LogDir, p)
	if err != nil {
		return err
	}
	defer unix.Close(logs)
	parent, err := d.openParent(t)
	if err != nil {
		return fmt.Errorf("the volume's directory: %w", err)
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, mountFolder, 0o750); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make the mount point: %w", err)
	}
	for {
		place, err := openBeneath(parent, mountFolder)
		if err != nil {
			return fmt.Errorf("the mount point: %w", err)
		}
		done, err := d.mountOnce(logs, parent, place)
		unix.Close(place)
		if done || err != nil {
			return err
		}
	}
}

// mountOnce looks at what is at a mount point: what belongs there is left, what does not is taken away (and the caller
// looks again), nothing gets the mount.
func (d *Driver) mountOnce(logs, parent, place int) (done bool, err error) {
	mounted, err := isMountRoot(place)
	if err != nil {
		return false, err
	}
	if !mounted {
		return true, bind(logs, place)
	}
	right, err := shows(place, logs)
	if right || err != nil {
		return right, err
	}
	// Left by a driver that was killed, or of a log directory that was removed since.
	return false, unmount(parent)
}

// bind mounts a directory on a mount point. The copy of the mount is read-only before it is anywhere to be seen.
func bind(from, to int) error {
	tree, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("copy the mount of the log directory (open_tree): %w", err)
	}
	defer unix.Close(tree)
	attributes := &unix.MountAttr{Attr_set: mountFlags, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attributes); err != nil {
		return fmt.Errorf("make the mount read-only (mount_setattr, Linux 5.12): %w", err)
	}
	if err := unix.MoveMount(tree, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the log directory (move_mount): %w", err)
	}
	return nil
}

func isMountRoot(fd int) (bool, error) {
	var stat unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &stat); err != nil {
		return false, fmt.Errorf("look at the mount point: %w", err)
	}
	if stat.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("the kernel does not tell mount points from directories (statx, Linux 5.8)")
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// shows reports whether what is mounted at place is the directory logs, with all flags.
func shows(place, logs int) (bool, error) {
	var there, wanted unix.Stat_t
	if err := unix.Fstat(place, &there); err != nil {
		return false, fmt.Errorf("look at what is mounted: %w", err)
	}
	if err := unix.Fstat(logs, &wanted); err != nil {
		return false, fmt.Errorf("look at the log directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(place, &fs); err != nil {
		return false, fmt.Errorf("look at the flags of what is mounted: %w", err)
	}
	return there.Dev == wanted.Dev && there.Ino == wanted.Ino && fs.Flags&statfsFlags == statfsFlags, nil
}

// unmount takes away the uppermost mount at parent/mount. It is detached: what still has a file open keeps it, and the
// next mount does not wait for that.
func unmount(parent int) error {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", parent, mountFolder)
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// unpublish takes away all that is mounted at the target, and the mount point.
func (d *Driver) unpublish(t target) error {
	parent, err := d.openParent(t)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the volume's directory: %w", err)
	}
	defer unix.Close(parent)
	for {
		mounted, err := mountedBeneath(parent)
		if err != nil {
			return err
		}
		if !mounted {
			break
		}
		if err := unmount(parent); err != nil {
			return err
		}
	}
	// Only an empty directory can be removed this way: no log is ever deleted through a mount.
	if err := unix.Unlinkat(parent, mountFolder, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the mount point: %w", err)
	}
	return nil
}

func mountedBeneath(parent int) (bool, error) {
	place, err := openBeneath(parent, mountFolder)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("the mount point: %w", err)
	}
	defer unix.Close(place)
	return isMountRoot(place)
}

func (d *Driver) openParent(t target) (int, error) {
	root, err := openRoot(d.pods)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	return openBeneath(root, strings.TrimPrefix(t.parent(), "/"))
}
