package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lock is an advisory lock on a file. The kernel drops it when its holder
// dies, however it dies, so there are no stale locks to find and remove.
type lock struct{ file *os.File }

// lockPoll is how often a taken lock is tried again. A blocking flock cannot be
// interrupted by a context.
const lockPoll = 250 * time.Millisecond

// acquire takes the lock on path, shared or exclusive. While another holds it,
// waiting is called once.
func acquire(ctx context.Context, path string, how int, waiting func()) (*lock, error) {
	l, err := tryAcquire(path, how)
	if err != nil || l != nil {
		return l, err
	}
	if waiting != nil {
		waiting()
	}
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another process to release %s: %w", path, context.Cause(ctx))
		case <-ticker.C:
			if l, err := tryAcquire(path, how); err != nil || l != nil {
				return l, err
			}
		}
	}
}

// tryAcquire returns nil and no error when another holds the lock.
func tryAcquire(path string, how int) (*lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, f.Close()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return &lock{f}, nil
}

func (l *lock) release() { l.file.Close() }
