package main

import (
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/omnivision/omnivision/localfleet/gpu/control"
	"github.com/spf13/cobra"
)

// gpuFlags name the node whose simulated GPUs are meant.
type gpuFlags struct {
	fleetFlags
	cluster string
	node    string
}

func (f *gpuFlags) client() (*control.Client, error) {
	fleet, err := f.open()
	if err != nil {
		return nil, err
	}
	if f.cluster == "" {
		return nil, codedError{exitUsage, errors.New("name the cluster with --cluster")}
	}
	socket, err := fleet.GPUControlSocket(f.cluster, f.node)
	if err != nil {
		return nil, err
	}
	return control.NewClient(socket), nil
}

func newGPUCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gpu",
		Short: "Look at the simulated GPUs, and break them",
		Long: `Look at the simulated GPUs of a local fleet's nodes, and break them: they are a
substitute behind the interfaces that NVIDIA's device plugin and dcgm-exporter
have, and can be told to raise an Xid.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newGPUListCommand(), newGPUXidCommand(), newGPUResetCommand())
	return cmd
}

func gpuCommand(use, short, example string, args cobra.PositionalArgs, run func(*cobra.Command, *control.Client, []string) error) *cobra.Command {
	var flags gpuFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := flags.client()
			if err != nil {
				return err
			}
			return run(cmd, client, args)
		},
	}
	flags.add(cmd)
	flags.clusterFlag(cmd, &flags.cluster)
	cmd.Flags().StringVarP(&flags.node, "node", "n", "gpu-0", "name of the node")
	return cmd
}

func newGPUListCommand() *cobra.Command {
	return gpuCommand("list", "List a node's GPUs", "  omnivision gpu list --cluster cluster-aws", cobra.NoArgs,
		func(cmd *cobra.Command, client *control.Client, _ []string) error {
			devices, err := client.Devices(cmd.Context())
			if err != nil {
				return err
			}
			return printDevices(cmd, devices)
		})
}

func newGPUXidCommand() *cobra.Command {
	return gpuCommand("xid DEVICE XID", "Raise an Xid on a GPU, named by index or UUID",
		"  omnivision gpu xid --cluster cluster-aws 0 31      # a fault of the program\n"+
			"  omnivision gpu xid --cluster cluster-aws 0 79      # the GPU has fallen off the bus", cobra.ExactArgs(2),
		func(cmd *cobra.Command, client *control.Client, args []string) error {
			target, err := control.ParseTarget(args[0])
			if err != nil {
				return codedError{exitUsage, err}
			}
			xid, err := strconv.Atoi(args[1])
			if err != nil {
				return codedError{exitUsage, fmt.Errorf("the Xid %q is not a number", args[1])}
			}
			result, err := client.RaiseXid(cmd.Context(), target, xid)
			if err != nil {
				return err
			}
			return printDevices(cmd, control.DeviceList{Node: result.Node, Devices: []control.Device{result.Device}})
		})
}

func newGPUResetCommand() *cobra.Command {
	return gpuCommand("reset DEVICE", "Make a GPU healthy again", "  omnivision gpu reset --cluster cluster-aws 0", cobra.ExactArgs(1),
		func(cmd *cobra.Command, client *control.Client, args []string) error {
			target, err := control.ParseTarget(args[0])
			if err != nil {
				return codedError{exitUsage, err}
			}
			devices, err := client.Reset(cmd.Context(), target)
			if err != nil {
				return err
			}
			return printDevices(cmd, devices)
		})
}

func printDevices(cmd *cobra.Command, list control.DeviceList) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "GPU\tUUID\tMODEL\tHEALTHY\tLAST XID\tPOD")
	for _, d := range list.Devices {
		last, pod := "-", "-"
		if d.Last != nil {
			last = strconv.Itoa(d.Last.Xid)
		}
		if d.Pod != "" {
			pod = d.Namespace + "/" + d.Pod
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%v\t%s\t%s\n", d.Index, d.UUID, d.Model, d.Healthy, last, pod)
	}
	return w.Flush()
}
