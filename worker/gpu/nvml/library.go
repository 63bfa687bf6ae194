package nvml

import (
	"errors"
	"time"
)

// library is the handful of NVML's functions that the driver uses. go-nvml's
// own interface has hundreds and exists only with cgo; this one also lets the
// tests lose a GPU.
type library interface {
	// devices are those that this container may use.
	devices() ([]device, error)
	device(uuid string) (device, error)
	newSet() (eventSet, error)
	close() error
}

// device is a GPU; equal ones are the same GPU.
type device interface {
	uuid() (string, error)
	// partitioned says whether the GPU is in MIG mode.
	partitioned() (bool, error)
	reportsXids() (bool, error)
}

type eventSet interface {
	register(device) error
	// wait returns the next event, or errTimeout, which may come early.
	wait(timeout time.Duration) (event, error)
	free() error
}

type event struct {
	device device
	xid    uint64
}

// What NVML says and the driver tells apart.
var (
	errTimeout      = errors.New("no event")
	errLost         = errors.New("the GPU is lost")
	errNotFound     = errors.New("not found")
	errNotSupported = errors.New("not supported")
)
