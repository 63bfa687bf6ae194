package gpu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestVisibleCountsOnlyWhatWasGranted(t *testing.T) {
	cases := map[string]struct {
		value string
		want  []string
		none  bool
	}{
		"unset":          {"", nil, true},
		"void":           {"void", nil, true},
		"none":           {"none", nil, true},
		"an image's all": {"all", nil, true},
		"one":            {"GPU-8c2f", []string{"GPU-8c2f"}, false},
		"two":            {"GPU-8c2f, GPU-91aa", []string{"GPU-8c2f", "GPU-91aa"}, false},
		"indices":        {"0,1", []string{"0", "1"}, false},
		"twice the same": {"GPU-1,GPU-1", nil, false},
		"a path":         {"../../etc", nil, false},
		"an empty name":  {"GPU-1,,GPU-2", nil, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Visible(c.value)
			if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) || errors.Is(err, ErrNone) != c.none {
				t.Errorf("Visible(%q) = %q, %v; want %q, none: %t", c.value, got, err, c.want, c.none)
			}
		})
	}
}

const uuid = "GPU-8c2f"

var started = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

func line(xid int, at time.Time) string {
	return fmt.Sprintf(`{"time":%q,"uuid":%q,"xid":%d}`+"\n", at.Format(time.RFC3339Nano), uuid, xid)
}

// follow drives a tail by hand, without the clock.
type follow struct {
	tail
	t      *testing.T
	xids   []int
	errors []string
}

func newFollow(t *testing.T) *follow {
	f := &follow{t: t}
	f.tail = tail{path: filepath.Join(t.TempDir(), uuid+".jsonl"), uuid: uuid, since: started,
		emit:   func(e Event) { f.xids = append(f.xids, e.Xid) },
		report: func(err error) { f.errors = append(f.errors, err.Error()) }}
	return f
}

func (f *follow) append(text string) {
	f.t.Helper()
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follow) expect(xids ...int) {
	f.t.Helper()
	f.read()
	if !slices.Equal(f.xids, xids) {
		f.t.Errorf("events %v, want %v (errors %q)", f.xids, xids, f.errors)
	}
}

func TestAHalfWrittenLineCountsOnceItIsWhole(t *testing.T) {
	f := newFollow(t)
	f.expect() // no file yet
	later := started.Add(time.Second)
	whole := line(79, later)
	for i := range len(whole) - 1 { // byte by byte
		f.append(whole[i : i+1])
		f.expect()
	}
	f.append("\n" + line(13, later)[:20])
	f.expect(79)
	f.append(line(13, later)[20:] + line(31, later))
	f.expect(79, 13, 31)
	f.expect(79, 13, 31) // reading again adds nothing
	if len(f.errors) > 0 {
		t.Errorf("complaints about good lines: %q", f.errors)
	}
}

func TestEventsBeforeTheWorkerStartedAreNotItsOwn(t *testing.T) {
	f := newFollow(t)
	f.append(line(79, started.Add(-time.Hour)) + line(31, started) + line(13, started.Add(time.Nanosecond)))
	f.expect(31, 13)
}

func TestBadLinesAreReportedAndSkipped(t *testing.T) {
	for name, bad := range map[string]string{
		"no JSON":        "Xid 79\n",
		"another device": strings.Replace(line(79, started), uuid, "GPU-other", 1),
		"no time":        `{"uuid":"GPU-8c2f","xid":79}` + "\n",
		"xid zero":       line(0, started),
		"xid huge":       line(1000, started),
		"too long":       strings.Repeat("x", 3*maxLine) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFollow(t)
			f.append(bad[:len(bad)/2])
			f.expect()
			f.append(bad[len(bad)/2:] + "\n" + line(43, started))
			f.expect(43)
			if len(f.errors) != 1 || !strings.Contains(f.errors[0], f.path) {
				t.Errorf("complaints %q, want one that names the file", f.errors)
			}
		})
	}
}

func TestAFileThatShrinksIsReportedAndCountsNothingTwice(t *testing.T) {
	f := newFollow(t)
	f.append(line(13, started) + line(31, started))
	f.expect(13, 31)
	if err := os.Truncate(f.path, int64(len(line(13, started)))); err != nil {
		t.Fatal(err)
	}
	f.expect(13, 31)
	if len(f.errors) != 1 || !strings.Contains(f.errors[0], "shrank") {
		t.Errorf("complaints %q, want that it shrank", f.errors)
	}
	f.append(line(43, started))
	f.expect(13, 31, 43)
}

func TestALastingErrorIsReportedOnce(t *testing.T) {
	f := newFollow(t)
	if err := os.Mkdir(f.path, 0o700); err != nil { // opens, but does not read
		t.Fatal(err)
	}
	for range 3 {
		f.expect()
	}
	if len(f.errors) != 1 {
		t.Errorf("complaints %q, want one", f.errors)
	}
}

func TestWatchFollowsEveryDeviceUntilTheEnd(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var mu sync.Mutex
	got := map[string]int{}
	done := make(chan error, 1)
	go func() {
		done <- XidLog{Dir: dir, Devices: []string{"GPU-a", "GPU-b"}, Since: started, Poll: 5 * time.Millisecond}.Watch(ctx, func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if got[e.UUID] = e.Xid; len(got) == 2 {
				stop()
			}
		})
	}()
	for i, device := range []string{"GPU-a", "GPU-b", "GPU-c"} {
		text := strings.Replace(line(40+i, started), uuid, device, 1)
		if err := os.WriteFile(filepath.Join(dir, device+".jsonl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil || got["GPU-a"] != 40 || got["GPU-b"] != 41 || len(got) != 2 {
		t.Errorf("Watch = %v, events %v; want 40 and 41 of the two devices", err, got)
	}
}

func TestWatchNeedsItsDirectory(t *testing.T) {
	err := XidLog{Dir: filepath.Join(t.TempDir(), "missing")}.Watch(t.Context(), func(Event) {})
	if err == nil || !strings.Contains(err.Error(), XidLogVariable) {
		t.Errorf("error is %v, want one that names %s", err, XidLogVariable)
	}
}

// FuzzVisible looks for a list of devices that gives one GPU to two
// generations, or a name that would lead out of the folder of Xid logs.
func FuzzVisible(f *testing.F) {
	for _, seed := range []string{"GPU-1", "GPU-1,GPU-2", "GPU-1, GPU-1", "all", "GPU-1,all", "none", "void", "", " ", ",", "../GPU-1", "0,1", "MIG-1/2", "GPU-1\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		devices, err := Visible(value)
		if err != nil {
			if !strings.Contains(err.Error(), VisibleDevicesVariable) {
				t.Fatalf("%q is refused without the variable's name: %v", value, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, d := range devices {
			if d == "" || d == "all" || d == "none" || d == "." || d == ".." || strings.ContainsAny(d, "/, \n\x00") || seen[d] {
				t.Fatalf("%q passes as %q", value, devices)
			}
			seen[d] = true
		}
		if len(devices) == 0 {
			t.Fatalf("%q passes as no device", value)
		}
	})
}

func FuzzParseXid(f *testing.F) {
	for _, seed := range []string{line(79, started), `{"xid":1e2}`, `{"time":"x"}`, `[]`, "", `{"time":"0001-01-01T00:00:00Z","uuid":"a","xid":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseXid(data)
		if err == nil && (e.Xid < 1 || e.Xid > maxXid || e.Time.IsZero() || !devicePattern.MatchString(e.UUID)) {
			t.Fatalf("%q was accepted as %+v", data, e)
		}
	})
}

// FuzzTail checks that how a file is cut into reads never changes its events.
func FuzzTail(f *testing.F) {
	f.Add([]byte(line(79, started)+"x\n"+line(13, started)), uint(7))
	f.Add([]byte("\n\n{\n"+line(13, started)), uint(1))
	f.Fuzz(func(t *testing.T, data []byte, step uint) {
		events := func(step int) (xids []int) {
			tail := tail{uuid: uuid, since: started, emit: func(e Event) { xids = append(xids, e.Xid) }}
			for part := range slices.Chunk(data, step) {
				tail.take(part)
			}
			return xids
		}
		if got, want := events(1+int(step%64)), events(len(data)+1); !slices.Equal(got, want) {
			t.Fatalf("in pieces the events are %v, at once %v", got, want)
		}
	})
}
