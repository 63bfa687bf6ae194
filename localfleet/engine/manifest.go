package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// manifestName is the file in an engine's directory that says what is in it.
// It is written last: a directory without it is not an engine.
const manifestName = "manifest.json"

// Manifest describes one built engine.
type Manifest struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Key     string `json:"key"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	// Go is the version that compiled it, and Flags are those of the build.
	Go    string   `json:"go"`
	Flags []string `json:"flags"`
	// Files maps each file, relative to the engine's directory, to its digest.
	Files    map[string]File `json:"files"`
	Extras   []string        `json:"extras,omitempty"`
	Built    time.Time       `json:"built"`
	Duration Seconds         `json:"duration"`
}

// File is one file of a built engine.
type File struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	// Executable is kept apart from the mode: nothing else of it matters.
	Executable bool `json:"executable,omitempty"`
}

// Size is the sum of the sizes of all files.
func (m Manifest) Size() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// DirName is the name of the engine's directory in a store.
func (m Manifest) DirName() string { return m.Name + "-" + m.Version + "-" + m.Key }

// Seconds is a duration that is written as a number of seconds.
type Seconds time.Duration

func (s Seconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(s).Round(time.Millisecond).Seconds())
}

func (s *Seconds) UnmarshalJSON(raw []byte) error {
	var f float64
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	*s = Seconds(f * float64(time.Second))
	return nil
}

// readManifest returns fs.ErrNotExist when dir is not a built engine.
func readManifest(dir string) (Manifest, error) {
	raw, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return Manifest{}, fmt.Errorf("reading %s: %w; remove the directory to build it again", filepath.Join(dir, manifestName), err)
	}
	return m, nil
}

// hashTree fills m.Files from what is in dir.
func (m *Manifest) hashTree(dir string) error {
	m.Files = map[string]File{}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == manifestName {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("hashing %s: it is neither a file nor a directory, and cannot be packed", path)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		digest, err := hashFile(path)
		if err != nil {
			return err
		}
		m.Files[filepath.ToSlash(rel)] = File{SHA256: digest, Size: info.Size(), Executable: info.Mode()&0o100 != 0}
		return nil
	})
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hashing %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeJSON replaces path in one step.
func writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
