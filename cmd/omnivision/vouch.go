package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/release"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/localfleet"
)

// newVouchCommand is what 'up' runs inside the fleet, with the list of images on its input.
func newVouchCommand() *cobra.Command {
	return &cobra.Command{
		Use:    localfleet.FirstImagesCommand,
		Short:  "Scan and sign the images that 'up' has assembled",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list localfleet.FirstImages
			decoder := json.NewDecoder(io.LimitReader(cmd.InOrStdin(), 1<<20))
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&list); err != nil {
				return codedError{exitUsage, fmt.Errorf("reading the list of images: %w", err)}
			}
			return vouch(cmd.Context(), list, cmd.ErrOrStderr())
		},
	}
}

func vouch(ctx context.Context, list localfleet.FirstImages, out io.Writer) error {
	described := releaseFlags{dir: list.Source}
	scanning := scannerFlags{trivy: "trivy", cache: list.Database}
	scanner, err := scanning.scanner(sourceTree("", list.Source), false, nil)
	if err != nil {
		return err
	}
	// What the environment says is what these flags default to.
	trust := &trustFlags{}
	trust.add(&cobra.Command{})
	store := conveyor.Store{Dir: list.Evidence}
	for _, image := range list.Images {
		described.app = image.App
		apps, app, err := described.described()
		if err != nil {
			return err
		}
		r := release.Release{
			App: image.App, Dir: list.Source, Source: apps.Source, Dockerfile: app.Dockerfile, Args: app.Args,
			Revision: source.Revision{Commit: list.Commit, Version: list.Version},
			Scanner:  scanner, Signer: trust.signer, Policy: trust.policy,
		}
		for _, repository := range image.Repositories {
			parsed, err := name.NewRepository(repository)
			if err != nil {
				return fmt.Errorf("the image of %s: %w", image.App, err)
			}
			r.Repositories = append(r.Repositories, parsed)
		}
		given := build.Result{
			Digest: image.Digest, Tag: list.Version, Repositories: image.Repositories,
			Platforms: []build.Platform{{Platform: image.Platform, Digest: image.Digest}},
		}
		subject := conveyor.Subject{App: image.App, Commit: release.CommitOf(list.Commit), Version: list.Version}
		progress := newProgress(out)
		_, err = r.GivenBelt(given, subject, store, progress).Run(ctx, "")
		progress.close()
		if err != nil {
			return fmt.Errorf("%s: %w", image.App, err)
		}
	}
	return nil
}
