package localfleet

import (
	"context"
	"strings"
	"time"

	"github.com/omnivision/omnivision/conveyor/source"
)

// sourceVersion says which source the fleet's own images are built from.
type sourceVersion struct {
	Tag    string // of the images: rises with every commit
	Commit string
}

// readVersion asks Git. Unlike a release, a rehearsal may be of a source without Git
// or with changes that no commit has.
func readVersion(dir string) sourceVersion {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	revision, err := source.Read(ctx, dir)
	if err != nil {
		return sourceVersion{Tag: source.BaseVersion, Commit: "unknown"}
	}
	if revision.Dirty {
		revision.Commit += "-dirty"
	}
	return sourceVersion{Tag: assembledTag(revision.Version), Commit: revision.Commit}
}

// assembledTag marks an image that Up assembled. It rises with every commit, and is older
// than whatever the conveyor releases, whose images are others under other tags.
func assembledTag(version string) string {
	return assembledPrefix + strings.TrimPrefix(version, source.BaseVersion+"-")
}

const assembledPrefix = source.BaseVersion + "-0.assembled."

func isAssembled(tag string) bool { return strings.HasPrefix(tag, assembledPrefix) }
