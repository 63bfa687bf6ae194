package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/localfleet"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// reach says how the named clusters are reached, by name: by contexts of the caller's own, or as the fleet's. Without a
// name it is about every cluster that --context names, or the fleet has. The names are in the order of the fleet's
// description.
func (f *fleetFlags) reach(names ...string) ([]string, map[string]*rest.Config, error) {
	if len(f.options.Contexts) > 0 {
		return f.reachContexts(unique(names))
	}
	fleet, err := f.open()
	if err != nil {
		return nil, nil, err
	}
	return reachFleet(fleet, unique(names))
}

// unique leaves a cluster out that is named again.
func unique(names []string) (once []string) {
	for _, name := range names {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

func reachFleet(fleet *localfleet.Fleet, names []string) ([]string, map[string]*rest.Config, error) {
	if len(names) == 0 {
		names = clusterNames(fleet)
	}
	data, err := fleet.Kubeconfig()
	if err != nil {
		return nil, nil, err
	}
	config, err := clientcmd.Load(data)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the fleet's kubeconfig: %w", err)
	}
	configs := map[string]*rest.Config{}
	for _, name := range names {
		if _, err := fleet.Plan.Cluster(name); err != nil {
			return nil, nil, codedError{exitUsage, err}
		}
		if configs[name], err = clientcmd.NewNonInteractiveClientConfig(*config, name, nil, nil).ClientConfig(); err != nil {
			return nil, nil, fmt.Errorf("reading the fleet's kubeconfig: %w", err)
		}
	}
	return names, configs, nil
}

func (f *fleetFlags) reachContexts(names []string) ([]string, map[string]*rest.Config, error) {
	described := f.described()
	contexts, err := localfleet.MatchContexts(described, f.options.Contexts)
	if err != nil {
		return nil, nil, codedError{exitUsage, err}
	}
	if len(names) == 0 {
		names = inOrder(described, contexts)
	}
	wanted := map[string]string{}
	for _, name := range names {
		if contexts[name] == "" {
			return nil, nil, codedError{exitUsage, fmt.Errorf("no --context is for cluster %s: write --context %s=CONTEXT", name, name)}
		}
		wanted[name] = contexts[name]
	}
	configs, err := localfleet.Connect(wanted)
	return names, configs, err
}

// described is the fleet that the checkout describes; nil where there is no checkout, for clusters elsewhere need none.
func (f *fleetFlags) described() *fleet.Fleet {
	source := f.options.Source
	if source == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil
		}
		if source, err = localfleet.SourceRoot(dir); err != nil {
			return nil
		}
	}
	described, err := fleet.Load(os.DirFS(filepath.Join(source, "omnivision-gitops")))
	if err != nil {
		return nil
	}
	return described
}

func inOrder(described *fleet.Fleet, contexts map[string]string) (names []string) {
	if described == nil {
		return slices.Sorted(maps.Keys(contexts))
	}
	for _, c := range described.Clusters {
		if contexts[c.Name] != "" {
			names = append(names, c.Name)
		}
	}
	return names
}
