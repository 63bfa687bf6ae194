package localfleet

import (
	"testing"

	"github.com/omnivision/omnivision/conveyor/source"
)

func TestAssembledImagesAreOlderThanReleases(t *testing.T) {
	for _, pair := range [][2]string{
		{assembledTag(source.BaseVersion + "-73"), assembledTag(source.BaseVersion + "-112")},
		{assembledTag(source.BaseVersion + "-73"), source.BaseVersion + "-1"},
	} {
		if order, err := source.Compare(pair[0], pair[1]); err != nil || order >= 0 {
			t.Errorf("%s is not older than %s: %d, %v", pair[0], pair[1], order, err)
		}
	}
}
