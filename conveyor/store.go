package conveyor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/omnivision/omnivision/internal/filelock"
)

// Subject is what a release is of.
type Subject struct {
	App     string `json:"app"`
	Commit  string `json:"commit"` // all 40 digits
	Version string `json:"version"`
}

// The parts of a subject become names of files.
var (
	appPattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	commitPattern = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

func (s Subject) check() error {
	switch {
	case !appPattern.MatchString(s.App):
		return fmt.Errorf("%q cannot be an app's name: lower case letters, digits and -", s.App)
	case !commitPattern.MatchString(s.Commit):
		return fmt.Errorf("%q is no full commit", s.Commit)
	case s.Version == "":
		return errors.New("the release has no version")
	}
	return nil
}

// Entry is what a stage left behind.
type Entry struct {
	Subject
	Stage string `json:"stage"`
	// Follows is the digest of the result that the stage worked from: what was
	// scanned is what was built (P36).
	Follows string          `json:"follows,omitempty"`
	Result  json.RawMessage `json:"result"`
	Started time.Time       `json:"started"`
	Spent   Spent           `json:"spent"`
}

// Store keeps entries below one directory, one file for each app, commit and stage.
// A file is either the whole entry or not there, whenever a run is killed.
//
// Whoever may write here is believed, so it belongs to the user or job that releases.
type Store struct{ Dir string }

func (s Store) path(subject Subject, stage string) string {
	return filepath.Join(s.Dir, subject.App, subject.Commit, stage+".json")
}

// Read returns what a stage left for a subject, or nil. A file that is not what a run
// writes counts as none: the stage runs again.
func (s Store) Read(subject Subject, stage string) (*Entry, error) {
	data, err := os.ReadFile(s.path(subject, stage))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what stage %s left: %w", stage, err)
	}
	var e Entry
	if json.Unmarshal(data, &e) != nil || e.Subject != subject || e.Stage != stage || len(e.Result) == 0 {
		return nil, nil
	}
	return &e, nil
}

// Write keeps an entry.
func (s Store) Write(e Entry) error {
	data, err := json.MarshalIndent(e, "", "  ")
	if err == nil {
		err = replace(s.path(e.Subject, e.Stage), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keeping what stage %s found: %w; what it did outside stays, and the next run finds it", e.Stage, err)
	}
	return nil
}

// replace writes a file in one step that survives a loss of power.
func replace(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Lock waits until no other run of this machine releases the app. The kernel drops the
// lock when its holder dies.
func (s Store) Lock(ctx context.Context, app string) (unlock func(), err error) {
	if !appPattern.MatchString(app) {
		return nil, fmt.Errorf("%q cannot be an app's name: lower case letters, digits and -", app)
	}
	unlock, err = filelock.Acquire(ctx, filepath.Join(s.Dir, app, ".lock"))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for another release of %s on this machine: %w", app, err)
	case err != nil:
		return nil, fmt.Errorf("locking the releases of %s: %w", app, err)
	}
	return unlock, nil
}
