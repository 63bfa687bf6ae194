// Package version says which build this program is: the one place that logs,
// metrics, headers and --version read.
package version

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// Version and Commit are stamped by the build:
//
//	go build -ldflags "-X github.com/omnivision/omnivision/internal/version.Version=1.2.3
//	                   -X github.com/omnivision/omnivision/internal/version.Commit=<full Git SHA>"
//
// A build without the flags falls back to what the Go toolchain recorded, so
// that `go run` and `go install` also tell the truth.
var (
	Version string
	Commit  string
)

// What Get answers when neither the build flags nor the toolchain know better.
const (
	UnknownVersion = "0.0.0-dev"
	UnknownCommit  = "unknown"
)

// Info describes a build.
type Info struct {
	Version string // semantic version, without a leading "v" when stamped so
	Commit  string // full Git SHA, with "-dirty" when the tree had changes
	Go      string // version of the toolchain
}

// Get returns the stamped values, completed from the build information that
// the toolchain embeds.
func Get() Info {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		build = &debug.BuildInfo{}
	}
	return resolve(Version, Commit, build)
}

func resolve(version, commit string, build *debug.BuildInfo) Info {
	if version == "" && build.Main.Version != "(devel)" {
		version = build.Main.Version
	}
	if commit == "" {
		commit = revision(build.Settings)
	}
	return Info{
		Version: cmp.Or(version, UnknownVersion),
		Commit:  cmp.Or(commit, UnknownCommit),
		Go:      cmp.Or(build.GoVersion, runtime.Version()),
	}
}

func revision(settings []debug.BuildSetting) string {
	var sha, suffix string
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			sha = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			suffix = "-dirty"
		}
	}
	if sha == "" {
		return ""
	}
	return sha + suffix
}
