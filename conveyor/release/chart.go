package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/chart"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// Publish is the stage that brings a chart to its registry. It is signed after that.
const Publish = "publish"

// Chart is a release of the platform's chart, with who does its stages. Which version a
// cluster runs is each cluster's own decision, so there is nothing to propose.
type Chart struct {
	Name       string
	Path       string // of its directory in the source
	Dir        string // checkout of the source
	Source     string // URL of the source repository
	Revision   source.Revision
	Invocation string // URL of the job, if this is one

	Repository name.Repository
	Registry   []remote.Option

	// Signer and Policy are as in Release.
	Signer func(ctx context.Context) (*sign.Signer, error)
	Policy func(verify.Identity) verify.Policy
}

// Published is what became of the first stage.
type Published struct {
	Digest     string `json:"digest"`
	Tag        string `json:"tag"`
	Repository string `json:"repository"`
	Invocation string `json:"invocation,omitempty"`
}

// Belt is the release as stages. Its subject is the last commit that changed the chart:
// the same chart at a later commit is the same release.
func (c Chart) Belt(ctx context.Context, store conveyor.Store, watcher conveyor.Watcher) (conveyor.Belt, error) {
	if c.Revision.Dirty {
		return conveyor.Belt{}, fmt.Errorf("the checkout in %s has changes that no commit has: commit or stash them", c.Dir)
	}
	commit, err := source.LastChange(ctx, c.Dir, c.Revision.Commit, c.Path)
	if err != nil {
		return conveyor.Belt{}, err
	}
	packed, err := c.pack(ctx, commit)
	if err != nil {
		return conveyor.Belt{}, err
	}
	p := publication{Chart: c, packed: packed, commit: commit}
	return conveyor.Belt{
		Subject: conveyor.Subject{App: packed.Name, Commit: commit, Version: packed.Version},
		Store:   store, Watcher: watcher,
		Stages: []conveyor.Stage{
			{Name: Publish, Check: p.checkPublish, Run: p.publish},
			{Name: Sign, Check: p.checkSign, Run: p.sign},
		},
	}, nil
}

// pack packages the chart as the commit has it.
func (c Chart) pack(ctx context.Context, commit string) (*chart.Packed, error) {
	dir, err := os.MkdirTemp("", "omnivision-chart-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the system's temporary directory
	files := filepath.Join(dir, "source")
	if err := source.Export(ctx, c.Dir, commit, files, nil); err != nil {
		return nil, err
	}
	packed, err := chart.Pack(filepath.Join(files, c.Path))
	if err != nil {
		return nil, err
	}
	if packed.Name != c.Name {
		return nil, fmt.Errorf("%s of commit %s holds the chart %s, and the fleet's is %s", c.Path, commit, packed.Name, c.Name)
	}
	return packed, nil
}

// publication is a chart that was packaged.
type publication struct {
	Chart
	packed *chart.Packed
	commit string
}

func (p publication) publish(ctx context.Context, _ conveyor.Results, report func(string)) (any, error) {
	report(p.packed.Name + " " + p.packed.Version + " to " + p.Repository.String())
	if err := chart.Publish(ctx, p.Repository, p.packed, p.Registry...); err != nil {
		return nil, err
	}
	return Published{Digest: p.packed.Digest, Tag: p.packed.Tag(), Repository: p.Repository.String(), Invocation: p.Invocation}, nil
}

func (p publication) checkPublish(ctx context.Context, _ conveyor.Results, raw json.RawMessage) error {
	var have Published
	if err := json.Unmarshal(raw, &have); err != nil {
		return err
	}
	if have.Digest != p.packed.Digest || have.Repository != p.Repository.String() {
		return errors.New("it was published to " + have.Repository + " as " + have.Digest)
	}
	return chart.Check(ctx, p.Repository, have.Tag, have.Digest, p.Registry...)
}

func (p publication) sign(ctx context.Context, before conveyor.Results, report func(string)) (any, error) {
	request, err := p.signing(before)
	if err != nil {
		return nil, err
	}
	signer, err := p.Signer(ctx)
	if err != nil {
		return nil, err
	}
	return sign.Publish(ctx, signer, request, report, p.Registry...)
}

func (p publication) checkSign(ctx context.Context, before conveyor.Results, raw json.RawMessage) error {
	var have sign.Result
	if err := json.Unmarshal(raw, &have); err != nil {
		return err
	}
	request, err := p.signing(before)
	if err != nil {
		return err
	}
	return sign.Check(ctx, p.Policy(have.Signer), request, p.Registry...)
}

func (p publication) signing(before conveyor.Results) (sign.Request, error) {
	var published Published
	if err := before.Read(Publish, &published); err != nil {
		return sign.Request{}, err
	}
	return sign.Request{
		Digest: published.Digest, Version: p.packed.Version, Repositories: []name.Repository{p.Repository},
		Origin: sign.Origin{Source: p.Source, Commit: p.commit, Chart: p.Path, Invocation: published.Invocation},
	}, nil
}
