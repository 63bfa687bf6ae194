// Command fulcio is Fulcio. Built as a program of this module, and not as that of another,
// it tells the version that it was built with: a version that is replaced in go.mod is
// otherwise told as the one that was asked for.
package main

import (
	"context"

	"github.com/sigstore/fulcio/cmd/app"
)

func main() {
	app.Execute(context.Background())
}
