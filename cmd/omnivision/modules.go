package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/localfleet"
	"github.com/omnivision/omnivision/localfleet/goproxy"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// newModulesCommand is what the fleet starts for its builds; nobody else needs to.
func newModulesCommand() *cobra.Command {
	return &cobra.Command{
		Use:    localfleet.ModulesCommand,
		Short:  "Serve Go modules to builds inside a local fleet",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return serveModules(cmd.Context()) },
	}
}

func serveModules(ctx context.Context) error {
	upstream, err := goproxy.OfMachine(ctx)
	if err != nil {
		return err
	}
	listener, err := netns.Listen(ctx, topology.HubNS, "tcp", goproxy.Address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: goproxy.Handler(upstream), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
