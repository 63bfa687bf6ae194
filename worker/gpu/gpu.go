// Package gpu knows which GPUs this container was given, and hears their Xid
// events. It does not compute on them: that is a Model's business.
package gpu

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// VisibleDevicesVariable is set by the device plugin, by way of the container
// runtime, to the GPUs of this container.
const VisibleDevicesVariable = "NVIDIA_VISIBLE_DEVICES"

// CPU is the device of a worker that was told to do without a GPU.
const CPU = "cpu"

// ErrNone says that the container has no GPU.
var ErrNone = errors.New("no GPU is allocated to this container")

var devicePattern = regexp.MustCompile(`^[A-Za-z0-9-]{1,96}$`)

// Visible reads the value of VisibleDevicesVariable and returns one name a
// device, usually its UUID. It refuses "all": an image sets that by itself and
// it says nothing about what the scheduler granted, so two workers would each
// believe that they own every GPU of the node. Where no variable is set, package
// nvml can say which GPUs the container was given.
func Visible(value string) ([]string, error) {
	switch strings.TrimSpace(value) {
	case "", "none", "void":
		return nil, fmt.Errorf("%w (%s is %q)", ErrNone, VisibleDevicesVariable, value)
	case "all":
		return nil, fmt.Errorf("%w: %s is \"all\", which an image sets by itself and no device plugin does", ErrNone, VisibleDevicesVariable)
	}
	var devices []string
	seen := map[string]bool{}
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "all" || name == "none" || name == "void":
			return nil, fmt.Errorf("%w: %s has %q among other names, so it is not clear which GPUs are this container's", ErrNone, VisibleDevicesVariable, name)
		case !devicePattern.MatchString(name):
			return nil, fmt.Errorf("%s: %q is not the name of a device", VisibleDevicesVariable, name)
		}
		if seen[name] {
			return nil, fmt.Errorf("%s names %s twice", VisibleDevicesVariable, name)
		}
		seen[name] = true
		devices = append(devices, name)
	}
	return devices, nil
}

// Event is one Xid: what the NVIDIA driver reports when a GPU, or a program on
// it, failed.
type Event struct {
	Time time.Time
	UUID string
	Xid  int
}

// Driver reports the Xid events of the container's GPUs.
//
// Watch calls emit, from one goroutine, for every event that happens while it
// runs and for none that happened before: a worker must not answer for its
// predecessor's errors (P17). It returns when ctx ends, with nil, or when it
// can never report again, with the reason; trouble that may pass is its own to
// retry.
//
// XidLog is the driver of simulated GPUs, package nvml that of real ones. A
// worker that has neither exports no Xid counter at all, rather than one that
// is always zero (P16), and DCGM's exporter on the node is what counts.
type Driver interface {
	Watch(ctx context.Context, emit func(Event)) error
}

// KnownXids are those that NVIDIA documents for data-centre GPUs. A worker
// exports their counters as zero from the start: a series that first appears
// with the value one has no increase for Prometheus to see (P17).
func KnownXids() []int {
	return []int{
		8, 13, 31, 32, 38, 43, 45, 46, 48, 61, 62, 63, 64, 65, 68, 69, 74, 79,
		92, 94, 95, 109, 110, 119, 120, 121, 122, 123, 136, 137, 140, 143, 145,
	}
}

// Hardware says whether an Xid condemns the GPU, and so the node, rather than
// the program that ran on it (P17).
func Hardware(xid int) bool {
	switch xid {
	case 46, 48, 62, 64, 74, 79, 95, 110, 119, 120, 136, 140, 143:
		return true
	}
	return false
}
