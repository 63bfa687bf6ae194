package nvml

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/worker/gpu"
)

// fakeGPU is a GPU of a fakeLibrary.
type fakeGPU struct {
	name      string
	divided   bool
	deaf      bool  // has no Xid events
	broken    error // what every call about it answers
	refuses   error // what a registration answers
	registers int
}

func (g *fakeGPU) uuid() (string, error)      { return g.name, g.broken }
func (g *fakeGPU) partitioned() (bool, error) { return g.divided, g.broken }
func (g *fakeGPU) reportsXids() (bool, error) { return !g.deaf, g.broken }

// fakeLibrary plays a list of answers to wait, then calls ended.
type fakeLibrary struct {
	gpus        []*fakeGPU
	answers     []answer
	ended       func()
	makeSet     error
	listing     error
	waits       int
	sets, freed int
	closed      int
}

type answer struct {
	gpu  int
	xid  uint64
	err  error
	then func(*fakeLibrary)
}

func (l *fakeLibrary) devices() (devices []device, err error) {
	for _, g := range l.gpus {
		devices = append(devices, g)
	}
	return devices, l.listing
}

func (l *fakeLibrary) device(uuid string) (device, error) {
	for _, g := range l.gpus {
		if g.name == uuid {
			return g, g.broken
		}
	}
	return nil, errNotFound
}

func (l *fakeLibrary) newSet() (eventSet, error) {
	if l.makeSet != nil {
		return nil, l.makeSet
	}
	l.sets++
	return &fakeSet{l}, nil
}

func (l *fakeLibrary) close() error {
	l.closed++
	return nil
}

type fakeSet struct{ library *fakeLibrary }

func (s *fakeSet) register(d device) error {
	g := d.(*fakeGPU)
	g.registers++
	return errors.Join(g.broken, g.refuses)
}

func (s *fakeSet) free() error {
	s.library.freed++
	return nil
}

func (s *fakeSet) wait(time.Duration) (event, error) {
	l := s.library
	l.waits++
	if len(l.answers) == 0 {
		if l.ended != nil {
			l.ended()
		}
		return event{}, errTimeout
	}
	a := l.answers[0]
	l.answers = l.answers[1:]
	if a.then != nil {
		a.then(l)
	}
	if a.err != nil {
		return event{}, a.err
	}
	return event{l.gpus[a.gpu], a.xid}, nil
}

// heard is what a driver said until its library had no more answers.
type heard struct {
	counts   map[int]int // by Xid
	byGPU    map[string]int
	troubles []string
	err      error
}

func (h heard) troubled(text string) bool {
	return slices.ContainsFunc(h.troubles, func(s string) bool { return strings.Contains(s, text) })
}

func listen(t *testing.T, l *fakeLibrary, names ...string) heard {
	t.Helper()
	h := heard{counts: map[int]int{}, byGPU: map[string]int{}}
	driver, err := open(l, Config{Devices: names, Retry: time.Nanosecond, Report: func(err error) { h.troubles = append(h.troubles, err.Error()) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	l.ended = stop
	h.err = driver.Watch(ctx, func(e gpu.Event) {
		h.counts[e.Xid]++
		h.byGPU[e.UUID]++
		if e.Time.IsZero() {
			t.Errorf("event %+v has no time", e)
		}
	})
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error("Watch did not end by itself")
	}
	if l.closed != 1 || l.freed != l.sets {
		t.Errorf("the library was closed %d times, %d of %d event sets were freed; want 1 and all", l.closed, l.freed, l.sets)
	}
	return h
}

func twoGPUs(answers ...answer) *fakeLibrary {
	return &fakeLibrary{gpus: []*fakeGPU{{name: "GPU-a"}, {name: "GPU-b"}}, answers: answers}
}

func TestEventsAreCountedByXidAndNamedByGPU(t *testing.T) {
	quiet := answer{err: errTimeout}
	l := twoGPUs(quiet, answer{gpu: 0, xid: 31}, quiet, quiet, answer{gpu: 1, xid: 31}, answer{gpu: 1, xid: 79}, answer{gpu: 0, xid: 999})
	h := listen(t, l, "GPU-a", "GPU-b")
	if h.err != nil || !maps.Equal(h.counts, map[int]int{31: 2, 79: 1, 999: 1}) || !maps.Equal(h.byGPU, map[string]int{"GPU-a": 2, "GPU-b": 2}) {
		t.Errorf("heard %+v; want Xid 31 twice, 79 and 999 once, two events of each GPU", h)
	}
	if l.sets != 1 || len(h.troubles) > 0 {
		t.Errorf("%d event sets and trouble %q; quiet times are no trouble", l.sets, h.troubles)
	}
}

func TestWatchEndsWithItsContextThoughNothingHappens(t *testing.T) {
	l := twoGPUs()
	driver, err := open(l, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := driver.Watch(ctx, func(e gpu.Event) { t.Errorf("event %+v", e) }); err != nil || l.waits > 1 || l.closed != 1 {
		t.Errorf("Watch = %v after %d waits, closed %d times; want nil, at most one and once", err, l.waits, l.closed)
	}
}

func TestALostGPUIsXid79OnceAndTheOthersAreHeardOn(t *testing.T) {
	l := twoGPUs(
		answer{gpu: 1, xid: 13},
		answer{err: errLost, then: func(l *fakeLibrary) { l.gpus[0].broken = errLost }},
		answer{gpu: 1, xid: 31},
	)
	h := listen(t, l, "GPU-a", "GPU-b")
	if h.err != nil || !maps.Equal(h.counts, map[int]int{13: 1, 79: 1, 31: 1}) || h.byGPU["GPU-a"] != 1 {
		t.Errorf("heard %+v; want 79 of GPU-a between 13 and 31 of GPU-b", h)
	}
	if l.gpus[0].registers != 1 || l.gpus[1].registers != 2 || !h.troubled("1 of 2 GPUs are left") {
		t.Errorf("registered %d and %d times, trouble %q; want the one that is left anew, and that it is said", l.gpus[0].registers, l.gpus[1].registers, h.troubles)
	}
}

func TestAGPUThatIsFoundLostWhenRegisteringAnewIsXid79Too(t *testing.T) {
	l := twoGPUs(answer{err: errors.New("an interrupt issue"), then: func(l *fakeLibrary) { l.gpus[1].broken = errLost }})
	if h := listen(t, l, "GPU-a", "GPU-b"); h.err != nil || !maps.Equal(h.byGPU, map[string]int{"GPU-b": 1}) || h.counts[79] != 1 {
		t.Errorf("heard %+v; want 79 of GPU-b", h)
	}
}

func TestWhenNoGPUAdmitsItAllAreLostAndTheCountStays(t *testing.T) {
	l := twoGPUs(answer{err: errLost})
	driver, err := open(l, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	events, done := make(chan gpu.Event, 4), make(chan error, 1)
	go func() { done <- driver.Watch(ctx, func(e gpu.Event) { events <- e }) }()
	for _, name := range []string{"GPU-a", "GPU-b"} {
		if e := <-events; e.Xid != 79 || e.UUID != name {
			t.Errorf("event %+v, want 79 of %s", e, name)
		}
	}
	select {
	case err := <-done:
		t.Errorf("Watch ended with %v and so would the worker, with the count unread", err)
	default:
	}
	stop()
	if err := <-done; err != nil || l.waits != 1 {
		t.Errorf("Watch = %v after %d waits; want nil, and no waiting for lost GPUs", err, l.waits)
	}
}

func TestAnErrorThatPassesIsReportedAndRegisteredAnew(t *testing.T) {
	flaw := answer{err: errors.New("an interrupt issue")}
	l := twoGPUs(flaw, flaw, flaw, flaw, answer{gpu: 0, xid: 48}, flaw, flaw, flaw, flaw, answer{gpu: 0, xid: 48})
	h := listen(t, l, "GPU-a", "GPU-b")
	if h.err != nil || h.counts[48] != 2 || len(h.troubles) != 8 || !h.troubled("an interrupt issue") || l.sets != 9 {
		t.Errorf("heard %+v with %d event sets; want both events, eight reports and a set after each", h, l.sets)
	}
}

func TestAnErrorThatLastsEndsTheWorker(t *testing.T) {
	l := twoGPUs(slices.Repeat([]answer{{err: errors.New("an interrupt issue")}}, maxFailures)...)
	h := listen(t, l, "GPU-a", "GPU-b")
	if h.err == nil || !strings.Contains(h.err.Error(), "an interrupt issue") || !strings.Contains(h.err.Error(), "nvidia-smi") {
		t.Errorf("Watch = %v, want the cause and the next step", h.err)
	}
}

func TestANumberThatIsNoXidCountsAsUnknown(t *testing.T) {
	h := listen(t, twoGPUs(answer{xid: 0}, answer{xid: 1000}, answer{xid: 1 << 63}), "GPU-a", "GPU-b")
	if !maps.Equal(h.counts, map[int]int{999: 3}) || len(h.troubles) != 3 || !h.troubled("Xid 1000") {
		t.Errorf("heard %+v; want three events of Xid 999, and the numbers reported", h)
	}
}

func TestDevicesAreFoundByWhatTheVariableCallsThem(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		want  string
	}{
		"by UUID":                 {[]string{"GPU-b"}, "GPU-b"},
		"by index":                {[]string{"2", "5"}, "GPU-a,GPU-b"},
		"not at all, as GKE":      {nil, "GPU-a,GPU-b"},
		"in the variable's order": {[]string{"GPU-b", "GPU-a"}, "GPU-b,GPU-a"},
	} {
		t.Run(name, func(t *testing.T) {
			driver, err := open(twoGPUs(), Config{Devices: c.names})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, g := range driver.devices {
				got = append(got, g.name)
			}
			if strings.Join(got, ",") != c.want {
				t.Errorf("devices %q, want %s", got, c.want)
			}
		})
	}
}

func TestOpenRefusesWhatWouldLookLikeHealth(t *testing.T) {
	broken := func(change func(*fakeLibrary)) *fakeLibrary {
		l := twoGPUs()
		change(l)
		return l
	}
	for name, c := range map[string]struct {
		library *fakeLibrary
		names   []string
		want    string
	}{
		"unknown UUID":         {twoGPUs(), []string{"GPU-c"}, "nvidia-smi -L"},
		"MIG instance":         {twoGPUs(), []string{"MIG-1"}, "dcgm-exporter"},
		"GPU in MIG mode":      {broken(func(l *fakeLibrary) { l.gpus[1].divided = true }), nil, "dcgm-exporter"},
		"fewer than indices":   {twoGPUs(), []string{"0"}, "deviceIDStrategy"},
		"no GPU":               {&fakeLibrary{}, nil, gpu.ErrNone.Error()},
		"listing fails":        {broken(func(l *fakeLibrary) { l.listing = errors.New("no") }), nil, "listing the GPUs"},
		"one has no Xids":      {broken(func(l *fakeLibrary) { l.gpus[1].deaf = true }), []string{"GPU-a", "GPU-b"}, "GPU GPU-b"},
		"one cannot register":  {broken(func(l *fakeLibrary) { l.gpus[1].refuses = errNotSupported }), []string{"GPU-a", "GPU-b"}, "Xid events of GPU GPU-b"},
		"no event set":         {broken(func(l *fakeLibrary) { l.makeSet = errors.New("no memory") }), []string{"GPU-a"}, "event set: no memory"},
		"lost before it began": {broken(func(l *fakeLibrary) { l.gpus[0].broken = errLost }), []string{"GPU-a"}, "drain the node"},
		"lost in a list":       {broken(func(l *fakeLibrary) { l.gpus[0].broken = errLost }), nil, "drain the node"},
		"GPU that is broken":   {broken(func(l *fakeLibrary) { l.gpus[0].broken = errors.New("no power") }), []string{"GPU-a"}, "no power"},
	} {
		t.Run(name, func(t *testing.T) {
			driver, err := open(c.library, Config{Devices: c.names})
			if err == nil || driver != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("open = %v, %v; want an error with %q", driver, err, c.want)
			}
			if c.library.closed != 1 || c.library.freed != c.library.sets {
				t.Errorf("closed %d times, %d of %d sets freed; want 1 and all", c.library.closed, c.library.freed, c.library.sets)
			}
		})
	}
}

func TestVisibleListsAndLetsGo(t *testing.T) {
	l := twoGPUs()
	if got, err := visible(l); err != nil || !slices.Equal(got, []string{"GPU-a", "GPU-b"}) || l.closed != 1 {
		t.Errorf("visible = %q, %v, closed %d times; want both, once", got, err, l.closed)
	}
	l.gpus[0].broken = errLost
	if got, err := visible(l); !errors.Is(err, errLost) || got != nil || l.closed != 2 {
		t.Errorf("visible = %q, %v, closed %d times; want that one is lost", got, err, l.closed)
	}
}
