package fleet_test

import (
	"os"
	"testing"

	"github.com/omnivision/omnivision/fleet"
)

func TestTheTreesComponentImagesCanBeReleased(t *testing.T) {
	images, err := fleet.ComponentImages(os.DirFS("../omnivision-gitops"))
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range images {
		if image.Name == "ghcr.io/omnivision/omnivision-gate" {
			return
		}
	}
	t.Errorf("the gate's image is none of %v", images)
}
