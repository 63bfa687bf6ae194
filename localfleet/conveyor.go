package localfleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/internal/filelock"
	"github.com/omnivision/omnivision/internal/git"
	"github.com/omnivision/omnivision/localfleet/advisories"
	"github.com/omnivision/omnivision/localfleet/buildkit"
	"github.com/omnivision/omnivision/localfleet/edge/front"
	"github.com/omnivision/omnivision/localfleet/edge/target"
	"github.com/omnivision/omnivision/localfleet/engine"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/goproxy"
	"github.com/omnivision/omnivision/localfleet/image"
	"github.com/omnivision/omnivision/localfleet/inside"
	"github.com/omnivision/omnivision/localfleet/issuer"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/sigstore"
	"github.com/omnivision/omnivision/localfleet/story"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// conveyorEngines are built at the first release, not by Up.
var conveyorEngines = []string{"buildkit"}

// conveyorUser opens the pull requests of releases.
const conveyorUser = "omnivision-conveyor"

// forgeTokenName is the conveyor's token at the forge, and the secret of its workflows.
const (
	forgeTokenName   = "conveyor"
	forgeTokenSecret = "OMNIVISION_FORGE_TOKEN"
)

// runnerDaemon is the runner's name at the supervisor.
const runnerDaemon = "gitea-runner"

// buildCacheBytes is what BuildKit keeps for later builds.
const buildCacheBytes = 12e9

// ConveyorSteps is the story of what a release needs around it: BuildKit, a scanner with
// its database, a Sigstore, and the runner of the workflows.
func (f *Fleet) ConveyorSteps() []story.Step {
	return []story.Step{
		{Name: "forge", Run: f.reopenForge},
		{Name: "conveyor's engines", Run: f.buildConveyorEngines},
		{Name: "view from inside", Run: f.startView},
		{Name: "Go modules", Run: f.startModules},
		{Name: "base images", Run: f.baseImages},
		{Name: "conveyor's account", After: []string{"forge"}, Run: f.conveyorAccount},
		{Name: "BuildKit", After: []string{"conveyor's engines", "view from inside"}, Run: f.startBuildKit},
		{Name: "identity issuer", After: []string{"forge"}, Run: f.startIssuer},
		{Name: "Sigstore", After: []string{"conveyor's engines", "view from inside", "identity issuer"}, Run: f.startSigstore},
		{Name: "vulnerability database", Run: f.vulnerabilityDatabase},
		{Name: "runner", After: []string{
			"conveyor's account", "BuildKit", "Sigstore", "vulnerability database", "Go modules", "base images",
		}, Run: f.startRunner},
	}
}

// StartConveyor brings up what a release needs, and keeps what runs. Two commands take
// turns.
func (f *Fleet) StartConveyor(ctx context.Context, watcher story.Watcher) error {
	if _, ok := f.sup.Running("gitea"); !ok {
		return errors.New("the fleet is not up: start it with 'omnivision up'")
	}
	unlock, err := filelock.Acquire(ctx, f.path("conveyor.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := story.Run(ctx, f.ConveyorSteps(), watcher); err != nil {
		return err
	}
	return writeJSON(f.path(conveyorSubstitutes), f.substitutes.sorted())
}

func (f *Fleet) reopenForge(ctx context.Context, _ func(string)) (err error) {
	f.forge, err = f.openForge(ctx)
	return err
}

func (f *Fleet) buildConveyorEngines(ctx context.Context, report func(string)) error {
	return f.Store.Ensure(ctx, conveyorEngines, func(e engine.Event) { report(buildProgress(e)) })
}

// startView makes the machine be seen as from inside the fleet.
func (f *Fleet) startView(ctx context.Context, _ func(string)) error {
	authority, err := f.edgeAuthority()
	if err != nil {
		return err
	}
	view := inside.View{
		Dir: f.path("inside"), NetNS: topology.HubNS, Address: topology.HubAddress,
		Hosts: f.allHosts(), CA: authority.CertPEM(),
	}
	_, err = view.Start(ctx, f.sup)
	return err
}

// ModulesCommand is the hidden subcommand that serves Go modules to the fleet.
const ModulesCommand = "modules"

const modulesDaemon = "modules"

func (f *Fleet) startModules(ctx context.Context, _ func(string)) error {
	program, err := ownProgram()
	if err != nil {
		return err
	}
	// The go command of the machine says where modules come from: it sees what its user sees.
	_, err = f.sup.Start(ctx, process.Spec{
		Name: modulesDaemon, Path: program, Args: []string{ModulesCommand}, Env: goEnvironment(), StopGrace: time.Second,
	})
	if err != nil {
		return err
	}
	transport := hubTransport()
	defer transport.CloseIdleConnections()
	return f.sup.Wait(ctx, modulesDaemon, 30*time.Second, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodHead, goproxy.URL, nil)
		if err != nil {
			return err
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return fmt.Errorf("waiting for its port: %w", err)
		}
		return response.Body.Close()
	})
}

// goEnvironment is what of the caller's environment the go command looks at. The rest
// differs from shell to shell, and would restart what is started with it.
func goEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		switch strings.ToUpper(name) {
		case "PATH", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR":
			return false
		}
		return !strings.HasPrefix(name, "GO")
	})
}

// baseImages brings the base images of the Dockerfiles to the registries that they name.
func (f *Fleet) baseImages(ctx context.Context, report func(string)) error {
	transport := hubTransport()
	defer transport.CloseIdleConnections()
	builder := f.imageBuilder(report)
	for _, reference := range image.Bases {
		base, err := builder.ObtainBase(ctx, reference)
		if err != nil {
			return err
		}
		if base.Substitute != "" {
			f.substitute("image "+reference, base.Substitute)
		}
		report(reference)
		if err := base.Push(ctx, "http://"+registryAddress, transport); err != nil {
			return err
		}
	}
	return nil
}

// conveyorAccount makes who opens the pull requests, and lends the workflows its token.
func (f *Fleet) conveyorAccount(ctx context.Context, _ func(string)) error {
	if err := f.forge.EnsureUser(ctx, conveyorUser); err != nil {
		return err
	}
	if err := f.forge.EnsureWriter(ctx, f.gitopsRepository(), conveyorUser); err != nil {
		return err
	}
	token, err := f.forge.EnsureToken(ctx, gitea.Token{Name: forgeTokenName, User: conveyorUser, Scopes: []string{"read:user", "write:issue", "write:repository"}})
	if err != nil {
		return err
	}
	for _, repo := range f.ownRepositories() {
		if err := f.forge.SetSecret(ctx, repo, forgeTokenSecret, token); err != nil {
			return err
		}
	}
	// The checks of the source bring up a fleet of their own.
	if err := f.forge.SetVariable(ctx, f.sourceRepository(), "OMNIVISION_CHECKS", "off"); err != nil {
		return err
	}
	return f.forge.SetVariable(ctx, f.gitopsRepository(), "OMNIVISION_FORGE_LOGIN", conveyorUser)
}

func (f *Fleet) startBuildKit(ctx context.Context, _ func(string)) error {
	server, err := f.buildKit()
	if err != nil {
		return err
	}
	return server.Start(ctx, f.sup)
}

func (f *Fleet) buildKit() (buildkit.Server, error) {
	program, err := f.program("buildkitd")
	if err != nil {
		return buildkit.Server{}, err
	}
	holder, err := inside.Holder(f.sup)
	if err != nil {
		return buildkit.Server{}, err
	}
	return buildkit.Server{
		Binary: program, Dir: filepath.Join(f.CacheDir, "buildkit"), Run: f.path("buildkit"),
		NetNS: topology.HubNS, MountNS: holder, GID: runnerUID,
		Cgroup: "/" + topology.Cgroup + "/buildkit", CacheBytes: buildCacheBytes,
	}, nil
}

// IssuerCommand is the hidden subcommand that runs the issuers.
const IssuerCommand = "issuer"

// startIssuer starts who lends identities: to jobs that run, and to root at a shell.
func (f *Fleet) startIssuer(ctx context.Context, _ func(string)) error {
	program, err := ownProgram()
	if err != nil {
		return err
	}
	daemon := issuer.Daemon{
		Program: program, Args: []string{IssuerCommand}, NetNS: topology.HubNS,
		Config: issuer.Config{
			StateDir: f.path("issuer"),
			Actions: issuer.ActionsConfig{
				Listen: actionsAddress, ForgeURL: strings.TrimSuffix(f.forge.URL(), "/"),
				ForgeTokenFile: f.forge.TokenFile("fleet"), RuntimeSecretFile: f.forge.RuntimeSecretFile(),
			},
			People: issuer.PeopleConfig{Listen: peopleAddress, Socket: f.issuerSocket()},
		},
	}
	return daemon.Start(ctx, f.sup)
}

func (f *Fleet) issuerSocket() string { return f.path("issuer", "people.sock") }

func (f *Fleet) startSigstore(ctx context.Context, _ func(string)) error {
	server, err := f.sigstore()
	if err != nil {
		return err
	}
	return server.Start(ctx, f.sup)
}

func (f *Fleet) sigstore() (sigstore.Server, error) {
	holder, err := inside.Holder(f.sup)
	if err != nil {
		return sigstore.Server{}, err
	}
	// Its keys and log outlive the fleet, as what they vouch for in the registry does.
	server := sigstore.Server{Dir: filepath.Join(f.CacheDir, "sigstore"), NetNS: topology.HubNS, MountNS: holder, UID: sigstoreUID, GID: sigstoreUID}
	for name, path := range map[string]*string{
		"fulcio": &server.Programs.Fulcio, "rekor-server": &server.Programs.Rekor, "timestamp-server": &server.Programs.Timestamp,
	} {
		if *path, err = f.program(name); err != nil {
			return sigstore.Server{}, err
		}
	}
	return server, nil
}

// vulnerabilityDatabase brings a database to where Trivy downloads its own from.
func (f *Fleet) vulnerabilityDatabase(ctx context.Context, _ func(string)) error {
	dir, err := os.MkdirTemp("", "omnivision-advisories-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	if err := advisories.Write(ctx, dir, time.Now()); err != nil {
		return err
	}
	database, err := advisories.Artifact(dir)
	if err != nil {
		return err
	}
	transport := hubTransport()
	defer transport.CloseIdleConnections()
	for _, reference := range advisories.References {
		if _, err := image.Push(ctx, database, reference, "http://"+registryAddress, transport); err != nil {
			return err
		}
	}
	return nil
}

// startRunner registers the runner that executes workflows.
func (f *Fleet) startRunner(ctx context.Context, _ func(string)) error {
	program, err := f.program("runner")
	if err != nil {
		return err
	}
	holder, err := inside.Holder(f.sup)
	if err != nil {
		return err
	}
	env, err := f.conveyorEnvironment()
	if err != nil {
		return err
	}
	return f.forge.EnsureRunner(ctx, gitea.Runner{
		Name: runnerDaemon, Program: program, DataDir: f.path("runner"), NetNS: topology.HubNS, MountNS: holder, UID: runnerUID, GID: runnerUID,
		ForgeURL: strings.TrimSuffix(f.forge.RootURL(), "/"), Env: env,
	})
}

// conveyorEnvironment is what tells programs inside the fleet where its servers are.
func (f *Fleet) conveyorEnvironment() ([]string, error) {
	env, err := f.witnessEnvironment()
	if err != nil {
		return nil, err
	}
	server, err := f.buildKit()
	if err != nil {
		return nil, err
	}
	var bases []string
	for _, reference := range image.Bases {
		bases = append(bases, reference+"=docker-image://"+reference)
	}
	return append(env,
		"OMNIVISION_BASE_IMAGES="+strings.Join(bases, " "),
		"OMNIVISION_RELEASE_FLAGS="+f.assembledFlags(),
		"GOPROXY="+goproxy.URL,
		"BUILDKIT_HOST="+server.Address(),
		"ACTIONS_ID_TOKEN_REQUEST_URL="+issuer.ActionsURL+"/token",
	), nil
}

// ownProgramDir is a folder with a copy of this program, which the runner's user may
// execute wherever the checkout is.
func (f *Fleet) ownProgramDir() (string, error) {
	program, err := ownProgram()
	if err != nil {
		return "", err
	}
	dir := f.path("conveyor", "bin")
	if err := makeDirs(dir); err != nil {
		return "", err
	}
	copied := filepath.Join(dir, "omnivision")
	if sameFile(program, copied) {
		return dir, nil
	}
	return dir, copyProgram(program, copied)
}

// sameFile compares size and time: a copy is given those of what it was made of.
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && one.Size() == other.Size() && one.ModTime().Equal(other.ModTime())
}

func copyProgram(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close() //nolint:errcheck // read only
	info, err := source.Stat()
	if err != nil {
		return err
	}
	unfinished := to + ".new"
	target, err := os.OpenFile(unfinished, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	if err := errors.Join(err, target.Close(), os.Chtimes(unfinished, info.ModTime(), info.ModTime())); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return os.Rename(unfinished, to)
}

// Addresses of the issuers in the hub.
const (
	actionsAddress = "127.0.0.1:3005"
	peopleAddress  = "127.0.0.1:3006"
)

// conveyorRoutes are the names of the public Sigstore and of GitHub's token issuer, with
// who answers for them inside the fleet. Nobody does until the first release.
func conveyorRoutes() []front.Route {
	backends := sigstore.Server{}.Backends()
	backends[hostOf(strings.TrimPrefix(issuer.ActionsURL, "https://"))] = actionsAddress
	backends[hostOf(strings.TrimPrefix(issuer.PeopleURL, "https://"))] = peopleAddress
	var routes []front.Route
	for _, host := range sortedKeys(backends) {
		routes = append(routes, front.Route{
			Hosts: []string{host}, Kind: front.Proxy, Target: target.Target{NetNS: topology.HubNS, Address: backends[host]},
		})
	}
	return routes
}

// allHosts are all names that the fleet answers for.
func (f *Fleet) allHosts() []string {
	forges, registries := f.hosts()
	all := slices.Concat(forges, registries)
	for _, route := range conveyorRoutes() {
		all = append(all, route.Hosts...)
	}
	return all
}

// Inside returns the environment of a command at a shell that is to see the fleet from
// inside, and a function that starts it there. The conveyor must have been started.
func (f *Fleet) Inside(ctx context.Context) (env []string, start func(func() error) error, err error) {
	holder, err := inside.Holder(f.sup)
	if err != nil {
		return nil, nil, err
	}
	if env, err = f.conveyorEnvironment(); err != nil {
		return nil, nil, err
	}
	token, err := os.ReadFile(f.forge.TokenFile(forgeTokenName))
	if err != nil {
		return nil, nil, fmt.Errorf("read the conveyor's token at the forge: %w", err)
	}
	identity, err := issuer.PersonToken(ctx, f.issuerSocket(), "sigstore", person(ctx))
	if err != nil {
		return nil, nil, err
	}
	env = append(env, forgeTokenSecret+"="+strings.TrimSpace(string(token)), "SIGSTORE_ID_TOKEN="+identity)
	return env, func(run func() error) error { return process.Within(topology.HubNS, holder, run) }, nil
}

// person is the address that whoever is at the shell commits with.
func person(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	address, err := git.Own(".").Line(ctx, "config", "user.email")
	if err != nil || !strings.Contains(address, "@") {
		return "operator@omnivision.invalid"
	}
	return address
}
