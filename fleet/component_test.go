package fleet

import (
	"strings"
	"testing"
	"testing/fstest"
)

const gateKustomization = `# The gate.
kind: Kustomization
resources: [deployment.yaml]
images:
  - name: ghcr.io/omnivision/other # stays
    newTag: "1.10"
    digest: ""
  - name: omnivision-gate
    newName: ghcr.io/omnivision/omnivision-gate
    newTag: "0.1.0" # of people
    digest: ""
`

func TestAComponentsImageIsSetInPlace(t *testing.T) {
	const file = "components/gate/manifests/kustomization.yaml"
	tree := fstest.MapFS{
		file:                                    {Data: []byte(gateKustomization)},
		"components/traefik/kustomization.yaml": {Data: []byte("resources: [application.yaml]\n")},
		"apps/kustomization.yaml":               {Data: []byte("images: none\n")},
	}
	images, err := ComponentImages(tree)
	if err != nil || len(images) != 2 {
		t.Fatalf("images are %v, %v", images, err)
	}
	gate := images[1]
	if gate.Name != "ghcr.io/omnivision/omnivision-gate" || gate.File != file || gate.Release != (Release{Tag: "0.1.0"}) {
		t.Errorf("the gate's image is %+v", gate)
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	after, err := SetComponentImage([]byte(gateKustomization), gate, Release{Tag: "1.20", Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(gateKustomization, `"0.1.0"`, `"1.20"`, 1)
	at := strings.LastIndex(want, `""`)
	want = want[:at] + `"` + digest + `"` + want[at+2:]
	if string(after) != want {
		t.Errorf("the file is\n%s\nwant\n%s", after, want)
	}
	if _, err := SetComponentImage([]byte(gateKustomization), gate, Release{Tag: "latest", Digest: digest}); err == nil {
		t.Error("the tag latest was set")
	}
	if _, err := SetComponentImage([]byte(gateKustomization), gate, Release{Tag: "1"}); err == nil {
		t.Error("an image without a digest was set")
	}
}

func TestAComponentsImageThatCannotBeSetIsAProblem(t *testing.T) {
	for _, images := range []string{"  - name: x\n    newTag: 1.10\n    digest: \"\"\n", "  - name: x\n    newTag: \"1\"\n", "  - name: x\n    newTag: \"latest\"\n    digest: \"\"\n", "  - x\n"} {
		tree := fstest.MapFS{"components/gate/kustomization.yaml": {Data: []byte("images:\n" + images)}}
		if found, err := ComponentImages(tree); err == nil {
			t.Errorf("%q is taken for %v", images, found)
		}
	}
	if found, err := ComponentImages(fstest.MapFS{}); err != nil || len(found) > 0 {
		t.Errorf("a tree without components: %v, %v", found, err)
	}
}
