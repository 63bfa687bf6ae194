package engine

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestPruneRemovesOnlyWhatNoCheckoutAsksFor(t *testing.T) {
	s := built(t)
	b, err := s.Resolve("tiny")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"tiny-v1.0.0-0123456789ab", "tiny-v1.1.0-0123456789ab", partialDir + "/tiny-v1.2.3-aaaaaaaaaaaa", "other-v1.0.0-0123456789ab", "bin"} {
		if err := os.MkdirAll(filepath.Join(s.enginesDir(), dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// One of the old ones is in somebody's hands.
	l, err := tryAcquire(s.lockPath("tiny-v1.1.0-0123456789ab"), syscall.LOCK_EX)
	if err != nil || l == nil {
		t.Fatal(err)
	}
	defer l.release()
	removed, err := s.Prune(deadline(t))
	if err != nil || !slices.Equal(removed, []string{"tiny-v1.0.0-0123456789ab", "tiny-v1.2.3-aaaaaaaaaaaa"}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	for _, dir := range []string{b[0].DirName(), "tiny-v1.1.0-0123456789ab", "other-v1.0.0-0123456789ab", "bin"} {
		if _, err := os.Stat(filepath.Join(s.enginesDir(), dir)); err != nil {
			t.Error(err)
		}
	}
}
