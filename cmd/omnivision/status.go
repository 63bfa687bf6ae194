package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/localfleet/story"
	"github.com/spf13/cobra"
)

func newStatusCommand() *cobra.Command {
	var (
		flags  fleetFlags
		output string
		watch  bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show clusters, Applications, Rollouts, images and substitutes",
		Long: `Show clusters with their nodes, Applications with sync, health and revision,
Rollouts with step and weight, images by digest, how many containers' logs are
shipped where there is a Loki, what stands in for something of production, and
the addresses to look at in a browser.

Exits with 3 if the fleet is not up, a cluster does not answer, an Application is
not Synced and Healthy (one that waits in a canary step is), or the GitOps tree
on the forge has a mistake.`,
		Example: `  omnivision status
  omnivision status --watch
  omnivision status -o json | jq '.clusters[].applications'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			if watch {
				return watchStatus(cmd, &flags, fleet, output)
			}
			status, err := showStatus(cmd, &flags, fleet, output)
			if err != nil {
				return err
			}
			return healthOf(status)
		},
	}
	flags.add(cmd)
	flags.contextFlag(cmd)
	outputFlag(cmd, &output)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every two seconds until interrupted")
	return cmd
}

func showStatus(cmd *cobra.Command, flags *fleetFlags, fleet *localfleet.Fleet, output string) (*localfleet.Status, error) {
	measured := flags.measureLogs(cmd.Context(), fleet)
	status, err := fleet.Status(cmd.Context())
	if err != nil {
		return nil, err
	}
	measured(status)
	if output == "json" {
		data, err := status.JSON()
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", data)
		return status, err
	}
	return status, printStatus(cmd.OutOrStdout(), status)
}

func watchStatus(cmd *cobra.Command, flags *fleetFlags, fleet *localfleet.Fleet, output string) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		if output == "text" && isTerminal(cmd.OutOrStdout()) {
			fmt.Fprint(cmd.OutOrStdout(), "\033[H\033[2J")
		}
		if _, err := showStatus(cmd, flags, fleet, output); err != nil {
			return err
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

// healthOf turns what is not as it should be into the exit code.
func healthOf(status *localfleet.Status) error {
	bad := len(status.Problems)
	for _, cluster := range status.Clusters {
		if cluster.Error != "" {
			bad++
		}
		for _, app := range cluster.Applications {
			if !app.OK() {
				bad++
			}
		}
	}
	switch {
	case !status.Up:
		return codedError{exitUnhealthy, fmt.Errorf("the fleet is not up: start it with 'omnivision up'")}
	case bad > 0:
		return codedError{exitUnhealthy, fmt.Errorf("%d things are not as they should be: see above", bad)}
	}
	return nil
}

func printStatus(out io.Writer, status *localfleet.Status) error {
	if !status.Up {
		return nil
	}
	for _, cluster := range status.Clusters {
		if err := printCluster(out, cluster); err != nil {
			return err
		}
	}
	if len(status.Substitutes) > 0 {
		fmt.Fprintln(out, "\nSUBSTITUTES")
		for _, s := range status.Substitutes {
			fmt.Fprintf(out, "  %s: %s\n", s.For, s.What)
		}
	}
	for _, problem := range status.Problems {
		fmt.Fprintf(out, "\nPROBLEM  %s\n", problem)
	}
	fmt.Fprintln(out)
	if status.MemoryBytes > 0 {
		fmt.Fprintf(out, "memory  %.2f GiB\n", float64(status.MemoryBytes)/(1<<30))
	}
	fmt.Fprintf(out, "forge   %s\n", status.Forge)
	for _, cluster := range status.Clusters {
		fmt.Fprintf(out, "%s  UI %s  Argo CD %s\n", cluster.Name, cluster.UI, cluster.ArgoCD)
	}
	return nil
}

func printCluster(out io.Writer, cluster localfleet.ClusterStatus) error {
	fmt.Fprintf(out, "\n%s  (%s, %s)\n", strings.ToUpper(cluster.Name), cluster.Cloud, cluster.Region)
	if cluster.Error != "" {
		fmt.Fprintf(out, "  does not answer: %s\n", cluster.Error)
	}
	for _, section := range []func(io.Writer, localfleet.ClusterStatus){printNodes, printApplications, printRollouts, printImages} {
		// Columns of one section are aligned, not those of different ones.
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		section(w, cluster)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if cluster.Logs != nil {
		fmt.Fprintf(out, "  LOGS  %s\n", logLine(cluster.Logs))
	}
	return nil
}

func printNodes(w io.Writer, cluster localfleet.ClusterStatus) {
	fmt.Fprintln(w, "  NODE\tREADY\tZONE\tGPUS")
	for _, node := range cluster.Nodes {
		fmt.Fprintf(w, "  %s\t%v\t%s\t%s\n", node.Name, node.Ready, node.Zone, orDash(node.GPUs))
	}
}

func printApplications(w io.Writer, cluster localfleet.ClusterStatus) {
	fmt.Fprintln(w, "  APPLICATION\tSYNC\tHEALTH\tREVISION")
	for _, app := range cluster.Applications {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", app.Name, orDash(app.Sync), orDash(app.Health), shortRevision(app.Revision))
		if app.Message != "" {
			fmt.Fprintf(w, "    %s\n", app.Message)
		}
	}
}

func printRollouts(w io.Writer, cluster localfleet.ClusterStatus) {
	fmt.Fprintln(w, "  ROLLOUT\tPHASE\tSTEP\tWEIGHT\tPODS")
	for _, r := range cluster.Rollouts {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d/%d\n", r.Name, r.Phase, r.Step, r.WeightText(), r.Ready, r.Replicas)
		if r.Message != "" {
			fmt.Fprintf(w, "    %s\n", r.Message)
		}
	}
}

func printImages(w io.Writer, cluster localfleet.ClusterStatus) {
	fmt.Fprintln(w, "  IMAGE\tDIGEST\tCONTAINERS")
	for _, image := range cluster.Images {
		fmt.Fprintf(w, "  %s\t%s\t%d\n", image.Image, shortDigest(image.Digest), image.Containers)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shortRevision shortens commits as Git does, and leaves versions as they are.
func shortRevision(revisions string) string {
	var short []string
	for _, revision := range strings.Fields(revisions) {
		if len(revision) == 40 {
			revision = revision[:8]
		}
		short = append(short, revision)
	}
	return orDash(strings.Join(short, " "))
}

func shortDigest(digest string) string {
	const shown = len("sha256:") + 12
	if len(digest) > shown {
		return digest[:shown]
	}
	return orDash(digest)
}

func printTimings(out io.Writer, timings []story.Timing) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, timing := range timings {
		if timing.Took >= time.Second {
			fmt.Fprintf(w, "  %.1f s\t  %s\t\n", timing.Took.Seconds(), timing.Step)
		}
	}
	_ = w.Flush()
}
