//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/referrers"
)

// foreignVariable makes the test's own program push a foreign image and end: it runs inside
// the fleet, where production's names lead to the fleet's registry.
const foreignVariable = "OMNIVISION_E2E_FOREIGN"

// foreign are images that nobody should run, by how they are made. Each takes the released
// image and returns the foreign one, in the same repository unless it says otherwise.
var foreign = map[string]func(ctx context.Context, released name.Digest) (name.Digest, error){
	"unsigned":   pushUnsigned,
	"copied":     copyToOther,
	"transplant": transplant,
	"tagged":     tagReleased,
	"retagged":   tagUnsigned,
}

// pushForeign is the child's main.
func pushForeign(how string) error {
	kind, image, ok := strings.Cut(how, " ")
	push, known := foreign[kind]
	if !ok || !known {
		return fmt.Errorf("%q is no foreign image", how)
	}
	released, err := name.NewDigest(image)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	made, err := push(ctx, released)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(made.String())
}

// makeForeign pushes a foreign image and returns its reference.
func makeForeign(t *testing.T, kind, released string) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := mustInside(t, root(t), "env", foreignVariable+"="+kind+" "+released, program)
	var image string
	if err := json.Unmarshal([]byte(out), &image); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return image
}

func pushUnsigned(ctx context.Context, released name.Digest) (name.Digest, error) {
	image, err := random.Image(1<<10, 1)
	if err != nil {
		return name.Digest{}, err
	}
	return push(ctx, released.Context(), image)
}

func push(ctx context.Context, repository name.Repository, image v1.Image) (name.Digest, error) {
	digest, err := image.Digest()
	if err != nil {
		return name.Digest{}, err
	}
	made := repository.Digest(digest.String())
	return made, remote.Write(made, image, remote.WithContext(ctx))
}

// copyToOther brings a released image with all that is stated about it to another app's
// repository: its signature names the repository that it was made for (P33).
func copyToOther(ctx context.Context, released name.Digest) (name.Digest, error) {
	image, err := runnable(ctx, released)
	if err != nil {
		return name.Digest{}, err
	}
	from, err := image.Digest()
	if err != nil {
		return name.Digest{}, err
	}
	other, err := name.NewRepository(strings.Replace(released.Context().String(), workerApp, "omnivision-ui", 1))
	if err != nil {
		return name.Digest{}, err
	}
	made, err := push(ctx, other, image)
	if err != nil {
		return name.Digest{}, err
	}
	return made, copyStatements(ctx, released.Context().Digest(from.String()), made)
}

// transplant gives an image that was tampered with the statements of the released one.
func transplant(ctx context.Context, released name.Digest) (name.Digest, error) {
	image, err := runnable(ctx, released)
	if err != nil {
		return name.Digest{}, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return name.Digest{}, err
	}
	config.Config.Env = append(slices.Clone(config.Config.Env), "TAMPERED=yes")
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return name.Digest{}, err
	}
	made, err := push(ctx, released.Context(), image)
	if err != nil {
		return name.Digest{}, err
	}
	return made, copyStatements(ctx, released, made)
}

// runnable is the image, or the first one of the index.
func runnable(ctx context.Context, image name.Digest) (v1.Image, error) {
	described, err := remote.Get(image, remote.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if !described.MediaType.IsIndex() {
		return described.Image()
	}
	index, err := described.ImageIndex()
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) == 0 {
		return nil, errors.New("the index is empty")
	}
	return index.Image(manifest.Manifests[0].Digest)
}

func copyStatements(ctx context.Context, from, to name.Digest) error {
	bundles, err := referrers.Bundles(ctx, from)
	if err != nil {
		return err
	}
	if len(bundles) == 0 {
		return fmt.Errorf("%s has no statements to copy", from)
	}
	for _, bundle := range bundles {
		// The type is a hint for who lists them; the gate reads the bundle.
		if err := referrers.Attach(ctx, to, bundle, "https://sigstore.dev/cosign/sign/v1"); err != nil {
			return err
		}
	}
	return nil
}
