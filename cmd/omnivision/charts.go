package main

import (
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/plan/chart"
)

// chartFlags say where the charts of a plan come from.
type chartFlags struct{ dir, cache string }

func (f *chartFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "chart-dir", "", "checkout of the chart, used where its version is the pinned one")
	cmd.Flags().StringVar(&f.cache, "chart-cache", "", "directory that keeps charts from the registry (default: omnivision/charts in the user's cache)")
}

// source is the checkout where its version fits, and else the registry.
func (f *chartFlags) source(offline, plainHTTP bool) (chart.Source, error) {
	cache, err := cacheDir(f.cache, "charts", "--chart-cache")
	if err != nil {
		return nil, err
	}
	registry := &chart.Registry{Cache: cache, Offline: offline, PlainHTTP: plainHTTP}
	if f.dir == "" {
		return registry, nil
	}
	return chart.First{chart.NewCheckout(f.dir), registry}, nil
}
