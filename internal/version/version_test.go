package version

import (
	"runtime/debug"
	"testing"
)

func TestStampedValuesWinOverTheToolchains(t *testing.T) {
	fromToolchain := &debug.BuildInfo{
		GoVersion: "go1.26.0",
		Main:      debug.Module{Version: "v0.9.0"},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "abc"},
			{Key: "vcs.modified", Value: "true"},
		},
	}
	cases := map[string]struct {
		version, commit string
		build           *debug.BuildInfo
		want            Info
	}{
		"stamped": {"1.2.3", "def", fromToolchain, Info{"1.2.3", "def", "go1.26.0"}},
		"not stamped": {"", "", fromToolchain,
			Info{"v0.9.0", "abc-dirty", "go1.26.0"}},
		"nothing known": {"", "", &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "(devel)"}},
			Info{UnknownVersion, UnknownCommit, "go1.26.0"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := resolve(c.version, c.commit, c.build); got != c.want {
				t.Errorf("resolve = %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestGetNeverLeavesAFieldEmpty(t *testing.T) {
	if got := Get(); got.Version == "" || got.Commit == "" || got.Go == "" {
		t.Errorf("Get() = %+v, want every field set", got)
	}
}
