package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/omnivision/omnivision/internal/filelock"
)

// assembly is the version of the code that assembles. It is part of every key:
// raise it when the same input gives another image.
const assembly = "1"

// Builder makes images, and keeps what it made.
type Builder struct {
	// Cache is the directory of the cache; images live in Cache/images.
	Cache string
	// Source is the checkout of this project.
	Source string
	// Binary returns the path of an engine's program.
	Binary func(name string) (string, error)
	// Asset returns the path of an engine's asset (engine.Store.Asset).
	Asset func(engine, path string) (string, error)
	// Version and Commit are stamped into the programs of this source; empty
	// means what Git says of Source.
	Version, Commit string
	// Offline forbids asking upstream registries.
	Offline bool
	// Mirror serves Debian's archive; empty means DefaultMirror.
	Mirror string
	// Transport reaches upstream registries; nil means the default one.
	Transport http.RoundTripper
	// Report is told what takes a while; nil is allowed. It may be called from
	// several goroutines.
	Report func(what string)

	packages sync.Mutex
	programs sync.Mutex
	linked   map[string]string // paths of this source's programs, by their names
	probes   probes
}

// Image is an image with its story.
type Image struct {
	v1.Image
	// Reference is the production reference.
	Reference string
	// Made says where it comes from.
	Made string
	// Substitute is empty when the image is upstream's own.
	Substitute string
	// Bytes is the size of its layers as they are stored.
	Bytes int64
}

func (b *Builder) dir() string { return filepath.Join(b.Cache, "images") }

func (b *Builder) report(format string, args ...any) {
	if b.Report != nil {
		b.Report(fmt.Sprintf(format, args...))
	}
}

func (b *Builder) asset(engine, path string) (string, error) {
	if b.Asset == nil {
		return "", fmt.Errorf("the asset %s of engine %s is not available to this builder", path, engine)
	}
	return b.Asset(engine, path)
}

// Obtain returns the image of a production reference: upstream's own where its
// registry can be reached, otherwise the one that Build assembles.
func (b *Builder) Obtain(ctx context.Context, reference string) (*Image, error) {
	img, err := b.Upstream(ctx, reference)
	if err != nil || img != nil {
		return img, err
	}
	return b.Build(ctx, reference)
}

// Build assembles the image of a production reference, unless the cache has one
// of the same input.
func (b *Builder) Build(ctx context.Context, reference string) (*Image, error) {
	recipe, err := b.recipe(reference)
	if err != nil {
		return nil, err
	}
	img, err := b.assemble(ctx, recipe)
	if err != nil {
		return nil, fmt.Errorf("assembling %s: %w", reference, err)
	}
	return b.describe(img, reference, recipe.Made, recipe.Substitute)
}

func (b *Builder) recipe(reference string) (Recipe, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return Recipe{}, fmt.Errorf("reading the image reference %q: %w", reference, err)
	}
	recipes, err := Catalogue(b.Source)
	if err != nil {
		return Recipe{}, err
	}
	var known []string
	for _, r := range recipes {
		if r.match(ref) {
			return r, nil
		}
		known = append(known, r.Reference)
	}
	return Recipe{}, fmt.Errorf("no image can be made for %s, only for %s; a machine with internet access pulls it from upstream", reference, strings.Join(known, ", "))
}

func (b *Builder) describe(img v1.Image, reference, made, substitute string) (*Image, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	out := &Image{Image: img, Reference: reference, Made: made, Substitute: substitute}
	for _, l := range layers {
		size, err := l.Size()
		if err != nil {
			return nil, err
		}
		out.Bytes += size
	}
	return out, nil
}

// assemble is the story of an image: its base, its own files, and whether that
// was made before.
func (b *Builder) assemble(ctx context.Context, r Recipe) (v1.Image, error) {
	base, err := b.baseLayer(ctx, r.base)
	if err != nil {
		return nil, err
	}
	f := &filler{tree: tree{}, builder: b, engine: b.engineProgram, own: func(program string) (string, error) { return b.ownProgram(ctx, program) }}
	if err := r.fill(f); err != nil {
		return nil, err
	}
	key, err := imageKey(base, f.tree, r)
	if err != nil {
		return nil, err
	}
	if img, ok := b.cached(key); ok {
		return img, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	top, err := b.writeLayer(f.tree)
	if err != nil {
		return nil, err
	}
	img, err := compose(r, base, top)
	if err != nil {
		return nil, err
	}
	return img, b.remember(key, img)
}

func (b *Builder) engineProgram(binary string) (string, error) {
	if b.Binary == nil {
		return "", fmt.Errorf("the program %s is not available to this builder", binary)
	}
	return b.Binary(binary)
}

// imageKey hashes all input of an image.
func imageKey(base *blobLayer, t tree, r Recipe) (string, error) {
	h := sha256.New()
	settings, err := json.Marshal(struct {
		Assembly, OS, Arch string
		Config             v1.Config
	}{assembly, runtime.GOOS, cmp.Or(r.arch, runtime.GOARCH), r.config})
	if err != nil {
		return "", err
	}
	h.Write(settings)
	if base != nil {
		fmt.Fprintln(h, base.digest)
	}
	t.identity(h)
	return "image-" + hex.EncodeToString(h.Sum(nil)), nil
}

// compose makes the manifest and the config.
func compose(r Recipe, layers ...*blobLayer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, l := range layers {
		if l == nil {
			continue
		}
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "omnivision", Comment: r.Made}})
		if err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Created = v1.Time{Time: epoch}
	file.OS, file.Architecture = runtime.GOOS, cmp.Or(r.arch, runtime.GOARCH)
	file.Config = r.config
	return mutate.ConfigFile(img, file)
}

// blobs is where manifests, configs and layers are kept; images that share a
// layer share its file.
func (b *Builder) blobs() blobs { return blobs(filepath.Join(b.dir(), "oci")) }

// cached returns the image that was made of the input with this key, if all of
// it is still there.
func (b *Builder) cached(key string) (v1.Image, bool) {
	raw, err := os.ReadFile(b.keyPath(key))
	if err != nil {
		return nil, false
	}
	digest, err := v1.NewHash(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, false
	}
	img, err := b.blobs().image(digest)
	if err != nil {
		return nil, false
	}
	// The time of a key says when its image was last asked for; see Prune.
	now := time.Now()
	_ = os.Chtimes(b.keyPath(key), now, now)
	return img, true
}

func (b *Builder) keyPath(key string) string { return filepath.Join(b.dir(), "keys", key) }

// remember stores an image, and last of all its key.
func (b *Builder) remember(key string, img v1.Image) error {
	if err := layout.Path(b.blobs()).WriteImage(img); err != nil {
		return fmt.Errorf("storing the image: %w", err)
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	return writeFile(b.keyPath(key), []byte(digest.String()+"\n"))
}

// writeFile replaces a file in one step.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// writeLayer writes a tree as a blob.
func (b *Builder) writeLayer(t tree) (*blobLayer, error) {
	dir := filepath.Dir(b.blobs().path(v1.Hash{Algorithm: "sha256", Hex: "none"}))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	h := sha256.New()
	err = t.write(io.MultiWriter(f, h))
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return nil, err
	}
	digest := hashOf(h)
	if err := os.Rename(f.Name(), b.blobs().path(digest)); err != nil {
		return nil, err
	}
	return b.openLayer(digest)
}

func (b *Builder) openLayer(digest v1.Hash) (*blobLayer, error) {
	info, err := os.Stat(b.blobs().path(digest))
	if err != nil {
		return nil, err
	}
	return &blobLayer{path: b.blobs().path(digest), digest: digest, size: info.Size()}, nil
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// blobLayer is an uncompressed layer in a file: its content and its blob are
// the same bytes.
type blobLayer struct {
	path   string
	digest v1.Hash
	size   int64
}

func (l *blobLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *blobLayer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *blobLayer) Size() (int64, error)                 { return l.size, nil }
func (l *blobLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l *blobLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *blobLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.path) }

// packageLayers are the layers of the package sets, as they are remembered.
type packageLayers map[string]packageLayer

type packageLayer struct {
	Digest   v1.Hash  `json:"digest"`
	Packages []string `json:"packages"`
}

// baseLayer returns the layer of a package set; nil for no set. All sets of its kind are
// made when the first is asked for, and kept: an image that does not change
// must not change because Debian did.
func (b *Builder) baseLayer(ctx context.Context, set string) (*blobLayer, error) {
	if set == "" {
		return nil, nil
	}
	b.packages.Lock()
	defer b.packages.Unlock()
	sets := setsOf(set)
	if known, ok := b.knownPackages(sets)[set]; ok {
		if l, err := b.openLayer(known.Digest); err == nil {
			return l, nil
		}
	}
	layers, err := b.makePackageLayers(ctx, sets)
	if err != nil {
		return nil, err
	}
	if err := b.rememberPackages(sets, layers); err != nil {
		return nil, err
	}
	return b.openLayer(layers[set].Digest)
}

// packagesPath changes with the definition of the sets.
func (b *Builder) packagesPath(sets []packageSet) string {
	h := sha256.New()
	// The encoder fails on no type that is in here.
	_ = json.NewEncoder(h).Encode(struct {
		Assembly, Arch, Suite string
		Sets                  []packageSet
	}{assembly, runtime.GOARCH, suite, sets})
	return b.keyPath("debian-" + hashOf(h).Hex + ".json")
}

// knownPackages are the layers that were made before; none if that is unknown.
func (b *Builder) knownPackages(sets []packageSet) packageLayers {
	raw, err := os.ReadFile(b.packagesPath(sets))
	if err != nil {
		return nil
	}
	var layers packageLayers
	if json.Unmarshal(raw, &layers) != nil {
		return nil
	}
	return layers
}

func (b *Builder) rememberPackages(sets []packageSet, layers packageLayers) error {
	raw, err := json.MarshalIndent(layers, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(b.packagesPath(sets), append(raw, '\n'))
}

func (b *Builder) makePackageLayers(ctx context.Context, sets []packageSet) (packageLayers, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("unpacking Debian packages needs %s: %w; run on Debian, or on a machine that can pull the upstream images", tool, err)
		}
	}
	if err := os.MkdirAll(b.dir(), 0o755); err != nil {
		return nil, err
	}
	// The directory has a fixed name, so that a killed run's downloads are used.
	dir := filepath.Join(b.dir(), "debian")
	unlock, err := filelock.Acquire(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	layers := packageLayers{}
	// One architecture at a time: to apt it is a machine of its own.
	for _, arch := range architectures(sets) {
		d := &debian{
			dir: filepath.Join(dir, arch), arch: arch, mirror: strings.TrimSuffix(cmp.Or(b.Mirror, DefaultMirror), "/"),
			report: func(what string) { b.report("%s", what) },
		}
		if err := b.layersOf(ctx, d, sets, layers); err != nil {
			return nil, err
		}
	}
	return layers, os.RemoveAll(dir)
}

// architectures lists those of the sets, each once.
func architectures(sets []packageSet) (all []string) {
	for _, set := range sets {
		if arch := cmp.Or(set.Arch, runtime.GOARCH); !slices.Contains(all, arch) {
			all = append(all, arch)
		}
	}
	return all
}

// layersOf turns each package set of the architecture into a layer.
func (b *Builder) layersOf(ctx context.Context, d *debian, sets []packageSet, layers packageLayers) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	plans := map[string][]deb{}
	var all []deb
	for _, set := range sets {
		if cmp.Or(set.Arch, runtime.GOARCH) != d.arch {
			continue
		}
		plan, err := d.plan(ctx, set)
		if err != nil {
			return fmt.Errorf("packages of %s: %w", set.Name, err)
		}
		plans[set.Name] = plan
		for _, p := range plan {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	if err := d.download(ctx, all); err != nil {
		return err
	}
	for _, set := range sets {
		plan, ok := plans[set.Name]
		if !ok {
			continue
		}
		d.report("unpacking the packages of " + set.Name)
		t, err := d.unpack(ctx, set, plan)
		if err != nil {
			return fmt.Errorf("packages of %s: %w", set.Name, err)
		}
		layer, err := b.writeLayer(t)
		if err != nil {
			return fmt.Errorf("packages of %s: %w", set.Name, err)
		}
		made := packageLayer{Digest: layer.digest}
		for _, p := range plan {
			made.Packages = append(made.Packages, p.name+"="+p.version)
		}
		layers[set.Name] = made
	}
	return nil
}

const versionPackage = "github.com/omnivision/omnivision/internal/version"
