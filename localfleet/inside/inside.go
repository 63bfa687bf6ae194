// Package inside is the machine as programs inside the local fleet see it: production's
// host names lead to the fleet's servers, whose certificates are trusted, and no other
// name leads anywhere.
//
// It is a mount namespace with files of its own in place of /etc/hosts, /etc/resolv.conf
// and the bundle of certificate authorities, beside the hub's network namespace. A process
// that sleeps holds it; daemons and commands join. So git, cosign, trivy and this project's
// own programs run as in production, and nothing of the machine is changed.
package inside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/process"
	"golang.org/x/sys/unix"
)

// Daemon is the name of the process that holds the namespace.
const Daemon = "inside"

// bundle is where Debian, and so git, curl and Go's programs, keep the authorities that
// they trust.
const bundle = "/etc/ssl/certs/ca-certificates.crt"

// View describes what is seen.
type View struct {
	Dir     string // for the files that are put in place of the machine's
	NetNS   string
	Address string   // of the fleet's front
	Hosts   []string // production's names
	CA      []byte   // PEM, of the front's authority
}

// Start writes the files, and starts the holder unless it runs with the same ones. It
// returns the holder's process id.
func (v View) Start(ctx context.Context, sup *process.Supervisor) (int, error) {
	files, err := v.files()
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(v.Dir, 0o755); err != nil {
		return 0, err
	}
	var inputs []string
	for _, f := range files {
		if err := os.WriteFile(f.source, f.content, 0o644); err != nil {
			return 0, fmt.Errorf("writing what is seen inside the fleet: %w", err)
		}
		inputs = append(inputs, f.target, string(f.content))
	}
	_, err = sup.Start(ctx, process.Spec{
		Name: Daemon, Path: "/usr/bin/sleep", Args: []string{"infinity"}, NetNS: v.NetNS,
		Prepare: func() error { return mount(files) }, StopGrace: time.Second, Inputs: inputs,
	})
	if err != nil {
		return 0, err
	}
	return Holder(sup)
}

// Holder returns the process id of the holder that runs.
func Holder(sup *process.Supervisor) (int, error) {
	pid, ok := sup.Running(Daemon)
	if !ok {
		return 0, errors.New("the process that holds the view from inside the fleet does not run: start it with 'omnivision up'")
	}
	return pid, nil
}

// file takes the place of one of the machine's.
type file struct {
	source, target string
	content        []byte
}

func (v View) files() ([]file, error) {
	trusted, err := os.ReadFile(bundle)
	if err != nil {
		return nil, fmt.Errorf("reading the authorities that this machine trusts: %w; install them (Debian: apt-get install ca-certificates)", err)
	}
	var all []file
	for target, content := range map[string][]byte{
		"/etc/hosts":       v.hosts(),
		"/etc/resolv.conf": []byte("# There is no way out of the fleet.\noptions ndots:1 attempts:1 timeout:1\n"),
		bundle:             slices.Concat(bytes.TrimRight(trusted, "\n"), []byte("\n"), v.CA),
	} {
		resolved, err := filepath.EvalSymlinks(target)
		if err != nil {
			return nil, fmt.Errorf("finding %s of this machine: %w", target, err)
		}
		all = append(all, file{filepath.Join(v.Dir, filepath.Base(target)), resolved, content})
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.target, b.target) })
	return all, nil
}

func (v View) hosts() []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n")
	if name, err := os.Hostname(); err == nil && name != "localhost" {
		fmt.Fprintf(&b, "127.0.0.1 %s\n", name)
	}
	for _, host := range slices.Compact(slices.Sorted(slices.Values(v.Hosts))) {
		fmt.Fprintf(&b, "%s %s\n", v.Address, host)
	}
	return b.Bytes()
}

// mount gives the calling thread a mount namespace of its own with the files in it.
func mount(files []file) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("set mount propagation: %w", err)
	}
	for _, f := range files {
		if err := unix.Mount(f.source, f.target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", f.source, f.target, err)
		}
	}
	return nil
}
