package localfleet

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/chart"
)

// pushChart brings the working tree's chart to the registry that production pulls it
// from. The same files have the digest that the conveyor publishes; unlike there, a
// version may be replaced, since the tree is being worked on.
func (f *Fleet) pushChart(ctx context.Context, report func(string)) error {
	packed, err := chart.Pack(filepath.Join(f.Source, "charts", f.Tree.Chart.Name))
	if err != nil {
		return err
	}
	repository, err := name.NewRepository(fmt.Sprintf("%s/%s/%s", registryAddress, f.Tree.Chart.Registry, packed.Name), name.Insecure)
	if err != nil {
		return fmt.Errorf("the registry of the chart: %w", err)
	}
	report(packed.Name + " " + packed.Version)
	transport := hubTransport()
	defer transport.CloseIdleConnections()
	return chart.Replace(ctx, repository, packed, remote.WithTransport(transport))
}
