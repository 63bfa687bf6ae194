package shipper

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A log is rotated while the tailer looks for files, at any moment of it.
func TestRotationAtAnyMomentOfALookLosesAndDoublesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "main", "0.log")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	config := &Config{}
	config.Tail.Path, config.Tail.FromHead, config.Tail.BufferMax, config.Tail.RotateWait = filepath.Join(dir, "*", "*.log"), true, 1<<20, time.Hour
	const rotations = 300
	rotated := make(chan error, 1)
	go func() {
		for i := range rotations {
			line := fmt.Sprintf("2026-11-27T02:00:00.%09dZ stdout F %d\n", i, i)
			if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
				rotated <- err
				return
			}
			if err := os.Rename(path, fmt.Sprintf("%s.%06d", path, i)); err != nil {
				rotated <- err
				return
			}
		}
		rotated <- os.WriteFile(path, []byte("2026-11-27T02:00:01Z stdout F last\n"), 0o600)
	}()
	tail := newTailer(config, nil, newMetrics())
	defer tail.closeAll()
	seen := map[string]int{}
	look := func() {
		now := time.Now()
		if err := tail.refresh(now); err != nil {
			t.Fatal(err)
		}
		for some := true; some; {
			var err error
			if some, err = tail.read(now, func(_ *file, _ string, e entry) { seen[string(e.text)]++ }); err != nil {
				t.Fatal(err)
			}
		}
	}
	for done := false; !done; look() {
		select {
		case err := <-rotated:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
	}
	tail.finish(time.Now(), func(_ *file, _ string, e entry) { seen[string(e.text)]++ })
	for i := range rotations {
		if n := seen[fmt.Sprint(i)]; n != 1 {
			t.Errorf("line %d was read %d times", i, n)
		}
	}
	if seen["last"] != 1 {
		t.Errorf("the last line was read %d times", seen["last"])
	}
}

// What is newer than a file that is read is not let go of before it, or it would be taken for a file that was missed.
func TestFilesAreLetGoOfInTheirOrder(t *testing.T) {
	config := &Config{}
	config.Tail.RotateWait = time.Second
	tail := newTailer(config, nil, newMetrics())
	defer tail.closeAll()
	start := time.Now()
	for i, rotated := range []time.Duration{3 * time.Second, time.Second, 2 * time.Second} {
		handle, err := os.Create(filepath.Join(t.TempDir(), "0.log"))
		if err != nil {
			t.Fatal(err)
		}
		id := fileID{Inode: uint64(i)}
		tail.files[id] = &file{position: position{fileID: id, Path: "0.log"}, handle: handle, ended: true, rotated: start.Add(rotated), sibling: fmt.Sprintf("0.log.%d", i)}
	}
	tail.close(start.Add(3 * time.Second))
	if len(tail.files) != 3 {
		t.Errorf("%d files are open, and the oldest was rotated a moment ago", len(tail.files))
	}
	tail.close(start.Add(4 * time.Second))
	if len(tail.files) != 0 {
		t.Errorf("%d files are open", len(tail.files))
	}
}

// A rotated file that cannot be looked at is a problem, and says nothing of who has the path: the file that has it stays
// open, and nothing of it is read again.
func TestAnUnreadableRotatedFileDoesNotTouchTheNewest(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	config := &Config{}
	config.Tail.Path, config.Tail.FromHead, config.Tail.BufferMax, config.Tail.RotateWait = path, true, 1<<20, time.Second
	if err := os.WriteFile(path+".1", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path+".2", path+".2"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("2026-11-27T02:00:00Z stdout F once\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tail := newTailer(config, nil, newMetrics())
	defer tail.closeAll()
	seen := 0
	emit := func(*file, string, entry) { seen++ }
	start := time.Now()
	for second := range 5 {
		now := start.Add(time.Duration(second) * time.Second)
		if err := tail.refresh(now); second == 0 && err == nil {
			t.Error("a link to itself is no problem")
		}
		for range 2 {
			if _, err := tail.read(now, emit); err != nil {
				t.Fatal(err)
			}
		}
	}
	tail.finish(start, emit)
	if seen != 1 {
		t.Errorf("the line was read %d times", seen)
	}
}
