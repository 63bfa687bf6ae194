package engine

import (
	"slices"
	"testing"
)

func TestCompilersCollectLateWhereMemoryIsPlenty(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		available  uint64
		processors int
		gogc       string
		want       []string
	}{
		"plenty":                {22 * gib, 2, "", []string{"GOGC=off", "GOMEMLIMIT=3221225472"}},
		"enough":                {7 * gib, 2, "", []string{"GOGC=off", "GOMEMLIMIT=1879048192"}},
		"scarce":                {5 * gib, 2, "", nil},
		"many processors":       {22 * gib, 16, "", nil},
		"the user says already": {22 * gib, 2, "100", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GOMEMLIMIT", "")
			t.Setenv("GOGC", c.gogc)
			if got := collection(c.available, c.processors); !slices.Equal(got, c.want) {
				t.Errorf("collection(%d, %d) = %q, want %q", c.available, c.processors, got, c.want)
			}
		})
	}
}
