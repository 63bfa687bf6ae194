// Command timestamp-server is the timestamp authority, as a program of this module for the
// reason that fulcio is.
package main

import "github.com/sigstore/timestamp-authority/v2/cmd/timestamp-server/app"

func main() {
	app.Execute()
}
