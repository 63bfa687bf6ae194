package localfleet

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing/fstest" // the one in-memory fs.FS of the standard library
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/internal/git"
)

// forgeTree reads the GitOps tree as the forge has it now: what the clusters
// follow, whoever pushed it.
func (f *Fleet) forgeTree(ctx context.Context) (fs.FS, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	name := f.gitopsRepository()
	bare := f.path("forge", "work", "repositories", name.Owner, name.Repository+".git")
	tree, err := archive(ctx, bare, f.Tree.Branch)
	if err != nil {
		return nil, fmt.Errorf("read %s at %s: %w", name, f.Tree.Branch, err)
	}
	return tree, nil
}

// archive reads the files of a bare repository at a revision, all or those below the
// given directories.
func archive(ctx context.Context, bare, revision string, dirs ...string) (fs.FS, error) {
	own := git.Clean(bare, git.Settings(git.Setting{Key: "safe.directory", Value: "*"})...)
	out, err := own.Run(ctx, append([]string{"archive", "--format=tar", revision, "--"}, dirs...)...)
	if err != nil {
		return nil, err
	}
	return untar(strings.NewReader(out))
}

// untar reads regular files; a GitOps tree has no others.
func untar(r io.Reader) (fs.FS, error) {
	tree := fstest.MapFS{}
	reader := tar.NewReader(r)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return tree, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			return nil, fmt.Errorf("read %s in archive: %w", header.Name, err)
		}
		tree[header.Name] = &fstest.MapFile{Data: data, Mode: 0o644}
	}
}

// treeProblems says what is wrong with the tree that the clusters follow, each
// with file and line.
func (f *Fleet) treeProblems(ctx context.Context) []string {
	tree, err := f.forgeTree(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	var lines []string
	for _, problem := range fleet.Validate(tree) {
		lines = append(lines, f.Tree.Branch+": "+problem.Error())
	}
	return lines
}
