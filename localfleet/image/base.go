package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/omnivision/omnivision/localfleet/goproxy"
)

// Base is a base image of this project's Dockerfiles: an index, since one is wanted for
// each platform that is built for.
type Base struct {
	Reference string
	// Substitute is empty when the image is upstream's own.
	Substitute string
	index      v1.ImageIndex
}

// Bases are the base images that the Dockerfiles name. A test compares.
var Bases = []string{golangReference, distrolessReference, gitReference}

const (
	golangReference     = "docker.io/library/golang:1.26.8-bookworm"
	distrolessReference = "gcr.io/distroless/base-nossl-debian12:nonroot"
	gitReference        = "docker.io/alpine/git:v2.54.0"
)

// ObtainBase returns a base image: upstream's own where its registry can be reached,
// otherwise one that is assembled.
func (b *Builder) ObtainBase(ctx context.Context, reference string) (*Base, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, fmt.Errorf("reading the image reference %q: %w", reference, err)
	}
	if !b.Offline && b.probe(ctx, ref) == nil {
		index, err := remote.Index(ref, b.remoteOptions(ctx)...)
		if err != nil {
			return nil, fmt.Errorf("pulling %s: %w", reference, err)
		}
		return &Base{Reference: reference, index: index}, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	recipes, err := baseRecipes(reference)
	if err != nil {
		return nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, recipe := range recipes {
		img, err := b.assemble(ctx, recipe)
		if err != nil {
			return nil, fmt.Errorf("assembling %s for %s: %w", reference, recipe.arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: runtime.GOOS, Architecture: recipe.arch},
		}})
	}
	return &Base{Reference: reference, Substitute: recipes[0].Substitute, index: index}, nil
}

// Push brings the base image to the registry at base, as the function [Push] does an image.
func (i *Base) Push(ctx context.Context, base string, rt http.RoundTripper) error {
	_, err := push(ctx, i.index, i.Reference, base, rt, func(target name.Reference, options ...remote.Option) error {
		return remote.WriteIndex(target, i.index, options...)
	})
	return err
}

func baseRecipes(reference string) ([]Recipe, error) {
	switch reference {
	case golangReference:
		return []Recipe{golang()}, nil
	case distrolessReference:
		return []Recipe{distroless("amd64"), distroless("arm64")}, nil
	case gitReference:
		return []Recipe{git("amd64"), git("arm64")}, nil
	}
	return nil, fmt.Errorf("no base image can be made for %s, only for %s", reference, strings.Join(Bases, ", "))
}

// golang is Go's own distribution, from its module, on Debian's compilers: also those for
// the other platform, which the Dockerfile installs where they are missing.
func golang() Recipe {
	version := strings.TrimSuffix(golangReference[strings.LastIndex(golangReference, ":")+1:], "-"+suite)
	return Recipe{
		Reference:  golangReference,
		Made:       "Go " + version + " from its module, with GCC of Debian " + suite,
		Substitute: "the base image golang is Go " + version + " from its module on Debian packages, and takes modules by way of this machine",
		base:       "golang", arch: runtime.GOARCH,
		fill: func(f *filler) error {
			f.toolchain(version, "usr/local/go")
			f.dir("go", 0o777, 0, 0)
			return f.err
		},
		config: v1.Config{
			WorkingDir: "/go", Cmd: []string{"bash"},
			Env: []string{
				"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				"GOLANG_VERSION=" + version, "GOTOOLCHAIN=local", "GOPATH=/go", "GOPROXY=" + goproxy.URL,
			},
		},
	}
}

func distroless(arch string) Recipe {
	return Recipe{
		Reference:  distrolessReference,
		Made:       "glibc and certificates of Debian " + suite,
		Substitute: "the base image distroless/base-nossl is unpacked from the same Debian packages",
		base:       "base-nossl-" + arch, arch: arch,
		fill: func(f *filler) error {
			f.dir("home/nonroot", 0o700, 65532, 65532)
			return f.err
		},
		config: v1.Config{
			User: "65532", WorkingDir: "/home/nonroot",
			Env: []string{defaultPath, "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
		},
	}
}

// git is Debian's, where upstream's is Alpine's.
func git(arch string) Recipe {
	return Recipe{
		Reference:  gitReference,
		Made:       "git of Debian " + suite,
		Substitute: "the base image alpine/git is git of Debian " + suite + " with what it needs, instead of Alpine's 2.54",
		base:       "git-" + arch, arch: arch,
		fill: func(f *filler) error { return f.err },
		config: v1.Config{
			WorkingDir: "/git", Entrypoint: []string{"git"}, Cmd: []string{"--help"}, Env: []string{defaultPath},
		},
	}
}

// toolchain places a release of Go as its own archive would unpack it.
func (f *filler) toolchain(version, at string) {
	if f.err != nil {
		return
	}
	dir, err := downloadToolchain(version)
	if err == nil {
		err = f.distribution(dir, at)
	}
	if err != nil {
		f.err = fmt.Errorf("placing Go %s: %w", version, err)
	}
}

// downloadToolchain gets a release of Go from the module proxy, which checks it by the
// checksum database: https://go.dev/doc/toolchain.
func downloadToolchain(version string) (string, error) {
	module := fmt.Sprintf("golang.org/toolchain@v0.0.1-go%s.%s-%s", version, runtime.GOOS, runtime.GOARCH)
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := output(cmd, "downloading "+module)
	if err != nil {
		return "", err
	}
	var answer struct{ Dir, Error string }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return "", fmt.Errorf("downloading %s: %w", module, err)
	}
	if answer.Error != "" || answer.Dir == "" {
		return "", fmt.Errorf("downloading %s: %s", module, answer.Error)
	}
	return answer.Dir, nil
}

// distribution adds Go's files without tests. A module can hold neither modes nor the
// go.mod files of other modules: those are called _go.mod in it.
func (f *filler) distribution(dir, at string) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == "test" || rel == "api" || rel == "doc" || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return errors.New(rel + " is no regular file")
		}
		if strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(rel, "bin/") || strings.HasPrefix(rel, "pkg/tool/") {
			mode = 0o755
		}
		target := path.Join(at, filepath.ToSlash(rel))
		if d.Name() == "_go.mod" {
			target = path.Join(path.Dir(target), "go.mod")
		}
		return f.host(target, file, mode)
	})
}
