package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/spf13/cobra"
)

const (
	defaultStateDir = "/var/lib/omnivision"
	defaultCacheDir = "/var/cache/omnivision"
)

// fleetFlags are the flags of every command about a local fleet.
type fleetFlags struct {
	options localfleet.Options
}

func (f *fleetFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.options.StateDir, "state", defaultStateDir, "folder of the fleet's state")
	flags.StringVar(&f.options.CacheDir, "cache", defaultCacheDir, "folder of built engines and images")
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
	if len(f.options.Contexts) > 0 {
		if err := f.useOwnFolders(); err != nil {
			return nil, err
		}
	}
	return localfleet.Open(f.options)
}

// contextFlag adds --context, for commands that also know clusters elsewhere.
func (f *fleetFlags) contextFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.options.Contexts, "context", nil,
		"kubeconfig context of an existing cluster, as CLUSTER=CONTEXT; repeat it for each cluster")
}

// useOwnFolders keeps what is downloaded for clusters elsewhere in the user's
// cache, unless flags name other folders: it takes no root.
func (f *fleetFlags) useOwnFolders() error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find the user's cache folder: %w", err)
	}
	if f.options.CacheDir == defaultCacheDir {
		f.options.CacheDir = filepath.Join(cache, "omnivision")
	}
	if f.options.StateDir == defaultStateDir {
		f.options.StateDir = filepath.Join(cache, "omnivision", "contexts")
	}
	return nil
}

// clusterFlag adds --cluster, completed from the fleet's clusters.
func (f *fleetFlags) clusterFlag(cmd *cobra.Command, cluster *string) {
	cmd.Flags().StringVarP(cluster, "cluster", "c", "", "name of the cluster")
	f.completeClusters(cmd)
}

// clustersFlag is clusterFlag for commands about several: none named is all.
func (f *fleetFlags) clustersFlag(cmd *cobra.Command, clusters *[]string) {
	cmd.Flags().StringArrayVarP(clusters, "cluster", "c", nil, "name of a cluster; repeat it for several (default: all)")
	f.completeClusters(cmd)
}

func (f *fleetFlags) completeClusters(cmd *cobra.Command) {
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
