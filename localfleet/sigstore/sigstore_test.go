package sigstore

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/process"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

func freePort(t testing.TB) uint16 {
	t.Helper()
	_, port, err := net.SplitHostPort(freeAddress(t))
	check(t, err)
	number, err := strconv.ParseUint(port, 10, 16)
	check(t, err)
	return uint16(number)
}

// engine finds a program. Where the engines' folder is named, as `make test` does, it must be there.
func engine(t testing.TB, name string) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if named || os.Getenv("CI") != "" {
			t.Fatalf("%s is not in OMNIVISION_ENGINES: %v", name, err)
		}
		t.Skipf("%s is not built: run 'make engines'", name)
	}
	return path
}

// started is a Sigstore that runs on ports of its own.
func started(t *testing.T, change func(*Server)) (Server, *process.Supervisor) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sigstore")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	s := Server{
		Programs: Programs{Fulcio: engine(t, "fulcio"), Rekor: engine(t, "rekor-server"), Timestamp: engine(t, "timestamp-server")},
		Dir:      filepath.Join(dir, "sigstore"),
		Listen: Addresses{
			Fulcio: freeAddress(t), Rekor: freeAddress(t), Timestamp: freeAddress(t), RekorGRPC: freeAddress(t), FulcioGRPC: freeAddress(t),
			FulcioMetrics: freePort(t), RekorMetrics: freePort(t),
		},
	}
	if change != nil {
		change(&s)
	}
	sup := &process.Supervisor{Dir: filepath.Join(dir, "daemons")}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		check(t, s.Stop(ctx, sup))
		if t.Failed() {
			for _, name := range []string{Fulcio, Rekor, Timestamp} {
				t.Logf("%s:\n%s", name, sup.LogTail(name, 20))
			}
		}
	})
	check(t, s.Start(t.Context(), sup))
	return s, sup
}

func TestStarts(t *testing.T) {
	s, _ := started(t, nil)
	_ = s
}
