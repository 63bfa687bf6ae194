package localfleet

import (
	"os/exec"
	"strings"
)

// baseVersion is the release that the working tree leads to.
const baseVersion = "0.1.0"

// sourceVersion says which source the fleet's own images are built from.
type sourceVersion struct {
	Tag    string // of the images: rises with every commit
	Commit string
}

// readVersion asks Git. A source without Git has only the base version.
func readVersion(source string) sourceVersion {
	git := func(args ...string) string {
		out, err := exec.Command("git", append([]string{"-C", source}, args...)...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	count, commit := git("rev-list", "--count", "HEAD"), git("rev-parse", "--verify", "HEAD")
	if count == "" || commit == "" {
		return sourceVersion{Tag: baseVersion, Commit: "unknown"}
	}
	if git("status", "--porcelain") != "" {
		commit += "-dirty"
	}
	return sourceVersion{Tag: baseVersion + "-" + count, Commit: commit}
}
