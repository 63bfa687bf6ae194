package chart

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cache keeps archives by their digest, and for each tag what it was when last seen. It
// may be used by several processes: files appear whole or not at all.
type cache struct{ dir string }

// tag is what a tag led to.
type tag struct {
	Reference string    `json:"reference"`
	Manifest  string    `json:"manifest"`
	Layer     string    `json:"layer"`
	Seen      time.Time `json:"seen"`
}

const algorithm = "sha256:"

// tagFile is named by a hash, because a reference may hold anything.
func (c cache) tagFile(ref Reference) string {
	sum := sha256.Sum256([]byte(ref.String()))
	return filepath.Join(c.dir, "tags", hex.EncodeToString(sum[:])+".json")
}

func (c cache) archiveFile(digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, algorithm)
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("%q is no digest that a chart is kept by", digest)
	}
	return filepath.Join(c.dir, "archives", sum+".tgz"), nil
}

// tag reads what is known of a tag; anything unreadable is as good as unknown.
func (c cache) tag(ref Reference) (tag, bool) {
	if c.dir == "" {
		return tag{}, false
	}
	data, err := os.ReadFile(c.tagFile(ref))
	if err != nil {
		return tag{}, false
	}
	return parseTag(data, ref)
}

func parseTag(data []byte, ref Reference) (tag, bool) {
	var t tag
	if json.Unmarshal(data, &t) != nil || t.Reference != ref.String() || t.Manifest == "" {
		return tag{}, false
	}
	return t, true
}

// archive reads a chart and checks that it is still what its name says.
func (c cache) archive(digest string) ([]byte, error) {
	file, err := c.archiveFile(digest)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the cache of charts: %w", err)
	}
	if sum := sha256.Sum256(data); algorithm+hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("%s is damaged: remove it", file)
	}
	return data, nil
}

func (c cache) keep(ref Reference, t tag, archive []byte) error {
	if c.dir == "" {
		return nil
	}
	file, err := c.archiveFile(t.Layer)
	if err != nil {
		return err
	}
	if err := write(file, archive); err != nil {
		return err
	}
	t.Reference, t.Seen = ref.String(), time.Now().UTC().Truncate(time.Second)
	data, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return write(c.tagFile(ref), data)
}

// write replaces a file in one step.
func write(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(file), ".new-")
	if err != nil {
		return err
	}
	_, err = temporary.Write(data)
	err = errors.Join(err, temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), file)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
	}
	return err
}
