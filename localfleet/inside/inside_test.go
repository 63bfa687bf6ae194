package inside

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/process"
)

func TestWhatIsSeenInside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces take root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sup := &process.Supervisor{Dir: t.TempDir()}
	view := View{Dir: t.TempDir(), Address: "10.111.0.1", Hosts: []string{"github.com", "quay.io", "github.com"}, CA: []byte("the fleet's own\n")}
	pid, err := view.Start(ctx, sup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sup.Stop(context.WithoutCancel(ctx), Daemon) })
	machine, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}

	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "cat", "/etc/hosts", bundle)
	cmd.Stdout = &out
	if err := process.Within("", pid, cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "10.111.0.1 github.com\n") != 1 || !strings.Contains(out.String(), "10.111.0.1 quay.io\n") {
		t.Errorf("the names are\n%.500s", out.String())
	}
	if !strings.Contains(out.String(), "BEGIN CERTIFICATE") || !strings.HasSuffix(out.String(), "the fleet's own\n") {
		t.Error("the bundle does not hold the machine's authorities and the fleet's")
	}
	if now, err := os.ReadFile("/etc/hosts"); err != nil || !bytes.Equal(now, machine) {
		t.Errorf("the machine's own names changed: %v", err)
	}

	again, err := view.Start(ctx, sup)
	if err != nil || again != pid {
		t.Errorf("the same view has the holder %d, then %d (%v)", pid, again, err)
	}
	view.Hosts = append(view.Hosts, "ghcr.io")
	if other, err := view.Start(ctx, sup); err != nil || other == pid {
		t.Errorf("another view kept the holder %d (%v)", pid, err)
	}
}
