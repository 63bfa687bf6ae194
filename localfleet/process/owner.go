package process

import (
	"fmt"
	"os"
)

// Owner is who a daemon runs as, and whose its files are. Root needs nothing to be given.
type Owner struct{ UID, GID uint32 }

// Give lets the owner have a file or directory.
func (o Owner) Give(path string) error {
	if o == (Owner{}) {
		return nil
	}
	if err := os.Chown(path, int(o.UID), int(o.GID)); err != nil {
		return fmt.Errorf("giving %s to user %d: %w", path, o.UID, err)
	}
	return nil
}

// Replace writes a file of the owner in one step: a daemon that is started after a crash
// never reads half of it.
func (o Owner) Replace(path string, data []byte, mode os.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := o.Give(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
