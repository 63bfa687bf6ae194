// Command registry is the CNCF distribution registry with storage on this machine's disk.
// Upstream's main package links the storage of three clouds besides, with their SDKs, which
// are two fifths of what there is to compile.
package main

import (
	"os"

	"github.com/distribution/distribution/v3/registry"

	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func main() {
	if err := registry.RootCmd.Execute(); err != nil {
		os.Exit(1)
	}
}
