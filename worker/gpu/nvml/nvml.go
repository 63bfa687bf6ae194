// Package nvml hears the Xid events of real GPUs from NVIDIA's management
// library, which the node's driver brings along and which is loaded at run
// time. That takes cgo: a build without it says ErrNotBuiltIn.
//
// It does not judge the events, and it hears only whole GPUs: NVML reports the
// errors of one MIG instance to privileged processes alone.
package nvml

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/omnivision/omnivision/worker/gpu"
)

// ErrNotBuiltIn says that this program was built without NVML.
var ErrNotBuiltIn = errors.New("this build has no NVML: it was compiled without cgo, or not for Linux; use the image's target \"worker\"")

// ErrPartitioned says that a GPU is divided by MIG. An unprivileged worker
// would hear of the whole GPU's errors and of none of its own programs, and a
// counter that leaves those out looks like health (P16).
var ErrPartitioned = errors.New("NVML reports the errors of a MIG instance to privileged processes only; rely on dcgm-exporter, or give the worker whole GPUs")

const (
	// xidLost is what the driver reports for a GPU that fell off the bus, and
	// what a lost GPU counts as when NVML can say nothing else about it.
	xidLost = 79
	// xidUnknown is NVML's own word for an error without a number of its own.
	// Numbers that cannot be right count as it, so that a broken driver cannot
	// make a million series and no error is left out.
	xidUnknown = 999

	// defaultWait bounds how long Watch outlives its context.
	defaultWait  = 500 * time.Millisecond
	defaultRetry = 2 * time.Second
	maxFailures  = 5
)

// Config of a Driver. The zero value of a duration means its default.
type Config struct {
	// Devices are names out of NVIDIA_VISIBLE_DEVICES: UUIDs, or indices. None
	// means every GPU that NVML shows in this container.
	Devices []string
	// Report hears of trouble by which events may be missed. It must not block.
	Report func(err error)
	// Wait is how long one call waits for an event before it looks whether the
	// context has ended.
	Wait time.Duration
	// Retry is the pause after an error that may pass.
	Retry time.Duration
}

// Driver is the gpu.Driver of real GPUs. It is to be watched once.
type Driver struct {
	config  Config
	library library
	devices []named  // registered, and not lost
	set     eventSet // nil when the devices must be registered anew
}

// named is a GPU and what to call it in events and errors.
type named struct {
	device
	name string
}

var _ gpu.Driver = (*Driver)(nil)

// Open loads NVML and registers for the devices' Xid events. Those that
// happened before are not reported. It fails unless every device can report:
// a counter of some of them would look like health for all (P16).
func Open(c Config) (*Driver, error) {
	library, err := load()
	if err != nil {
		return nil, err
	}
	return open(library, c)
}

func open(library library, c Config) (*Driver, error) {
	if c.Wait <= 0 {
		c.Wait = defaultWait
	}
	if c.Retry <= 0 {
		c.Retry = defaultRetry
	}
	d := &Driver{config: c, library: library}
	if err := d.prepare(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *Driver) prepare() (err error) {
	if d.devices, err = find(d.library, d.config.Devices); err != nil {
		return err
	}
	for _, g := range d.devices {
		if err := reports(g); err != nil {
			return fmt.Errorf("asking GPU %s for Xid events: %w", g.name, explain(err))
		}
	}
	return explain(d.register())
}

// Visible returns the UUIDs of the GPUs that NVML shows here, which are those
// whose device files the container was given. It serves device plugins that
// set no NVIDIA_VISIBLE_DEVICES, as GKE's does not.
func Visible() ([]string, error) {
	library, err := load()
	if err != nil {
		return nil, err
	}
	return visible(library)
}

func visible(library library) ([]string, error) {
	devices, err := all(library)
	err = errors.Join(err, library.close())
	if err != nil {
		return nil, err
	}
	names := make([]string, len(devices))
	for i, g := range devices {
		names[i] = g.name
	}
	return names, nil
}

// find turns names out of NVIDIA_VISIBLE_DEVICES into GPUs.
func find(library library, names []string) ([]named, error) {
	if len(names) == 0 || slices.ContainsFunc(names, isIndex) {
		return numbered(library, names)
	}
	devices := make([]named, len(names))
	for i, name := range names {
		if strings.HasPrefix(name, "MIG-") {
			return nil, fmt.Errorf("device %s: %w", name, ErrPartitioned)
		}
		found, err := library.device(name)
		if errors.Is(err, errNotFound) {
			return nil, fmt.Errorf("NVML knows no GPU %s (%w); compare %s with nvidia-smi -L in this container", name, err, gpu.VisibleDevicesVariable)
		}
		if err != nil {
			return nil, fmt.Errorf("finding GPU %s: %w", name, explain(err))
		}
		devices[i] = named{found, name}
	}
	return devices, nil
}

func isIndex(name string) bool {
	_, err := strconv.Atoi(name)
	return err == nil
}

// numbered takes every GPU there is. The indices of the variable are the
// node's and NVML's are the container's, so one cannot be looked up by the
// other; but if there are as many, they are the same GPUs.
func numbered(library library, names []string) ([]named, error) {
	devices, err := all(library)
	if err != nil {
		return nil, err
	}
	if len(devices) == 0 {
		return nil, fmt.Errorf("NVML shows none in this container: %w", gpu.ErrNone)
	}
	if len(names) > 0 && len(names) != len(devices) {
		return nil, fmt.Errorf("%s gives %d GPUs by index (%s) and NVML shows %d, so which are ours is unknown; set the device plugin's deviceIDStrategy to uuid",
			gpu.VisibleDevicesVariable, len(names), strings.Join(names, ","), len(devices))
	}
	return devices, nil
}

func all(library library) ([]named, error) {
	found, err := library.devices()
	if err != nil {
		return nil, fmt.Errorf("listing the GPUs: %w", explain(err))
	}
	devices := make([]named, len(found))
	for i, g := range found {
		name, err := g.uuid()
		if err != nil {
			return nil, fmt.Errorf("reading the UUID of GPU %d: %w", i, explain(err))
		}
		devices[i] = named{g, name}
	}
	return devices, nil
}

// reports says why a GPU cannot report Xid events. NVML takes a registration
// for none of the events as readily as one for all.
func reports(g named) error {
	divided, err := g.partitioned()
	if err != nil {
		return err
	}
	if divided {
		return ErrPartitioned
	}
	able, err := g.reportsXids()
	if err == nil && !able {
		err = errNotSupported
	}
	return err
}

// explain adds the next step to what NVML says.
func explain(err error) error {
	switch {
	case errors.Is(err, errLost):
		return fmt.Errorf("%w: it was gone before this worker began; drain the node and reset the GPU or replace the node", err)
	case errors.Is(err, errNotSupported):
		return fmt.Errorf("%w: this GPU or platform reports no Xid events (WSL and some vGPUs do not); rely on dcgm-exporter", err)
	}
	return err
}

// register makes an event set of the devices.
func (d *Driver) register() error {
	set, err := d.library.newSet()
	if err != nil {
		return fmt.Errorf("making an event set: %w", err)
	}
	for _, g := range d.devices {
		if err := set.register(g.device); err != nil {
			d.trouble("freeing an event set", set.free())
			return fmt.Errorf("registering for the Xid events of GPU %s: %w", g.name, err)
		}
	}
	d.set = set
	return nil
}

// Watch implements gpu.Driver. It reports what happened since Open, and a lost
// GPU as Xid 79, once. When every GPU is lost it stays until ctx ends: a
// worker that ended would take the count away before anyone has read it.
func (d *Driver) Watch(ctx context.Context, emit func(gpu.Event)) error {
	defer d.close()
	for failures := 0; ctx.Err() == nil && len(d.devices) > 0; {
		err := d.next(emit)
		if err == nil {
			failures = 0
			continue
		}
		d.free()
		if errors.Is(err, errLost) {
			d.bury(emit)
			continue
		}
		if failures++; failures == maxFailures {
			return fmt.Errorf("hearing of Xid events: %w, %d times in a row; look at the node's driver with nvidia-smi and dmesg", err, failures)
		}
		d.trouble("hearing of Xid events, trying again", err)
		pause(ctx, d.config.Retry)
	}
	<-ctx.Done()
	return nil
}

// next waits for one event, or until it is time to look at the context.
func (d *Driver) next(emit func(gpu.Event)) error {
	if d.set == nil {
		if err := d.register(); err != nil {
			return err
		}
	}
	e, err := d.set.wait(d.config.Wait)
	if errors.Is(err, errTimeout) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("waiting for an event: %w", err)
	}
	emit(gpu.Event{Time: time.Now(), UUID: d.nameOf(e.device), Xid: d.number(e.xid)})
	return nil
}

func (d *Driver) nameOf(handle device) string {
	for _, g := range d.devices {
		if g.device == handle {
			return g.name
		}
	}
	return "unknown"
}

func (d *Driver) number(xid uint64) int {
	if xid < 1 || xid > xidUnknown {
		d.trouble("reading an event", fmt.Errorf("NVML reports Xid %d, which does not exist; it counts as %d, unknown", xid, xidUnknown))
		return xidUnknown
	}
	return int(xid)
}

// bury counts the lost GPUs and leaves the others. NVML says that one is lost
// but not which. If none admits it, all count as lost, as they do for NVIDIA's
// device plugin: they cannot be heard any more.
func (d *Driver) bury(emit func(gpu.Event)) {
	var lost, left []named
	for _, g := range d.devices {
		if _, err := g.reportsXids(); errors.Is(err, errLost) {
			lost = append(lost, g)
		} else {
			left = append(left, g)
		}
	}
	if len(lost) == 0 {
		lost, left = d.devices, nil
	}
	d.devices = left
	for _, g := range lost {
		emit(gpu.Event{Time: time.Now(), UUID: g.name, Xid: xidLost})
	}
	if len(left) > 0 {
		d.trouble("registering anew", fmt.Errorf("%d of %d GPUs are left; an event of theirs in this moment is missed", len(left), len(left)+len(lost)))
	}
}

func (d *Driver) free() {
	if d.set != nil {
		d.trouble("freeing an event set", d.set.free())
		d.set = nil
	}
}

func (d *Driver) close() {
	d.free()
	d.trouble("closing the library", d.library.close())
}

func (d *Driver) trouble(doing string, err error) {
	if err != nil && d.config.Report != nil {
		d.config.Report(fmt.Errorf("NVML: %s: %w", doing, err))
	}
}

func pause(ctx context.Context, length time.Duration) {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
