package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/spf13/cobra"
)

func newNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Add and remove nodes, and rehearse the end of one",
		Long: `Add GPU nodes to a cluster of the local fleet and remove them, and rehearse the
end of a node.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newNodeAddCommand(), newNodeRemoveCommand(), newNodeKillCommand())
	return cmd
}

// nodeCommand is a command about the nodes of the cluster that --cluster names.
func nodeCommand(cmd *cobra.Command, run func(context.Context, *localfleet.Fleet, string, []string) error) *cobra.Command {
	var (
		flags   fleetFlags
		cluster string
	)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		fleet, err := flags.open()
		if err != nil {
			return err
		}
		if cluster == "" {
			return codedError{exitUsage, errors.New("name the cluster with --cluster")}
		}
		return run(cmd.Context(), fleet, cluster, args)
	}
	flags.add(cmd)
	flags.clusterFlag(cmd, &cluster)
	return cmd
}

func newNodeAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Give a cluster a further GPU node",
		Long: `Give a cluster that is up a further GPU node: gpu-1, then gpu-2 and gpu-3, of the
cloud's GPU node group, each in a zone of its own and with four simulated GPUs.
The command ends when the node is Ready and its GPUs can be had. The node stays
until it is removed or the fleet goes down; 'omnivision up' brings it back after
'omnivision node kill'.`,
		Example: `  omnivision node add --cluster cluster-aws
  omnivision gpu list --cluster cluster-aws --node gpu-1`,
		Args: cobra.NoArgs,
	}
	return nodeCommand(cmd, func(ctx context.Context, fleet *localfleet.Fleet, cluster string, _ []string) error {
		unlock, err := fleet.Lock()
		if err != nil {
			return err
		}
		defer unlock()
		added, err := fleet.AddNode(ctx, cluster)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s of %s is Ready in %s, with %d simulated GPUs\n", added.Name, cluster, added.Labels["topology.kubernetes.io/zone"], added.GPUs)
		return err
	})
}

func newNodeRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take away a node that 'node add' has added",
		Long: `Take away a node that 'omnivision node add' has added: its processes end at once,
and its Node, its Pods and its state are deleted. Drain it first if what runs
there is to move without a gap.`,
		Example: `  omnivision kubectl --cluster cluster-aws -- drain gpu-1 --ignore-daemonsets --delete-emptydir-data
  omnivision node remove --cluster cluster-aws gpu-1`,
		Args: cobra.ExactArgs(1),
	}
	return nodeCommand(cmd, func(ctx context.Context, fleet *localfleet.Fleet, cluster string, args []string) error {
		unlock, err := fleet.Lock()
		if err != nil {
			return err
		}
		defer unlock()
		return fleet.RemoveNode(ctx, cluster, args[0])
	})
}

func newNodeKillCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kill NODE",
		Short: "End a node as a power cut would; 'omnivision up' brings it back",
		Example: `  omnivision node kill --cluster cluster-aws gpu-0
  omnivision up`,
		Args: cobra.ExactArgs(1),
	}
	return nodeCommand(cmd, func(ctx context.Context, fleet *localfleet.Fleet, cluster string, args []string) error {
		return fleet.KillNode(ctx, cluster, args[0])
	})
}
