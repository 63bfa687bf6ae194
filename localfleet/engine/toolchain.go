package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// ToolError says that the machine lacks something that building needs.
type ToolError struct {
	Tool    string
	Engines []string
	Err     error
}

func (e *ToolError) Error() string {
	hint := "install it (Debian: apt-get install golang-go gcc)"
	if e.Tool == "go" {
		hint = "install Go (https://go.dev/dl)"
	}
	return fmt.Sprintf("building %s needs %s, which this machine lacks: %v; %s, or load packed engines with `omnivision engines load`",
		strings.Join(e.Engines, ", "), e.Tool, e.Err, hint)
}

func (e *ToolError) Unwrap() error { return e.Err }

// Environment checks that this machine can build the given engines, before
// anything is started. It does not ask whether the module proxy answers: the
// first download says so within seconds, with the proxy's own words.
func (s *Store) Environment(ctx context.Context, builds ...Build) error {
	var all, cgo []string
	for _, b := range builds {
		all = append(all, b.Name)
		if b.CGO {
			cgo = append(cgo, b.Name)
		}
	}
	if len(all) == 0 {
		return nil
	}
	if err := exec.CommandContext(ctx, s.goCommand(), "version").Run(); err != nil {
		return &ToolError{Tool: "go", Engines: all, Err: err}
	}
	if len(cgo) > 0 {
		if _, err := exec.LookPath("gcc"); err != nil {
			return &ToolError{Tool: "gcc", Engines: cgo, Err: err}
		}
	}
	return nil
}

func (s *Store) goCommand() string {
	if s.Go != "" {
		return s.Go
	}
	return "go"
}

// environment is that of the go command for b. What could make the same input
// give another binary is set, whatever the user's shell says; proxy settings
// are the user's own.
func (s *Store) environment(b Build) []string {
	toolchain := b.Toolchain
	if toolchain == "" {
		toolchain = "auto"
	}
	cgo := "0"
	if b.CGO {
		cgo = "1"
	}
	return append(append(os.Environ(),
		"GOCACHE="+s.goCache(), "GOMODCACHE="+s.modCache(), "GOTMPDIR="+s.goTemp(),
		"GOTOOLCHAIN="+toolchain, "CGO_ENABLED="+cgo,
		"GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH, "GOAMD64=", "GOARM64=",
		"GOFLAGS=", "GOWORK=off", "GOEXPERIMENT="+b.Experiment, "GO111MODULE=on",
		"CGO_CFLAGS=", "CGO_CPPFLAGS=", "CGO_LDFLAGS=",
	), s.collection...)
}

// What a compiler may use before it collects garbage: most need less at all, and the
// largest, without a limit, 2 GiB.
const (
	leastHeap = 3 << 29
	mostHeap  = 3 << 30
)

// collection has compilers and linkers collect garbage only when they have used their share of the
// memory that is available: a fifth of their time goes into it otherwise. It is nil where memory
// is scarce, or where the user says how to collect (GOGC, GOMEMLIMIT).
func collection(available uint64, processors int) []string {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	share := min(available/uint64(parallelBuilds*processors), mostHeap)
	if share < leastHeap {
		return nil
	}
	return []string{"GOGC=off", fmt.Sprintf("GOMEMLIMIT=%d", share)}
}

// errStopped tells a command that was ended by its context from one that failed.
var errStopped = errors.New("stopped")
