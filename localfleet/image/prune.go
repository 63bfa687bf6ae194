package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// unfinished is how old a blob must be before it counts as left behind: an
// image that is being made has blobs before it has a key.
const unfinished = time.Hour

// Prune forgets the images that nobody has asked for in the given time, and
// removes the blobs that belong to none of the others. Every change to the
// worker makes an image, so a cache that is never pruned grows with the work.
func (b *Builder) Prune(unused time.Duration) error {
	keys, err := filepath.Glob(b.keyPath("*"))
	if err != nil {
		return err
	}
	wanted := map[v1.Hash]bool{}
	for _, key := range keys {
		if err := b.pruneKey(key, time.Now().Add(-unused), wanted); err != nil {
			return fmt.Errorf("pruning the images: %w", err)
		}
	}
	files, err := filepath.Glob(b.blobs().path(v1.Hash{Algorithm: "sha256", Hex: "*"}))
	if err != nil {
		return err
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || wanted[v1.Hash{Algorithm: "sha256", Hex: filepath.Base(file)}] || time.Since(info.ModTime()) < unfinished {
			continue
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("pruning the images: %w", err)
		}
	}
	return nil
}

// pruneKey removes a key that was not used since a time, or else notes what it
// keeps.
func (b *Builder) pruneKey(key string, since time.Time, wanted map[v1.Hash]bool) error {
	for _, sets := range packageKinds() {
		if key == b.packagesPath(sets) {
			for _, l := range b.knownPackages(sets) {
				wanted[l.Digest] = true
			}
			return nil
		}
	}
	info, err := os.Stat(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	digest, err := v1.NewHash(strings.TrimSpace(string(raw)))
	if err == nil && info.ModTime().After(since) {
		if img, err := b.blobs().image(digest); err == nil {
			return keepParts(img, digest, wanted)
		}
	}
	return os.Remove(key)
}

func keepParts(img v1.Image, digest v1.Hash, wanted map[v1.Hash]bool) error {
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	wanted[digest], wanted[manifest.Config.Digest] = true, true
	for _, l := range manifest.Layers {
		wanted[l.Digest] = true
	}
	return nil
}
