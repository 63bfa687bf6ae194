package localfleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/engine"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/image"
	"github.com/omnivision/omnivision/localfleet/mirror"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/registry"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// Addresses of the servers inside the hub's namespace.
const (
	forgeAddress    = "127.0.0.1:3000"
	registryAddress = registry.DefaultAddress
)

// hubTransport reaches servers inside the hub.
func hubTransport() *http.Transport {
	return &http.Transport{DialContext: netns.Dialer(topology.HubNS), MaxIdleConnsPerHost: 8, IdleConnTimeout: 10 * time.Second}
}

func (f *Fleet) startRegistry(ctx context.Context, _ func(string)) error {
	program, err := f.program("registry")
	if err != nil {
		return err
	}
	// What the registry stores outlives the fleet: the next Up finds every
	// image there by its digest, or pushes it again.
	server := registry.Server{
		Binary: program, Dir: filepath.Join(f.CacheDir, "registry"), NetNS: topology.HubNS,
		UID: registryUID, GID: registryUID,
	}
	if err := f.forgetEarlier(server); err != nil {
		return err
	}
	return server.Start(ctx, f.sup)
}

// registryLimit is how many bytes earlier fleets may leave in the registry. One fleet and its end-to-end test leave a third of it.
const registryLimit = 6 << 30

// forgetEarlier empties the registry where it has grown by the work of many fleets, and takes
// the names off the images that an earlier fleet released. Its forge is gone, and with it the
// commits that its versions counted: this fleet counts anew, and a name that is taken is never
// given to another image.
func (f *Fleet) forgetEarlier(server registry.Server) error {
	// Gone with the fleet's state, and written last: an Up that was killed does it again.
	done := f.path("earlier-releases-forgotten")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := server.Shrink(registryLimit); err != nil {
		return err
	}
	repositories, err := f.releasedRepositories()
	if err != nil {
		return err
	}
	for _, repository := range repositories {
		if err := server.ForgetTags(repository); err != nil {
			return err
		}
	}
	if err := makeDirs(f.StateDir); err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o644)
}

// releasedRepositories are those that releases push to.
func (f *Fleet) releasedRepositories() ([]string, error) {
	var all []string
	for _, cluster := range f.Tree.Clusters {
		for _, app := range f.Tree.Apps {
			all = append(all, cluster.ImageRegistry+"/"+app.Repository)
		}
	}
	components, err := f.components()
	for _, component := range components {
		all = append(all, component.Name)
	}
	return all, err
}

// openForge starts the forge unless it runs.
func (f *Fleet) openForge(ctx context.Context) (*gitea.Server, error) {
	program, err := f.program("gitea")
	if err != nil {
		return nil, err
	}
	assets, err := f.Store.Asset("gitea", engine.GiteaWeb)
	if err != nil {
		return nil, err
	}
	return gitea.Start(ctx, gitea.Config{
		Supervisor: f.sup, Program: program, Assets: assets, DataDir: f.path("forge"),
		NetNS: topology.HubNS, Address: forgeAddress, UID: forgeUID, GID: forgeUID,
	})
}

func (f *Fleet) startForge(ctx context.Context, report func(string)) error {
	server, err := f.openForge(ctx)
	if err != nil {
		return err
	}
	report("accounts and organisations")
	if err := server.EnsureAdmin(ctx); err != nil {
		return err
	}
	for _, repo := range f.ownRepositories() {
		if err := server.EnsureOrganisation(ctx, repo.Owner); err != nil {
			return err
		}
		if err := server.EnsureRepository(ctx, repo, gitea.Work); err != nil {
			return err
		}
	}
	f.forge = server
	return nil
}

// gitopsRepository and sourceRepository are the fleet's own repositories.
func (f *Fleet) gitopsRepository() forge.Name { return repositoryOf(f.Tree.Repository) }

func (f *Fleet) sourceRepository() forge.Name {
	return forge.Name{Owner: f.gitopsRepository().Owner, Repository: "omnivision"}
}

func (f *Fleet) ownRepositories() []forge.Name {
	return []forge.Name{f.sourceRepository(), f.gitopsRepository()}
}

// repositoryOf takes owner and name out of a clone URL that Load has checked.
func repositoryOf(cloneURL string) forge.Name {
	_, name, err := forge.ParseURL(cloneURL)
	if err != nil {
		return forge.Name{}
	}
	return name
}

// pushTree brings the GitOps tree to the forge. The release is written into a copy: the
// checkout is the user's.
func (f *Fleet) pushTree(ctx context.Context, _ func(string)) error {
	copied, err := f.releasedTree(ctx)
	if err != nil {
		return err
	}
	defer os.RemoveAll(copied) //nolint:errcheck // a temporary folder
	if _, err := f.forge.PushTree(ctx, f.gitopsRepository(), copied, f.Tree.Branch, "Bring the working tree, with the images built from it"); err != nil {
		return err
	}
	return f.forge.ProtectMain(ctx, f.gitopsRepository(), planStatus)
}

// planStatus is the check that a change of the GitOps repository must pass.
const planStatus = "omnivision/plan"

// pushSource brings this source to the forge. What Up brings it has assembled itself: it is
// the pushes of others that are released.
func (f *Fleet) pushSource(ctx context.Context, _ func(string)) error {
	push, err := f.forge.PushTree(ctx, f.sourceRepository(), f.Source, "main", "Bring the working tree [skip ci]")
	if err != nil {
		return err
	}
	// What was there already may be under commits of others.
	if push.Pushed {
		if err := writeJSON(f.path(assembledFile), assembled{Tag: f.version.Tag, Commit: push.Commit}); err != nil {
			return err
		}
	}
	return f.forge.ProtectMain(ctx, f.sourceRepository())
}

// assembled says which commit at the forge has the source of the images that Up assembled:
// their version counts the commits of the user's checkout, and not the forge's.
type assembled struct {
	Tag    string `json:"tag"`
	Commit string `json:"commit"`
}

const assembledFile = "assembled.json"

// assembledFlags tell a release that of the assembled images only those are to be made anew
// that a commit has changed since. Without the file all are.
func (f *Fleet) assembledFlags() string {
	raw, err := os.ReadFile(f.path(assembledFile))
	var of assembled
	if err != nil || json.Unmarshal(raw, &of) != nil {
		return ""
	}
	return "--version-commit=" + of.Tag + "=" + of.Commit
}

// releasedTree copies the GitOps tree and writes tag and digest of each app's
// image for each cluster, as a release does. What the conveyor has released stays.
func (f *Fleet) releasedTree(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "omnivision-gitops-")
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(f.Source, treeDir))); err != nil {
		return dir, fmt.Errorf("copy the GitOps tree: %w", err)
	}
	onForge, unpushed := f.forgeTree(ctx)
	for _, app := range f.Tree.Apps {
		for _, cluster := range f.Tree.Clusters {
			release := f.made.releases[app.Repository]
			if unpushed == nil {
				if have, err := fleet.ReadRelease(onForge, app, cluster.Name); err == nil && !have.Empty() && !isAssembled(have.Tag) {
					release = have
				}
			}
			if err := writeRelease(filepath.Join(dir, app.ReleaseFile(cluster.Name)), app, release); err != nil {
				return dir, err
			}
		}
	}
	if unpushed == nil {
		if err := keepQuarantine(onForge, dir); err != nil {
			return dir, err
		}
	}
	if unpushed != nil {
		onForge = nil
	}
	return dir, f.releaseComponents(onForge, dir)
}

// keepQuarantine leaves what was taken back where it is: a working tree that comes again
// knows nothing of it.
func keepQuarantine(onForge fs.FS, dir string) error {
	list, err := fs.ReadFile(onForge, fleet.QuarantineFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the quarantine list: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, fleet.QuarantineFile), list, 0o644)
}

// releaseComponents writes tag and digest of the components' images. What the conveyor has
// released stays, if there is a tree at the forge yet.
func (f *Fleet) releaseComponents(onForge fs.FS, dir string) error {
	components, err := f.componentImages()
	if err != nil {
		return err
	}
	have := map[string]fleet.Release{}
	if onForge != nil {
		// A tree that does not parse has nothing to keep.
		there, _ := fleet.ComponentImages(onForge)
		for _, component := range there {
			have[component.Name] = component.Release
		}
	}
	for _, component := range components {
		release, served := f.componentRelease(component, have[component.Name])
		if !served {
			continue
		}
		err := rewrite(filepath.Join(dir, component.File), func(before []byte) ([]byte, error) {
			return fleet.SetComponentImage(before, component, release)
		})
		if err != nil {
			return fmt.Errorf("write the release of %s: %w", component.Name, err)
		}
	}
	return nil
}

// componentRelease is what a component is to run here: an image of this project as the
// conveyor released it, or else as Up built it; one of upstream's by the digest that this
// fleet serves, unless Git already names one.
func (f *Fleet) componentRelease(component fleet.ComponentImage, onForge fleet.Release) (release fleet.Release, served bool) {
	if image.Own(component.Name) {
		if !onForge.Empty() && !isAssembled(onForge.Tag) {
			return onForge, true
		}
		release, served = f.made.releases[path.Base(component.Name)]
		return release, served
	}
	if component.Release.Digest != "" {
		return fleet.Release{}, false
	}
	digest, ok := f.made.digests[component.Name+":"+component.Release.Tag]
	return fleet.Release{Tag: component.Release.Tag, Digest: digest}, ok
}

func writeRelease(path string, app fleet.App, release fleet.Release) error {
	err := rewrite(path, func(before []byte) ([]byte, error) { return fleet.SetRelease(before, app, release) })
	if err != nil {
		return fmt.Errorf("write the release of %s: %w", app.Name, err)
	}
	return nil
}

func rewrite(path string, edit func([]byte) ([]byte, error)) error {
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	after, err := edit(before)
	if err != nil {
		return err
	}
	return os.WriteFile(path, after, 0o644)
}

// pushMirrors brings the upstream repositories that the tree names to the forge.
func (f *Fleet) pushMirrors(ctx context.Context, report func(string)) error {
	for _, m := range f.mirrors {
		report(m.repo.Name())
		target := repositoryOf(m.repo.URL)
		if err := f.forge.EnsureOrganisation(ctx, target.Owner); err != nil {
			return err
		}
		if err := f.forge.EnsureRepository(ctx, target, gitea.Mirror); err != nil {
			return err
		}
		if err := f.forge.PushRepository(ctx, m.dir, target); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) mirrorDir() string { return filepath.Join(f.CacheDir, "mirrors") }

// upstream reads what a source names from the mirror of its repository. A kustomization
// may point at its neighbours.
func (f *Fleet) upstream(ctx context.Context, source fleet.Source) (fs.FS, error) {
	bare := filepath.Join(f.mirrorDir(), mirror.Repo{URL: source.RepoURL}.Name()+".git")
	dir := source.Path
	if source.Directory == nil {
		dir = path.Dir(dir)
	}
	tree, err := archive(ctx, bare, source.TargetRevision, dir)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s at %s: %w", dir, source.RepoURL, source.TargetRevision, err)
	}
	return tree, nil
}

// componentImages lists the images that components of the tree name apart from their manifests.
func (f *Fleet) componentImages() ([]fleet.ComponentImage, error) {
	all, err := fleet.ComponentImages(os.DirFS(filepath.Join(f.Source, treeDir)))
	if err != nil {
		return nil, fmt.Errorf("list the components' images: %w", err)
	}
	return all, nil
}

// components lists those of this project.
func (f *Fleet) components() ([]fleet.ComponentImage, error) {
	all, err := f.componentImages()
	return slices.DeleteFunc(all, func(c fleet.ComponentImage) bool { return !image.Own(c.Name) }), err
}

// hosts lists the production host names that the fleet answers for.
func (f *Fleet) hosts() (forges, registries []string) {
	seen := map[string]bool{}
	add := func(list *[]string, host string) {
		if host != "" && !seen[host] {
			seen[host] = true
			*list = append(*list, host)
		}
	}
	if u, err := url.Parse(f.Tree.Repository); err == nil {
		add(&forges, u.Hostname())
	}
	add(&registries, hostOf(f.Tree.Chart.Registry))
	for _, host := range front.Upstreams {
		add(&registries, host)
	}
	for _, cluster := range f.Tree.Clusters {
		add(&registries, hostOf(cluster.ImageRegistry))
	}
	return forges, registries
}

func hostOf(reference string) string {
	host, _, _ := strings.Cut(reference, "/")
	return host
}
