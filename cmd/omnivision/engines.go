package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/localfleet/engine"
)

type enginesOptions struct {
	cache, source string
	keepCaches    bool
}

func (o enginesOptions) store() *engine.Store {
	return &engine.Store{Dir: o.cache, Source: o.source, KeepCaches: o.keepCaches, SeedCache: true, Extras: localfleet.EngineExtras()}
}

func newEnginesCommand() *cobra.Command {
	var o enginesOptions
	cmd := &cobra.Command{
		Use:   "engines",
		Short: "Build, list and move the upstream programs that the local fleet runs",
		Long: `The local fleet runs upstream's own programs: Kubernetes, etcd, Argo CD, Gitea
and others. They are built once from the Go module proxy at the versions that
engines/*/go.mod pin, and kept in the cache. ` + "`pack`" + ` and ` + "`load`" + ` carry them to a
machine that has no Go, or no time.`,
		Args: cobra.NoArgs,
	}
	cmd.PersistentFlags().StringVar(&o.cache, "cache", "/var/cache/omnivision", "directory of the cache")
	cmd.PersistentFlags().StringVar(&o.source, "source", ".", "checkout of OmniVision whose engines/ pins the versions")
	cmd.AddCommand(newEnginesBuildCommand(&o), newEnginesListCommand(&o), newEnginesPackCommand(&o), newEnginesLoadCommand(&o), newEnginesPathCommand(&o), newEnginesPruneCommand(&o))
	return cmd
}

func newEnginesBuildCommand(o *enginesOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "build [NAME...]",
		Short: "Build engines that the cache lacks; all of them when none is named",
		RunE: func(cmd *cobra.Command, names []string) error {
			p := &engineProgress{out: cmd.ErrOrStderr()}
			return o.store().Ensure(cmd.Context(), names, p.report)
		},
	}
	cmd.Flags().BoolVar(&o.keepCaches, "keep-caches", false, "keep Go's module and build caches, some 20 GB, for the next build")
	return cmd
}

// engineStatus is a line of `engines list`.
type engineStatus struct {
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	Key      string          `json:"key"`
	Built    *time.Time      `json:"built,omitempty"`
	Go       string          `json:"go,omitempty"`
	Bytes    int64           `json:"bytes,omitempty"`
	Duration *engine.Seconds `json:"duration,omitempty"`
	Programs []string        `json:"programs"`
	Extras   []string        `json:"extras,omitempty"`
	Purpose  string          `json:"purpose"`
}

func newEnginesListCommand(o *enginesOptions) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the engines, their versions, and which are built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := listEngines(o.store())
			if err != nil {
				return err
			}
			switch format {
			case "json":
				return printJSON(cmd.OutOrStdout(), list)
			case "table":
				return printEngines(cmd.OutOrStdout(), list)
			}
			return fmt.Errorf("--output %q is not known; use table or json", format)
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "table", "table or json")
	return cmd
}

func listEngines(store *engine.Store) ([]engineStatus, error) {
	builds, err := store.Resolve()
	if err != nil {
		return nil, err
	}
	var list []engineStatus
	for _, b := range builds {
		s := engineStatus{Name: b.Name, Version: b.Version, Key: b.Key, Programs: b.Programs(), Purpose: b.Purpose}
		m, err := store.Manifest(b)
		if notBuilt := new(engine.NotBuiltError); err != nil && !errors.As(err, &notBuilt) {
			return nil, err
		}
		if err == nil {
			s.Built, s.Go, s.Bytes, s.Duration, s.Extras = &m.Built, m.Go, m.Size(), &m.Duration, m.Extras
		}
		list = append(list, s)
	}
	return list, nil
}

func printEngines(out io.Writer, list []engineStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVERSION\tKEY\tBUILT\tTOOK\tSIZE\tGO")
	for _, e := range list {
		built, took, size, goVersion := "no", "", "", ""
		if e.Built != nil {
			built = e.Built.Local().Format("2006-01-02 15:04")
			took = time.Duration(*e.Duration).Round(time.Second).String()
			size = fmt.Sprintf("%.0f MB", float64(e.Bytes)/1e6)
			goVersion = e.Go
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Name, e.Version, e.Key, built, took, size, goVersion)
	}
	return w.Flush()
}

func newEnginesPackCommand(o *enginesOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "pack DESTINATION [NAME...]",
		Short: "Write built engines as one OCI artifact",
		Long: `Writes the named engines, or all, as one OCI artifact with a layer for each.
DESTINATION is a file that ends in .tar, a directory (/…, ./… or oci:…), or a
registry reference with a tag.`,
		Example: "  omnivision engines pack ./engines.tar\n  omnivision engines pack ghcr.io/omnivision/engines:v0.1.0",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := o.store().Pack(cmd.Context(), args[1:], args[0], registryLogin())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", args[0], digest)
			return err
		},
	}
}

func newEnginesLoadCommand(o *enginesOptions) *cobra.Command {
	return &cobra.Command{
		Use:     "load SOURCE",
		Short:   "Read engines from an OCI artifact that `pack` wrote",
		Example: "  omnivision engines load ./engines.tar\n  omnivision engines load ghcr.io/omnivision/engines@sha256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := &engineProgress{out: cmd.ErrOrStderr()}
			loaded, err := o.store().Load(cmd.Context(), args[0], p.report, registryLogin())
			if err != nil {
				return err
			}
			return warnUnused(cmd.ErrOrStderr(), o.store(), loaded)
		},
	}
}

// warnUnused names what was loaded but is not what the source checkout asks for.
func warnUnused(out io.Writer, store *engine.Store, loaded []engine.Manifest) error {
	builds, err := store.Resolve()
	if err != nil {
		return err
	}
	for _, m := range loaded {
		if !slices.ContainsFunc(builds, func(b engine.Build) bool { return b.DirName() == m.DirName() }) {
			fmt.Fprintf(out, "%s %s (%s) is loaded, but this checkout is for another version or other flags of it; check out the source that packed it\n", m.Name, m.Version, m.Key)
		}
	}
	return nil
}

// registryLogin takes credentials from where Docker and Podman keep them.
func registryLogin() remote.Option { return remote.WithAuthFromKeychain(authn.DefaultKeychain) }

// engineProgress prints events as lines. While an engine compiles, a line comes
// every few seconds, so that a CI log stays readable.
type engineProgress struct {
	out  io.Writer
	mu   sync.Mutex
	last map[string]time.Time
}

const progressEvery = 5 * time.Second

func (p *engineProgress) report(e engine.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = map[string]time.Time{}
	}
	busy := e.Phase == engine.Compiling || e.Phase == engine.Resolving
	if busy && time.Since(p.last[e.Engine]) < progressEvery {
		return
	}
	p.last[e.Engine] = time.Now()
	fmt.Fprintln(p.out, engineLine(e))
}

// engineLine says what, how far, how long, and how long it took last time.
func engineLine(e engine.Event) string {
	line := fmt.Sprintf("%-10s %-9s %s", e.Engine, e.Version, e.Phase)
	if e.Phase == engine.Compiling && e.Total > 0 {
		line += fmt.Sprintf(" %d/%d (%d %%)", e.Done, e.Total, 100*e.Done/e.Total)
	}
	if e.Item != "" {
		line += " " + e.Item
	}
	if e.Elapsed > 0 {
		line += " after " + e.Elapsed.Round(time.Second).String()
	}
	if e.Last > 0 && e.Phase != engine.Cached && e.Phase != engine.Built {
		line += ", last time " + e.Last.Round(time.Second).String()
	}
	return line
}

func newEnginesPathCommand(o *enginesOptions) *cobra.Command {
	return &cobra.Command{
		Use:     "path",
		Short:   "Print a folder with a link to every built program",
		Example: `  OMNIVISION_ENGINES=$(omnivision engines path) go test ./...`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := o.store().LinkPrograms()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), dir)
			return err
		},
	}
}

func newEnginesPruneCommand(o *enginesOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Remove built engines of other versions than this checkout's",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := o.store().Prune(cmd.Context())
			for _, name := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", name)
			}
			return err
		},
	}
}
