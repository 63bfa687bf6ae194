package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor/scan"
)

// scannerFlags say how Trivy is run.
type scannerFlags struct {
	trivy, cache string
	offline      bool
}

func (f *scannerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.trivy, "trivy", "trivy", "Trivy's program")
	flags.StringVar(&f.cache, "trivy-cache", "", "where Trivy keeps its database (default: omnivision/trivy in the user's cache)")
	flags.BoolVar(&f.offline, "offline-scan", false, "use the vulnerability database that is there")
}

// scanner takes the exceptions from a GitOps tree.
func (f *scannerFlags) scanner(tree string, plainHTTP bool, credentials scan.Credentials) (scan.Scanner, error) {
	cache, err := cacheDir(f.cache, "trivy", "--trivy-cache")
	if err != nil {
		return scan.Scanner{}, err
	}
	exceptions, err := scan.ReadExceptions(os.DirFS(tree))
	if err != nil {
		return scan.Scanner{}, err
	}
	return scan.Scanner{Program: f.trivy, CacheDir: cache, Offline: f.offline, Insecure: plainHTTP, Exceptions: exceptions, Credentials: credentials}, nil
}
