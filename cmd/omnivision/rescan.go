package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor/release"
	"github.com/omnivision/omnivision/conveyor/rescan"
)

type rescanFlags struct {
	source, tree, output string
	scanning             scannerFlags
	trust                trustFlags
	attest               bool
	attestEvery          time.Duration
	plainHTTP            bool
	timeout              time.Duration
}

func newRescanCommand() *cobra.Command {
	var flags rescanFlags
	cmd := &cobra.Command{
		Use:   "rescan",
		Short: "Scan anew for vulnerabilities what Git says is deployed",
		Long: `Scan anew for vulnerabilities what Git says is deployed: an image that was clean
when it was released need not be clean today. Each cluster's registry is asked
for the digest that Git names there; what several clusters run is scanned once.
No cluster is asked. An image that is gone or cannot be scanned does not keep
the others from being scanned.

With --attest the scan of each clean image is stated beside it, signed as a release is,
since admission demands a scan that is not too old. It takes the identity that signs
releases and the right to push. Of a vulnerable image nothing is stated.

Exits with 3 if an image has a HIGH or CRITICAL vulnerability that no exception
covers, and with 1 if one could not be looked at, or its scan not be stated.`,
		Example: `  omnivision rescan
  omnivision rescan --tree ../omnivision-gitops --attest
  omnivision rescan -o json | jq '.deployed[] | select(.status == "vulnerable")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), flags.timeout, fmt.Errorf("the rescan took longer than %s: allow more with --timeout", flags.timeout))
			defer cancel()
			return flags.run(ctx, cmd)
		},
	}
	flags.add(cmd)
	return cmd
}

func (f *rescanFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.source, "source", ".", "checkout of the source repository")
	flags.StringVar(&f.tree, "tree", "", "directory of the GitOps tree (default: omnivision-gitops in the source)")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "speak HTTP to the registries")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Minute, "give up after this time")
	flags.BoolVar(&f.attest, "attest", false, "state the scan of each clean image beside it")
	flags.DurationVar(&f.attestEvery, "attest-every", rescan.DefaultEvery, "with --attest, how old the last statement may become before a new one is made")
	f.scanning.add(cmd)
	f.trust.add(cmd)
	outputFlag(cmd, &f.output)
}

func (f *rescanFlags) run(ctx context.Context, cmd *cobra.Command) error {
	keychain, err := registryKeychain()
	if err != nil {
		return err
	}
	scanner, err := f.scanning.scanner(sourceTree(f.tree, f.source), f.plainHTTP, keychain.Password)
	if err != nil {
		return err
	}
	programs, err := f.programs()
	if err != nil {
		return err
	}
	look := rescan.Rescan{
		Scanner: scanner, PlainHTTP: f.plainHTTP, Programs: programs,
		Registry: []remote.Option{remote.WithAuthFromKeychain(keychain)},
	}
	if f.attest {
		signer, err := f.trust.signer(ctx)
		if err != nil {
			return err
		}
		look.Attest = &rescan.Attestation{Signer: signer, Every: f.attestEvery}
	}
	tree := os.DirFS(sourceTree(f.tree, f.source))
	report, err := look.Run(ctx, tree, func(what string) { fmt.Fprintln(cmd.ErrOrStderr(), what) })
	if err != nil {
		return err
	}
	if f.output == "json" {
		err = printJSON(cmd.OutOrStdout(), report)
	} else {
		err = report.WriteText(cmd.OutOrStdout())
	}
	if err != nil {
		return err
	}
	return verdict(report)
}

// programs are the names of all images that the source makes.
func (f *rescanFlags) programs() ([]string, error) {
	src, err := os.ReadFile(filepath.Join(f.source, release.AppsFile))
	if err != nil {
		return nil, codedError{exitUsage, fmt.Errorf("%w: go to a checkout of the source repository, or name it with --source", err)}
	}
	apps, err := release.ParseApps(src)
	var names []string
	for _, app := range apps.Apps {
		names = append(names, app.Name)
	}
	return names, err
}

func verdict(report rescan.Report) error {
	switch {
	case report.Has(rescan.Vulnerable):
		return codedError{exitUnhealthy, errors.New("what is deployed is vulnerable: see above")}
	case report.Has(rescan.Unknown):
		return errors.New("not all that is deployed could be looked at: see above")
	case report.Unstated():
		return errors.New("what is deployed is clean, and not all of that could be stated: see above")
	}
	return nil
}
