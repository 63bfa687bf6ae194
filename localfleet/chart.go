package localfleet

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/registry"
)

// pushChart packages the working tree's chart and brings it to the registry
// that production pulls it from.
func (f *Fleet) pushChart(_ context.Context, report func(string)) error {
	chart, err := loader.LoadDir(filepath.Join(f.Source, "charts", f.Tree.Chart.Name))
	if err != nil {
		return fmt.Errorf("load the chart: %w", err)
	}
	dir, err := os.MkdirTemp("", "omnivision-chart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	archive, err := chartutil.Save(chart, dir)
	if err != nil {
		return fmt.Errorf("package the chart: %w", err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	transport := hubTransport()
	defer transport.CloseIdleConnections()
	client, err := registry.NewClient(
		registry.ClientOptHTTPClient(&http.Client{Transport: transport}), registry.ClientOptPlainHTTP(),
		registry.ClientOptCredentialsFile(filepath.Join(dir, "credentials.json")),
	)
	if err != nil {
		return fmt.Errorf("make a registry client: %w", err)
	}
	reference := fmt.Sprintf("%s/%s/%s:%s", registryAddress, f.Tree.Chart.Registry, chart.Metadata.Name, chart.Metadata.Version)
	report(chart.Metadata.Name + " " + chart.Metadata.Version)
	if _, err := client.Push(data, reference); err != nil {
		return fmt.Errorf("push the chart: %w", err)
	}
	return nil
}
