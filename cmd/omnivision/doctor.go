package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/omnivision/omnivision/localfleet/preflight"
	"github.com/spf13/cobra"
)

func newDoctorCommand() *cobra.Command {
	var (
		flags  fleetFlags
		output string
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether this machine can run the fleet, and what it lacks",
		Example: `  omnivision doctor
  omnivision doctor -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fleet, err := flags.open()
			if err != nil {
				return err
			}
			results := preflight.Run(cmd.Context(), append(fleet.Checks(), fleet.PackageChecks()...))
			if err := printResults(cmd, results, output); err != nil {
				return err
			}
			if preflight.Failed(results) != nil {
				return codedError{exitUnhealthy, errors.New("this machine cannot run the fleet yet: see above")}
			}
			return nil
		},
	}
	flags.add(cmd)
	outputFlag(cmd, &output)
	return cmd
}

func printResults(cmd *cobra.Command, results []preflight.Result, output string) error {
	if output == "json" {
		return printJSON(cmd.OutOrStdout(), results)
	}
	for _, result := range results {
		mark := "ok  "
		if !result.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s  %s: %s\n", mark, result.Name, result.Detail)
		if result.Remedy != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "      %s\n", result.Remedy)
		}
	}
	return nil
}

// printJSON writes a value as an indented document.
func printJSON(out io.Writer, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", data)
	return err
}

// outputFlag adds --output with its two values.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "text or json")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *output != "text" && *output != "json" {
			return codedError{exitUsage, fmt.Errorf("--output is %q: use text or json", *output)}
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
}
