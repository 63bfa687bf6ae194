package image

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestPruneRemovesImagesThatNobodyAsksFor(t *testing.T) {
	b := builder(t)
	coredns, redis := mustReference(t, "registry.k8s.io/coredns/coredns"), redisReference
	old, recent := build(t, b, coredns), build(t, b, redis)

	// Two days pass, in which only one of them is used.
	then := time.Now().Add(-48 * time.Hour)
	for _, pattern := range []string{b.keyPath("*"), b.blobs().path(v1.Hash{Algorithm: "sha256", Hex: "*"})} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%v %v", files, err)
		}
		for _, file := range files {
			if err := os.Chtimes(file, then, then); err != nil {
				t.Fatal(err)
			}
		}
	}
	build(t, b, redis)

	if err := b.Prune(24 * time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := validate(recent); err != nil {
		t.Errorf("the image in use: %v", err)
	}
	if _, err := b.blobs().image(digest(t, old)); err == nil {
		t.Error("the unused image is still there")
	}
	if len(keyFiles(t, b)) != 1 {
		t.Errorf("keys %v", keyFiles(t, b))
	}
	// Its base, which others share, is kept; it can be made again.
	if again := build(t, b, coredns); digest(t, again) != digest(t, old) {
		t.Errorf("made again it is %s, and was %s", digest(t, again), digest(t, old))
	}
}
