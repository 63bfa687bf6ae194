package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// componentsDir holds what every cluster gets beside the apps.
const componentsDir = "components"

// ComponentImage is an image of a component whose tag and digest stand in the `images` of a
// kustomization, the same for every cluster.
type ComponentImage struct {
	Name    string // the repository, without tag
	File    string // of the kustomization
	Release Release

	index int // in images
}

// ComponentImages lists the images that kustomizations of components set, in the order of
// their files.
func ComponentImages(tree fs.FS) ([]ComponentImage, error) {
	var all []ComponentImage
	err := fs.WalkDir(tree, componentsDir, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && file == componentsDir:
			return fs.SkipAll
		case err != nil:
			return err
		case entry.IsDir() || path.Base(file) != "kustomization.yaml":
			return nil
		}
		found, err := componentImages(tree, file)
		all = append(all, found...)
		return err
	})
	return all, err
}

func componentImages(tree fs.FS, file string) ([]ComponentImage, error) {
	src, err := fs.ReadFile(tree, file)
	if err != nil {
		return nil, err
	}
	return parseComponentImages(file, src)
}

func parseComponentImages(file string, src []byte) ([]ComponentImage, error) {
	doc, err := parse(file, src)
	if err != nil {
		return nil, err
	}
	images := child(doc, "images")
	if images == nil || images.Kind != yaml.SequenceNode {
		return nil, nil
	}
	var all []ComponentImage
	for i, node := range images.Content {
		image := ComponentImage{File: file, index: i}
		for _, part := range []struct {
			key   string
			value *string
		}{{"name", &image.Name}, {"newTag", &image.Release.Tag}, {"digest", &image.Release.Digest}} {
			value := child(node, part.key)
			if value == nil || value.Kind != yaml.ScalarNode || value.Tag != "!!str" {
				return nil, Problem{File: file, Line: node.Line, Message: fmt.Sprintf("an image without %s as a string", part.key), Fix: "write name, newTag and digest, each in quotes; the digest is \"\" before the first release"}
			}
			*part.value = value.Value
		}
		if renamed := child(node, "newName"); renamed != nil {
			image.Name = renamed.Value
		}
		if p := image.Release.problem(); p != "" {
			return nil, Problem{File: file, Line: node.Line, Message: image.Name + ": " + p, Fix: "a release writes tag and digest together, as the registry has them"}
		}
		all = append(all, image)
	}
	return all, nil
}

// SetComponentImage returns the bytes of a kustomization with another image. Everything else
// in it stays as it is.
func SetComponentImage(src []byte, image ComponentImage, r Release) ([]byte, error) {
	if r.Tag == "" || r.Digest == "" {
		return nil, errors.New("setting a release takes a tag and a digest")
	}
	if p := r.problem(); p != "" {
		return nil, fmt.Errorf("setting a release of %s: %s", image.Name, p)
	}
	at := strconv.Itoa(image.index)
	return Set(src,
		Change{Path: []string{"images", at, "newTag"}, Value: r.Tag},
		Change{Path: []string{"images", at, "digest"}, Value: r.Digest})
}
