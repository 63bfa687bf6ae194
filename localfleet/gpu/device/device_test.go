package device

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T, cfg Config) *Set {
	t.Helper()
	if cfg.Node == "" {
		cfg.Node = "gpu-0"
	}
	if cfg.Count == 0 {
		cfg.Count = 2
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	set, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	return set
}

func raise(t *testing.T, set *Set, uuid string, xid int) Event {
	t.Helper()
	event, err := set.Raise(t.Context(), uuid, xid)
	if err != nil {
		t.Fatal(err)
	}
	return event
}

func devices(set *Set) []Device {
	list, _ := set.Devices()
	return list
}

func TestUUIDsFollowFromClusterNodeAndIndex(t *testing.T) {
	shape := regexp.MustCompile(`^GPU-[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]string{}
	for _, cluster := range []string{"cluster-aws", "cluster-gcp"} {
		for _, node := range []string{"gpu-0", "gpu-1"} {
			for index := range 2 {
				uuid, where := UUID(cluster, node, index), fmt.Sprint(cluster, node, index)
				if !shape.MatchString(uuid) {
					t.Errorf("%s: %s does not look like NVIDIA's", where, uuid)
				}
				if uuid != UUID(cluster, node, index) {
					t.Errorf("%s: the UUID changes", where)
				}
				if other, taken := seen[uuid]; taken {
					t.Errorf("%s and %s have the same UUID", where, other)
				}
				seen[uuid] = where
			}
		}
	}
	// Written down: a change of the derivation gives every node of a running fleet other GPUs.
	if got, want := UUID("cluster-aws", "gpu-0", 0), "GPU-2e41338f-5355-591c-8035-e673b555c231"; got != want {
		t.Errorf("UUID = %s, want %s", got, want)
	}
}

func TestXidIsOneLineOfTheContractInTheLog(t *testing.T) {
	dir := t.TempDir()
	set := open(t, Config{Dir: dir})
	uuid := devices(set)[1].UUID
	event := raise(t, set, uuid, 79)

	path := filepath.Join(dir, "xid", uuid+".jsonl")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal(content, &line); err != nil || bytes.Count(content, []byte("\n")) != 1 {
		t.Fatalf("the log is %q, want one line of JSON (%v)", content, err)
	}
	written, err := time.Parse(time.RFC3339Nano, line["time"].(string))
	if err != nil || !written.Equal(event.Time) || line["uuid"] != uuid || line["xid"] != 79.0 || len(line) != 3 {
		t.Errorf("the line is %v, want time, uuid and xid of %+v", line, event)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o644 {
		t.Errorf("the log has mode %v; a worker that is not root must read it", info.Mode())
	}
	if other, err := os.ReadFile(set.LogPath(devices(set)[0].UUID)); err != nil || len(other) != 0 {
		t.Errorf("the other device's log holds %q (%v), want an empty file that can be mounted", other, err)
	}
}

func TestHealthFollowsHardwareXidsUntilReset(t *testing.T) {
	for _, c := range []struct {
		name            string
		disable, enable string
		xid             int
		condemned       bool
	}{
		{name: "46 by default", xid: 46, condemned: true},
		{name: "48 by default", xid: 48, condemned: true},
		{name: "79 by default", xid: 79, condemned: true},
		{name: "an application error by default", xid: 31},
		{name: "another application error by default", xid: 109},
		{name: "79 disabled", disable: "79", xid: 79},
		{name: "48 with 79 disabled", disable: " 79 ,13", xid: 48, condemned: true},
		{name: "79 with all disabled", disable: "all", xid: 79},
		{name: "79 with all disabled, in NVIDIA's older word", disable: "XIDS", xid: 79},
		{name: "79 enabled with all disabled", disable: "all", enable: "79", xid: 79, condemned: true},
		{name: "48 with all disabled but 79", disable: "all", enable: "79", xid: 48},
		{name: "an application error enabled", enable: "31", xid: 31, condemned: true},
		{name: "an application error with all enabled", enable: "all", xid: 43, condemned: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			policy, err := ParsePolicy(c.disable, c.enable)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			set := open(t, Config{Dir: dir, Policy: policy})
			uuid := devices(set)[0].UUID
			event := raise(t, set, uuid, c.xid)
			check := func(when string, set *Set, healthy bool) {
				t.Helper()
				d := devices(set)[0]
				if d.Healthy != healthy || d.Healthy == (d.Cause != nil) {
					t.Errorf("%s: healthy is %v with cause %v, want healthy %v", when, d.Healthy, d.Cause, healthy)
				}
				if d.Last == nil || *d.Last != event {
					t.Errorf("%s: the last Xid is %v, want %v, reset or not", when, d.Last, event)
				}
				if !devices(set)[1].Healthy {
					t.Errorf("%s: the other device suffers", when)
				}
			}
			check("after the Xid", set, !c.condemned)
			set.Close()
			set = open(t, Config{Dir: dir, Policy: policy})
			check("after a restart", set, !c.condemned)
			if _, err := set.Reset(uuid); err != nil {
				t.Fatal(err)
			}
			check("after the reset", set, true)
			set.Close()
			set = open(t, Config{Dir: dir, Policy: policy})
			check("after the reset and a restart", set, true)
			event = raise(t, set, uuid, c.xid)
			check("after the next Xid", set, !c.condemned)
		})
	}
	for _, list := range []string{"79,eighty", "0", "-1", "79;80", "99999"} {
		if _, err := ParsePolicy(list, ""); err == nil {
			t.Errorf("ParsePolicy(%q) passes; a check that was meant must not be off", list)
		}
	}
}

func TestResetHoldsWhenTheClockWasSetBack(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	set := open(t, Config{Dir: t.TempDir(), Now: func() time.Time { return now }})
	uuid := devices(set)[0].UUID
	raise(t, set, uuid, 79)
	now = now.Add(-time.Hour)
	if d, err := set.Reset(uuid); err != nil || !d.Healthy {
		t.Errorf("after the reset: %+v, %v", d, err)
	}
	raise(t, set, uuid, 48)
	if devices(set)[0].Healthy {
		t.Error("the Xid after the reset does not count")
	}
}

func TestWatchersLearnOfEveryChange(t *testing.T) {
	set := open(t, Config{Dir: t.TempDir()})
	list, changed := set.Devices()
	select {
	case <-changed:
		t.Fatal("changed before anything happened")
	default:
	}
	raise(t, set, list[0].UUID, 79)
	<-changed
	_, changed = set.Devices()
	if _, err := set.Reset(list[0].UUID); err != nil {
		t.Fatal(err)
	}
	<-changed
}

func TestUnknownDevicesAndXidsAreRefused(t *testing.T) {
	set := open(t, Config{Dir: t.TempDir()})
	if _, err := set.Raise(t.Context(), "GPU-none", 79); !errors.Is(err, ErrUnknownDevice) {
		t.Errorf("raising on an unknown device: %v", err)
	}
	if _, err := set.Reset("GPU-none"); !errors.Is(err, ErrUnknownDevice) {
		t.Errorf("resetting an unknown device: %v", err)
	}
	for _, xid := range []int{0, -1, MaxXid + 1} {
		if _, err := set.Raise(t.Context(), devices(set)[0].UUID, xid); !errors.Is(err, ErrInvalidXid) {
			t.Errorf("raising Xid %d: %v", xid, err)
		}
	}
}

func TestEventsOfAWindow(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	set := open(t, Config{Dir: t.TempDir(), Now: func() time.Time { return now }})
	uuid := devices(set)[0].UUID
	for range 3 {
		raise(t, set, uuid, 31)
		now = now.Add(time.Minute)
	}
	if got := len(set.Events(uuid, now.Add(-2*time.Minute))); got != 2 {
		t.Errorf("%d events within the last two minutes, want 2", got)
	}
	if got := len(set.Events(uuid, time.Time{})); got != 3 {
		t.Errorf("%d events in all, want 3", got)
	}
}

func TestFullLogIsRefusedWhileUsedAndRenewedWhenNot(t *testing.T) {
	dir, used, usedErr := t.TempDir(), true, error(nil)
	now := time.Now()
	cfg := Config{Dir: dir, MaxLogBytes: 1000, Now: func() time.Time { return now },
		InUse: func(context.Context, string) (bool, error) { return used, usedErr }}
	set := open(t, cfg)
	uuid := devices(set)[0].UUID
	condemned := raise(t, set, uuid, 79)
	var err error
	raised := 1
	for ; raised < 100 && err == nil; raised++ {
		_, err = set.Raise(t.Context(), uuid, 31)
	}
	if !errors.Is(err, ErrLogFull) || raised < 5 {
		t.Fatalf("after %d events: %v, want the log to be full", raised, err)
	}
	inode := stat(t, set.LogPath(uuid))
	if inode.Size() > 1000 {
		t.Errorf("the log has %d bytes, more than its limit", inode.Size())
	}

	used, usedErr = false, errors.New("the kubelet does not answer")
	if _, err := set.Raise(t.Context(), uuid, 31); !errors.Is(err, ErrLogFull) || !strings.Contains(err.Error(), "the kubelet does not answer") {
		t.Errorf("with an unknown use: %v, want a refusal that says why", err)
	}
	usedErr = nil
	if err := set.Allocated(uuid); err != nil {
		t.Fatal(err)
	}
	if _, err := set.Raise(t.Context(), uuid, 31); !errors.Is(err, ErrLogFull) {
		t.Errorf("right after the kubelet was given the device: %v, want a refusal", err)
	}
	if !os.SameFile(inode, stat(t, set.LogPath(uuid))) {
		t.Fatal("the log was replaced while a container could be reading it")
	}

	now = now.Add(allocationGrace)
	raise(t, set, uuid, 31)
	if os.SameFile(inode, stat(t, set.LogPath(uuid))) || !os.SameFile(inode, stat(t, set.LogPath(uuid)+".1")) {
		t.Error("the full log was not set aside for a new one")
	}
	// The Xid that condemned the device leaves the log with the second new generation, and still condemns it.
	for range 40 {
		raise(t, set, uuid, 31)
	}
	for range 2 {
		if d := devices(set)[0]; d.Healthy || *d.Cause != condemned {
			t.Errorf("the device is healthy %v by %v, want it condemned by %v", d.Healthy, d.Cause, condemned)
		}
		events := set.Events(uuid, time.Time{})
		if len(events) < 8 || len(events) > 30 {
			t.Errorf("%d events are remembered, want those of two generations", len(events))
		}
		set.Close()
		set = open(t, cfg)
	}
	if _, err := set.Reset(uuid); err != nil {
		t.Fatal(err)
	}
	set.Close()
	if set = open(t, cfg); !devices(set)[0].Healthy {
		t.Error("the reset is forgotten")
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestTornLastLineDoesNotSwallowTheNextEvent(t *testing.T) {
	dir := t.TempDir()
	set := open(t, Config{Dir: dir})
	uuid, path := devices(set)[0].UUID, set.LogPath(devices(set)[0].UUID)
	first := raise(t, set, uuid, 31)
	set.Close()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(strings.Repeat("x", 3*maxLine) + "\n" + `{"time":"2026-11-`); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(path)

	set = open(t, Config{Dir: dir})
	second := raise(t, set, uuid, 43)
	if got := set.Events(uuid, time.Time{}); len(got) != 2 || got[0] != first || got[1] != second {
		t.Errorf("the events are %v, want %v and %v", got, first, second)
	}
	after, _ := os.ReadFile(path)
	if !bytes.HasPrefix(after, before) {
		t.Error("the log was rewritten; it may only grow")
	}
	set.Close()
	if got := open(t, Config{Dir: dir}).Events(uuid, time.Time{}); len(got) != 2 {
		t.Errorf("after a restart the events are %v, want 2", got)
	}
}

func TestConcurrentXidsAreWholeLines(t *testing.T) {
	set := open(t, Config{Dir: t.TempDir()})
	uuid := devices(set)[0].UUID
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 10 {
				if _, err := set.Raise(t.Context(), uuid, 31); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	events, malformed, err := readEvents(set.LogPath(uuid))
	if err != nil || len(events) != 40 || malformed != 0 {
		t.Fatalf("%d events and %d broken lines (%v), want 40 and none", len(events), malformed, err)
	}
	for i := 1; i < len(events); i++ {
		if !events[i].Time.After(events[i-1].Time) {
			t.Fatalf("event %d is not later than the one before", i)
		}
	}
}

func TestStateBelongsToOneProcess(t *testing.T) {
	dir := t.TempDir()
	first := open(t, Config{Dir: dir})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Config{Dir: dir, Node: "gpu-0", Count: 1}); err == nil || !strings.Contains(err.Error(), "waiting for another gpu-substitute") {
		t.Errorf("the second process got the state: %v", err)
	}
	time.AfterFunc(200*time.Millisecond, first.Close)
	open(t, Config{Dir: dir}) // waits for the first
}

func TestImpossibleNodesAreRefused(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no node":       {Dir: t.TempDir(), Count: 1},
		"no directory":  {Node: "gpu-0", Count: 1},
		"no GPU":        {Dir: t.TempDir(), Node: "gpu-0"},
		"too many GPUs": {Dir: t.TempDir(), Node: "gpu-0", Count: MaxCount + 1},
	} {
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Errorf("%s passes", name)
		}
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "health.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: damaged, Node: "gpu-0", Count: 1}); err == nil || !strings.Contains(err.Error(), "health.json") {
		t.Errorf("a damaged state passes or is not named: %v", err)
	}
}
