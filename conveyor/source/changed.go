package source

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/omnivision/omnivision/internal/git"
)

// ErrNoSuchVersion says that no commit of a branch has a version.
var ErrNoSuchVersion = errors.New("no commit of the branch has this version")

// At finds the commit that had a version when it was the head of the branch that now ends
// in head. Along a branch the count of commits only rises, so a few questions find it.
func At(ctx context.Context, dir, version, head string) (string, error) {
	count, err := strconv.Atoi(strings.TrimPrefix(version, BaseVersion+"-"))
	if err != nil {
		return "", fmt.Errorf("looking for version %q: %w", version, ErrNoSuchVersion)
	}
	g := git.Own(dir)
	out, err := g.Run(ctx, "rev-list", "--first-parent", "--reverse", head)
	if err != nil {
		return "", fmt.Errorf("looking for version %s: %w", version, err)
	}
	commits := strings.Fields(out)
	counted := func(i int) (n int) {
		line, countErr := g.Line(ctx, "rev-list", "--count", commits[i])
		if countErr == nil {
			n, countErr = strconv.Atoi(line)
		}
		err = errors.Join(err, countErr)
		return n
	}
	at := sort.Search(len(commits), func(i int) bool { return err != nil || counted(i) >= count })
	if err == nil && (at == len(commits) || counted(at) != count) {
		err = ErrNoSuchVersion
	}
	if err != nil {
		return "", fmt.Errorf("looking for version %s: %w", version, err)
	}
	return commits[at], nil
}

// Changed are the files in which two commits differ. One that was renamed is there with
// both its names.
func Changed(ctx context.Context, dir, from, to string) ([]string, error) {
	if !isCommit(from) || !isCommit(to) {
		return nil, fmt.Errorf("comparing %q with %q: both must be full commits", from, to)
	}
	out, err := git.Own(dir).Run(ctx, "diff", "--name-only", "--no-renames", "-z", from, to, "--")
	if err != nil {
		return nil, fmt.Errorf("comparing %s with %s: %w", from, to, err)
	}
	return strings.FieldsFunc(out, func(r rune) bool { return r == 0 }), nil
}
