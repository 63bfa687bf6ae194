package build

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// Credentials finds the credentials of a registry.
type Credentials interface {
	Resolve(authn.Resource) (authn.Authenticator, error)
}

// solve has the daemon build and push, and returns the digest of the index.
func (b Builder) solve(ctx context.Context, r Request, report func(string)) (string, Steps, error) {
	options, err := b.options(r)
	if err != nil {
		return "", Steps{}, err
	}
	defer tooltime.Begin(ctx, "BuildKit")()
	c, err := client.New(ctx, b.Address)
	if err != nil {
		return "", Steps{}, fmt.Errorf("connecting to BuildKit at %s: %w", b.Address, err)
	}
	defer c.Close() //nolint:errcheck // all is answered by then
	if _, err := c.Info(ctx); err != nil {
		return "", Steps{}, fmt.Errorf("asking BuildKit at %s: %w; start buildkitd, or name its socket", b.Address, err)
	}
	var response *client.SolveResponse
	status := make(chan *client.SolveStatus)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		response, err = c.Solve(groupCtx, nil, options, status)
		return err
	})
	seen := progress{report: report}
	group.Go(func() error {
		seen.follow(status)
		return nil
	})
	if err := group.Wait(); err != nil {
		return "", Steps{}, seen.explain(err)
	}
	digest := response.ExporterResponse["containerimage.digest"]
	if _, err := name.NewDigest(r.Repositories[0].String() + "@" + digest); err != nil {
		return "", Steps{}, fmt.Errorf("BuildKit answered no digest but %q: %w", digest, err)
	}
	return digest, seen.steps(), nil
}

func (b Builder) options(r Request) (client.SolveOpt, error) {
	files, err := fsutil.NewFS(r.Context)
	if err != nil {
		return client.SolveOpt{}, fmt.Errorf("reading the build context %s: %w", r.Context, err)
	}
	options := client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: r.frontend(),
		LocalMounts:   map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports:       []client.ExportEntry{{Type: client.ExporterImage, Attrs: r.exporter()}},
		Session:       []session.Attachable{b.auth()},
	}
	if r.Cache != "" {
		cache := func(more map[string]string) []client.CacheOptionsEntry {
			attrs := map[string]string{"ref": r.Cache}
			if r.Repositories[0].Scheme() == "http" {
				attrs["registry.insecure"] = "true"
			}
			for key, value := range more {
				attrs[key] = value
			}
			return []client.CacheOptionsEntry{{Type: "registry", Attrs: attrs}}
		}
		options.CacheImports = cache(nil)
		// The cache only saves time: a build does not fail for want of it.
		options.CacheExports = cache(map[string]string{"mode": "max", "oci-mediatypes": "true", "image-manifest": "true", "ignore-error": "true"})
	}
	return options, r.replaceBases(&options)
}

// frontend is what the Dockerfile frontend is told:
// https://github.com/moby/buildkit/blob/v0.34.2/frontend/dockerui/config.go.
func (r Request) frontend() map[string]string {
	attrs := map[string]string{
		"filename": r.Dockerfile,
		"platform": strings.Join(r.Platforms, ","),
		// One platform is an index too: what is signed and scanned has one shape.
		"multi-platform": "true",
	}
	for key, value := range r.args() {
		attrs["build-arg:"+key] = value
	}
	for key, value := range r.annotations() {
		attrs["label:"+key] = value
	}
	return attrs
}

// exporter is what the image exporter is told:
// https://github.com/moby/buildkit/blob/v0.34.2/exporter/containerimage/exptypes/keys.go.
func (r Request) exporter() map[string]string {
	attrs := map[string]string{
		"name": r.Repositories[0].String(), "push": "true", "push-by-digest": "true", "name-canonical": "true", "store": "false",
		"oci-mediatypes": "true", "rewrite-timestamp": "true",
		// Layers that were pulled keep their compression otherwise, and then the
		// digest depends on what the daemon had.
		"compression": "gzip", "force-compression": "true",
	}
	if r.Repositories[0].Scheme() == "http" {
		attrs["registry.insecure"] = "true"
	}
	for key, value := range r.annotations() {
		attrs["annotation."+key] = value
		attrs["annotation-index."+key] = value
	}
	return attrs
}

// otherImage begins the replacement of a base image by an image of a registry.
const otherImage = "docker-image://"

// replaceBases makes others take the place of the images that the Dockerfile names, which
// stays as it is, digests included.
func (r Request) replaceBases(options *client.SolveOpt) error {
	bases, err := r.bases()
	if err != nil {
		return err
	}
	for _, base := range bases {
		replacement, ok := r.BaseImages[base.Name]
		if !ok {
			continue
		}
		name, err := contextName(base)
		if err == nil && !strings.HasPrefix(replacement, otherImage) {
			replacement, err = addLayout(options, replacement)
		}
		if err != nil {
			return fmt.Errorf("replacing the base image %s by %s: %w", base.Name, r.BaseImages[base.Name], err)
		}
		options.FrontendAttrs["context:"+name] = replacement
	}
	return nil
}

// addLayout makes an OCI layout known to the daemon, and returns what it is called there.
func addLayout(options *client.SolveOpt, dir string) (string, error) {
	digest, err := onlyImage(dir)
	if err != nil {
		return "", err
	}
	store, err := local.NewStore(dir)
	if err != nil {
		return "", err
	}
	if options.OCIStores == nil {
		options.OCIStores = map[string]content.Store{}
	}
	id := fmt.Sprintf("layout-%d", len(options.OCIStores))
	options.OCIStores[id] = store
	return "oci-layout://" + id + "@" + digest, nil
}

func onlyImage(dir string) (string, error) {
	path, err := layout.FromPath(dir)
	if err != nil {
		return "", err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return "", err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return "", err
	}
	if len(manifest.Manifests) != 1 {
		return "", fmt.Errorf("it holds %d images, and should hold one", len(manifest.Manifests))
	}
	return manifest.Manifests[0].Digest.String(), nil
}

// auth answers the daemon's questions for credentials during the build.
func (b Builder) auth() session.Attachable {
	return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: func(_ context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
			if b.Credentials == nil {
				return types.AuthConfig{}, nil
			}
			config, err := credentials(b.Credentials, host)
			if err != nil {
				return types.AuthConfig{}, fmt.Errorf("finding the credentials of %s: %w", host, err)
			}
			return types.AuthConfig{
				Username: config.Username, Password: config.Password, Auth: config.Auth,
				IdentityToken: config.IdentityToken, RegistryToken: config.RegistryToken, ServerAddress: host,
			}, nil
		},
	})
}

func credentials(from Credentials, host string) (*authn.AuthConfig, error) {
	registry, err := name.NewRegistry(host)
	if err != nil {
		return nil, err
	}
	authenticator, err := from.Resolve(registry)
	if err != nil {
		return nil, err
	}
	if authenticator == nil {
		return nil, errors.New("nothing was found, not even that none are needed")
	}
	return authenticator.Authorization()
}
