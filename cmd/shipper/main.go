// Command shipper is the local fleet's substitute for Fluent Bit; see package shipper. It takes the arguments that a
// sidecar's Fluent Bit is given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/omnivision/omnivision/shipper"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "shipper:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("shipper", flag.ContinueOnError)
	flags.SetOutput(out)
	config := flags.String("c", "/fluent-bit/config/fluent-bit.conf", "configuration `file`, in Fluent Bit's classic format")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	s := shipper.New(*config, shipper.Options{Log: slog.New(slog.NewJSONHandler(out, nil)).With("substitute", "fluent-bit")})
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		for range hangups {
			// What is wrong with the configuration is logged by the shipper.
			_ = s.Reload(ctx)
		}
	}()
	return s.Run(ctx)
}
