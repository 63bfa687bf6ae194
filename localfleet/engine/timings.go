package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// timings remember how long builds took, for the estimate that progress shows.
// They outlive the engines' directories: the version that is built next takes
// about as long as the one before.
type timings map[string]timing

type timing struct {
	Duration Seconds `json:"duration"`
	// Packages is how many were compiled.
	Packages int       `json:"packages"`
	When     time.Time `json:"when"`
}

func readTimings(path string) (timings, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return timings{}, nil
	}
	if err != nil {
		return nil, err
	}
	t := timings{}
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return t, nil
}

// recordTiming keeps t for name.
func recordTiming(ctx context.Context, path, name string, t timing) error {
	l, err := acquire(ctx, filepath.Join(filepath.Dir(path), locksDir, "timings.lock"), syscall.LOCK_EX, nil)
	if err != nil {
		return err
	}
	defer l.release()
	all, err := readTimings(path)
	if err != nil {
		// An unreadable estimate is worth less than a new one.
		all = timings{}
	}
	all[name] = t
	return writeJSON(path, all)
}
