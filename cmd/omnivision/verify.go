package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor/admission"
	"github.com/omnivision/omnivision/conveyor/chart"
	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/fleet"
)

type verifyFlags struct {
	trustedRoot, subject, issuer, key string
	tree                              string
	plainHTTP                         bool
	output                            string
	timeout                           time.Duration

	fleet *fleet.Fleet // of the tree, if there is one
}

// verified is what verify says of an image.
type verified struct {
	Image    string `json:"image"` // with digest
	Platform string `json:"platform,omitempty"`
	Trusted  bool   `json:"trusted"`
	// Missing are the kinds of statement that nobody trusted made.
	Missing []string `json:"missing,omitempty"`
	verify.Summary
	// Findings are those of the last scan; nil: there is none.
	Findings scan.Counts `json:"findings,omitzero"`
	// Refused says why each statement that is there is not believed.
	Refused []string `json:"refused,omitempty"`
	// Platforms are the images of an index.
	Platforms []verified `json:"platforms,omitempty"`
	// Clusters are what each would say of it. Each cluster's gate decides for itself.
	Clusters []admission.Verdict `json:"clusters,omitempty"`

	chart bool // no cluster runs it as it is
}

func newVerifyCommand() *cobra.Command {
	var flags verifyFlags
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Say what signed an image, built from what, and what its scan found",
		Long: `Say what signed an image, when, built from which commit, with which SBOM, and
what its scan found. Only statements count that are signed by the identity or key that is
named, about exactly this digest and this repository; of every other one it is
said why it does not count. A tag is resolved first.

Of an index each platform's image is looked at too: a node runs one of them.
Of a chart there is no SBOM and no scan. Exits with 3 if a trusted signature or provenance is missing, or of a platform's
image the SBOM or the scan.

With a GitOps tree it is also said whether each cluster would be right to run
the image, and why: it is in the cluster's registry, Git names its digest there,
the release.identity of fleet.yaml has signed it, and its scan stops no release.
That is foretold from Git and the registry: the gate in a cluster, once it is
installed, decides by its ClusterImagePolicy. It does not change the exit code.`,
		Example: `  omnivision verify --key conveyor.pub registry.example/omnivision/omnivision-worker:0.1.0-57
  omnivision verify --trusted-root trusted_root.json \
    --issuer https://token.actions.githubusercontent.com \
    --identity https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main \
    registry.example/omnivision/omnivision-worker@sha256:…`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), flags.timeout, fmt.Errorf("the registry took longer than %s: allow more with --timeout", flags.timeout))
			defer cancel()
			found, err := flags.verify(ctx, args[0])
			if err != nil {
				return err
			}
			if err := flags.show(cmd.OutOrStdout(), found); err != nil {
				return err
			}
			if !found.Trusted {
				return codedError{exitUnhealthy, fmt.Errorf("%s is not to be trusted: see above", found.Image)}
			}
			return nil
		},
	}
	flags.add(cmd)
	return cmd
}

func (f *verifyFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.trustedRoot, "trusted-root", os.Getenv(trustedRootVariable), "trusted_root.json of the Sigstore that the image was signed with (default: "+trustedRootVariable+", or the public Sigstore's)")
	flags.StringVar(&f.subject, "identity", "", "who must have signed: the workflow with its ref, in full (default: release.identity of fleet.yaml)")
	flags.StringVar(&f.issuer, "issuer", "", "who must have vouched for the identity (default: release.issuer of fleet.yaml)")
	flags.StringVar(&f.tree, "tree", "", "directory of the GitOps tree (default: this one, or omnivision-gitops in it)")
	flags.StringVar(&f.key, "key", "", "public key that must have signed instead (PEM)")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "speak HTTP to the registry")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "give up after this time")
	cmd.MarkFlagsMutuallyExclusive("key", "trusted-root")
	cmd.MarkFlagsMutuallyExclusive("key", "identity")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if err := f.readTree(); err != nil {
			return err
		}
		if keyless := f.subject != "" && f.issuer != ""; f.key == "" && !keyless {
			return codedError{exitUsage, errors.New("say whom to trust: --identity and --issuer, with --trusted-root unless it is the public Sigstore; or --key")}
		}
		return nil
	}
	outputFlag(cmd, &f.output)
}

// readTree reads the fleet if there is one, and takes from it who signs releases.
func (f *verifyFlags) readTree() error {
	f.tree = treeHere(f.tree)
	if f.tree == "" {
		return nil
	}
	var err error
	if f.fleet, err = fleet.Load(os.DirFS(f.tree)); err != nil {
		return err
	}
	if f.key == "" && f.subject == "" {
		f.subject = f.fleet.Release.Identity
		f.issuer = cmp.Or(f.issuer, f.fleet.Release.Issuer)
	}
	return nil
}

func (f *verifyFlags) policy(ctx context.Context) (verify.Policy, error) {
	if f.key != "" {
		key, err := publicKey(f.key)
		if err != nil {
			return verify.Policy{}, err
		}
		return verify.WithKey(key)
	}
	trusted, err := trustedRoot(ctx, f.trustedRoot)
	if err != nil {
		return verify.Policy{}, err
	}
	return verify.Policy{Root: trusted, Identity: verify.Identity{Subject: f.subject, Issuer: f.issuer}}, nil
}

func (f *verifyFlags) verify(ctx context.Context, image string) (verified, error) {
	policy, err := f.policy(ctx)
	if err != nil {
		return verified{}, err
	}
	keychain, err := registryKeychain()
	if err != nil {
		return verified{}, err
	}
	options := []remote.Option{remote.WithAuthFromKeychain(keychain), remote.WithContext(ctx)}
	digest, err := f.resolve(image, options)
	if err != nil {
		return verified{}, err
	}
	found, err := f.statements(ctx, policy, digest, options)
	if err != nil || f.fleet == nil || found.chart {
		return found, err
	}
	checker, err := f.checker(policy, options)
	if err != nil {
		return verified{}, err
	}
	found.Clusters, err = checker.Image(ctx, digest)
	return found, err
}

// checker knows what the clusters want, and whom the fleet trusts.
func (f *verifyFlags) checker(policy verify.Policy, options []remote.Option) (admission.Checker, error) {
	c := admission.Checker{
		Tree: os.DirFS(f.tree), Fleet: f.fleet, Registry: options, Insecure: f.plainHTTP, Now: time.Now(),
		Policy: verify.Policy{Root: policy.Root, Identity: verify.Identity{Subject: f.fleet.Release.Identity, Issuer: f.fleet.Release.Issuer}},
	}
	switch {
	case f.fleet.Release.Identity == "":
		c.Distrust = fleet.File + " has no release.identity, so nobody's signature counts"
	case f.key != "":
		c.Distrust = "only a key was looked for, and " + fleet.File + " wants " + c.Policy.Identity.String() + ": give --trusted-root"
	}
	var err error
	c.Exceptions, err = scan.ReadExceptions(c.Tree)
	return c, err
}

// statements says what can be believed of an image and of its platforms.
func (f *verifyFlags) statements(ctx context.Context, policy verify.Policy, digest name.Digest, options []remote.Option) (verified, error) {
	desc, err := remote.Get(digest, options...)
	if err != nil {
		return verified{}, fmt.Errorf("reading %s: %w", digest, err)
	}
	if !desc.MediaType.IsIndex() {
		wanted, isChart := needed(desc)
		found, err := ask(ctx, policy, digest, wanted, options)
		found.chart = isChart
		return found, err
	}
	found, err := ask(ctx, policy, digest, ofIndex, options)
	if err != nil {
		return verified{}, err
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return verified{}, fmt.Errorf("reading %s: %w", digest, err)
	}
	return found, found.addPlatforms(ctx, policy, digest.Context(), index, options)
}

// addPlatforms asks about each image of an index: a node runs one of them.
func (v *verified) addPlatforms(ctx context.Context, policy verify.Policy, repository name.Repository, index v1.ImageIndex, options []remote.Option) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("reading %s: %w", v.Image, err)
	}
	for _, m := range manifest.Manifests {
		platform, err := ask(ctx, policy, repository.Digest(m.Digest.String()), ofImage, options)
		if err != nil {
			return err
		}
		if m.Platform != nil {
			platform.Platform = m.Platform.String()
		}
		v.Platforms = append(v.Platforms, platform)
		v.Trusted = v.Trusted && platform.Trusted
	}
	return nil
}

// ask collects what can be believed of one digest.
func ask(ctx context.Context, policy verify.Policy, digest name.Digest, needed []kind, options []remote.Option) (verified, error) {
	believed, refused, err := policy.Image(ctx, digest, options...)
	if err != nil {
		return verified{}, err
	}
	summary, err := verify.Summarize(believed)
	if err != nil {
		return verified{}, err
	}
	found := verified{Image: digest.String(), Summary: summary}
	for _, why := range refused {
		found.Refused = append(found.Refused, why.Error())
	}
	if err := found.addFindings(believed); err != nil {
		found.Refused = append(found.Refused, err.Error())
	}
	for _, k := range needed {
		if !slices.ContainsFunc(believed, func(s verify.Statement) bool { return s.PredicateType == k.predicate }) {
			found.Missing = append(found.Missing, k.name)
		}
	}
	found.Trusted = len(found.Missing) == 0
	return found, nil
}

// addFindings says what the scan found that counts.
func (v *verified) addFindings(believed []verify.Statement) error {
	last, there, err := verify.FindLastScan(believed)
	if err != nil || !there {
		return err
	}
	report, err := scan.Parse(last.Result)
	if err != nil {
		return fmt.Errorf("what its scan found cannot be told: %w", err)
	}
	v.Findings = report.Counts()
	return nil
}

// kind is a kind of statement, with its name for people.
type kind struct{ predicate, name string }

// What the conveyor states of an index, and of the image of one platform.
var (
	ofIndex = []kind{{verify.Signature, "signature"}, {verify.Provenance, "provenance"}}
	ofImage = append(slices.Clone(ofIndex), kind{verify.SBOM, "SBOM"}, kind{verify.Scan, "scan"})
)

// needed says what must be stated of what is no index. Nothing of a chart runs, so there
// is nothing in it to scan.
func needed(desc *remote.Descriptor) (kinds []kind, isChart bool) {
	manifest, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
	if err == nil && manifest.Config.MediaType == chart.ConfigType {
		return ofIndex, true
	}
	return ofImage, false
}

func (f *verifyFlags) resolve(image string, options []remote.Option) (name.Digest, error) {
	var parse []name.Option
	if f.plainHTTP {
		parse = append(parse, name.Insecure)
	}
	ref, err := name.ParseReference(image, parse...)
	if err != nil {
		return name.Digest{}, codedError{exitUsage, err}
	}
	if digest, ok := ref.(name.Digest); ok {
		return digest, nil
	}
	desc, err := remote.Head(ref, options...)
	if err != nil {
		return name.Digest{}, fmt.Errorf("resolving %s: %w", ref, err)
	}
	return ref.Context().Digest(desc.Digest.String()), nil
}

func (f *verifyFlags) show(out io.Writer, v verified) error {
	if f.output == "json" {
		return printJSON(out, v)
	}
	for _, image := range append([]verified{v}, v.Platforms...) {
		if err := image.print(out); err != nil {
			return err
		}
	}
	return v.printClusters(out)
}

// printClusters says what each cluster would say, and who will really say it.
func (v verified) printClusters(out io.Writer) error {
	if len(v.Clusters) == 0 {
		return nil
	}
	fmt.Fprintln(out, "As far as Git and the registry tell (a cluster's gate decides by its policies when a Pod starts):")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range v.Clusters {
		verdict := "would refuse"
		if c.Admit {
			verdict = "would admit"
		}
		for _, reason := range c.Reasons {
			fmt.Fprintf(w, "  %s\t%s: %s\n", c.Cluster, verdict, reason)
		}
	}
	return w.Flush()
}

func (v verified) print(out io.Writer) error {
	fmt.Fprintln(out, strings.TrimSpace(v.Image+"  "+v.Platform))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(what, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %s\t%s\n", what, value)
		}
	}
	if v.Signer != (verify.Identity{}) {
		line("signed by", v.Signer.String())
		line("signed at", moment(v.Signed, "no witness"))
		line("version", v.Version)
	}
	line("source", v.Source)
	line("commit", v.Commit)
	line("builder", v.Builder)
	line("job", v.Invocation)
	if v.Scanner != "" {
		line("scan", v.Scanner+", database of "+moment(v.Database, "unknown age"))
		if v.Findings != nil {
			line("found", v.Findings.String())
		}
	}
	if v.Components >= 0 {
		line("SBOM", fmt.Sprintf("%d components", v.Components))
	}
	for _, missing := range v.Missing {
		line("MISSING", "no trusted "+missing)
	}
	for _, why := range v.Refused {
		line("refused", why)
	}
	return w.Flush()
}

func moment(at time.Time, never string) string {
	if at.IsZero() {
		return never
	}
	return at.Format(time.RFC3339)
}
