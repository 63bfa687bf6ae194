package main

import (
	"os"
	"strings"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/spf13/cobra"
)

// fleetFlags are the flags of every command about a local fleet.
type fleetFlags struct {
	options localfleet.Options
}

func (f *fleetFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.options.StateDir, "state", "/var/lib/omnivision", "folder of the fleet's state")
	flags.StringVar(&f.options.CacheDir, "cache", "/var/cache/omnivision", "folder of built engines and images")
	flags.StringVar(&f.options.Source, "source", "", "checkout of this project (default: the one around the current folder)")
	flags.IntVar(&f.options.PortBase, "port-base", 18000, "first port on loopback: the forge's; each cluster takes three from the next tens")
}

// open opens the fleet that the flags describe.
func (f *fleetFlags) open() (*localfleet.Fleet, error) {
	if f.options.Source == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		if f.options.Source, err = localfleet.SourceRoot(dir); err != nil {
			return nil, err
		}
	}
	return localfleet.Open(f.options)
}

// clusterFlag adds --cluster, completed from the fleet's clusters.
func (f *fleetFlags) clusterFlag(cmd *cobra.Command, cluster *string) {
	cmd.Flags().StringVarP(cluster, "cluster", "c", "", "name of the cluster")
	err := cmd.RegisterFlagCompletionFunc("cluster", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		fleet, err := f.open()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return clusterNames(fleet), cobra.ShellCompDirectiveNoFileComp
	})
	cobra.CheckErr(err)
}

func clusterNames(fleet *localfleet.Fleet) []string {
	var names []string
	for _, cluster := range fleet.Plan.Clusters {
		names = append(names, cluster.Name)
	}
	return names
}

func list(names []string) string { return strings.Join(names, ", ") }
