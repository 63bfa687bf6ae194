package fleet

import (
	"fmt"
	"slices"
	"time"
)

// Handover says when a wave hands a release on to the next one.
type Handover struct {
	Wave int `yaml:"wave"`
	// Soak is how long each cluster of the wave must have been healthy with the release,
	// without a break and by its own clock.
	Soak time.Duration `yaml:"soak"`
	// FailureBudget is how many clusters of the wave may be silent or degraded without
	// holding up the next wave. It never covers an aborted canary.
	FailureBudget int `yaml:"failureBudget"`
}

// DefaultSoak is the soak time of a wave that fleet.yaml says nothing of.
const DefaultSoak = 30 * time.Minute

// maxSoak is where a soak time is taken for a slip of the pen.
const maxSoak = 30 * 24 * time.Hour

// Handover returns what holds for a wave.
func (f *Fleet) Handover(wave int) Handover {
	for _, h := range f.Handovers {
		if h.Wave == wave {
			return h
		}
	}
	return Handover{Wave: wave, Soak: DefaultSoak}
}

// Merge is a kind of pull request of the steward's.
type Merge string

// The kinds.
const (
	MergeRevert  Merge = "revert"  // back to the last good image, with the quarantine entry
	MergePromote Merge = "promote" // the next wave
)

// Merges reports whether the steward may merge such a pull request of the app by itself.
func (a App) Merges(kind Merge) bool { return slices.Contains(a.AutoMerge, kind) }

func (f *Fleet) checkHandovers(report func(message, fix string, keys ...string)) {
	seen := map[int]bool{}
	for i, h := range f.Handovers {
		at := func(key string) []string { return []string{"waves", fmt.Sprint(i), key} }
		switch {
		case !slices.ContainsFunc(f.Clusters, func(c Cluster) bool { return c.Wave == h.Wave }):
			report(fmt.Sprintf("wave %d has no cluster", h.Wave), "name a wave that a cluster is in", at("wave")...)
		case seen[h.Wave]:
			report(fmt.Sprintf("wave %d is there twice", h.Wave), "keep one of them", at("wave")...)
		}
		seen[h.Wave] = true
		if h.Soak < 0 || h.Soak > maxSoak {
			report(fmt.Sprintf("wave %d soaks for %s", h.Wave, h.Soak), "write a time between 0s and 720h, such as 30m", at("soak")...)
		}
		if size := f.size(h.Wave); h.FailureBudget < 0 || h.FailureBudget > 0 && h.FailureBudget >= size {
			report(fmt.Sprintf("wave %d of %d clusters has a failure budget of %d", h.Wave, size, h.FailureBudget), "at least one cluster must have proven the release", at("failureBudget")...)
		}
	}
	for i, a := range f.Apps {
		for j, kind := range a.AutoMerge {
			if kind != MergeRevert && kind != MergePromote {
				report(fmt.Sprintf("app %s merges %q by itself", a.Name, kind), "the steward has pull requests of the kinds revert and promote", "apps", fmt.Sprint(i), "autoMerge", fmt.Sprint(j))
			}
		}
	}
}

func (f *Fleet) size(wave int) int {
	n := 0
	for _, c := range f.Clusters {
		if c.Wave == wave {
			n++
		}
	}
	return n
}
