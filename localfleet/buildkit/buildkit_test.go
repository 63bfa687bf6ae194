package buildkit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigSaysWhatIsMeant(t *testing.T) {
	s := Server{Dir: "/var/cache/x/buildkit", Run: "/var/lib/x/buildkit", GID: 64102, Cgroup: "/omnivision/buildkit", CacheBytes: 12e9}
	for _, line := range []string{
		`root = "/var/cache/x/buildkit"`, `  address = ["unix:///var/lib/x/buildkit/buildkitd.sock"]`, `  uid = 0`, `  gid = 64102`,
		`  defaultCgroupParent = "/omnivision/buildkit"`, `  networkMode = "host"`, `  maxUsedSpace = "12000000000B"`,
	} {
		if !strings.Contains(s.config(), line+"\n") {
			t.Errorf("no line %s in\n%s", line, s.config())
		}
	}
}

func TestRefusesWhatCannotWork(t *testing.T) {
	program := filepath.Join(t.TempDir(), "buildkitd")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		server Server
		want   string
	}{
		"relative folder": {Server{Binary: program, Dir: "state", Run: "/run"}, "absolute"},
		"quote in folder": {Server{Binary: program, Dir: "/a\"b", Run: "/run"}, "quotes"},
		"no program":      {Server{Binary: program + "x", Dir: "/a", Run: "/run"}, "build or load the engines"},
	} {
		if err := c.server.validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
