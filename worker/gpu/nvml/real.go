//go:build cgo && linux

package nvml

import (
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// sharedObject is found by the dynamic linker: the container runtime mounts it
// and refreshes the linker's cache, or LD_LIBRARY_PATH names its folder.
const sharedObject = "libnvidia-ml.so.1"

// functions are all that this package calls by way of go-nvml.
var functions = []string{
	"nvmlInit_v2", "nvmlShutdown", "nvmlErrorString",
	"nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByUUID",
	"nvmlDeviceGetUUID", "nvmlDeviceGetMigMode", "nvmlDeviceGetSupportedEventTypes",
	"nvmlDeviceRegisterEvents", "nvmlEventSetCreate", "nvmlEventSetFree", "nvmlEventSetWait_v2",
}

func load() (library, error) {
	if err := probe(); err != nil {
		return nil, err
	}
	lib := nvml.New(nvml.WithLibraryPath(sharedObject))
	if err := check("nvmlInit", lib.Init()); err != nil {
		return nil, fmt.Errorf("starting NVML: %w; look whether nvidia-smi works in this container", err)
	}
	return goNVML{lib}, nil
}

// probe loads the library once by itself. go-nvml drops the dynamic linker's
// reason, and binds each function when it is first called: one that an old
// driver lacks would end the process instead of returning an error.
func probe() error {
	object := dl.New(sharedObject, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
	if err := object.Open(); err != nil {
		return fmt.Errorf("loading NVML: %w; the container runtime mounts it with a GPU when NVIDIA_DRIVER_CAPABILITIES has utility", err)
	}
	defer func() { _ = object.Close() }() // the linker counts; go-nvml opens it again
	for _, name := range functions {
		if err := object.Lookup(name); err != nil {
			return fmt.Errorf("loading NVML: %w; the node's driver is older than 450 or broken, update it", err)
		}
	}
	return nil
}

// check turns NVML's answer into an error. It copies NVML's text, which is
// memory of the library and gone when that is closed.
func check(call string, ret nvml.Return) error {
	var kind error
	switch ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_TIMEOUT:
		return errTimeout
	case nvml.ERROR_GPU_IS_LOST:
		kind = errLost
	case nvml.ERROR_NOT_FOUND:
		kind = errNotFound
	case nvml.ERROR_NOT_SUPPORTED:
		kind = errNotSupported
	default:
		return fmt.Errorf("%s: %s (%d)", call, ret.Error(), int(ret))
	}
	return fmt.Errorf("%s: %w", call, kind)
}

type goNVML struct{ nvml.Interface }

func (r goNVML) devices() ([]device, error) {
	count, ret := r.DeviceGetCount()
	if err := check("nvmlDeviceGetCount", ret); err != nil {
		return nil, err
	}
	var devices []device
	for i := range count {
		handle, ret := r.DeviceGetHandleByIndex(i)
		if ret == nvml.ERROR_NO_PERMISSION {
			continue // the node's, but not this container's
		}
		if err := check("nvmlDeviceGetHandleByIndex", ret); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		devices = append(devices, realDevice{handle})
	}
	return devices, nil
}

func (r goNVML) device(uuid string) (device, error) {
	handle, ret := r.DeviceGetHandleByUUID(uuid)
	if ret == nvml.ERROR_INVALID_ARGUMENT {
		ret = nvml.ERROR_NOT_FOUND // a name in another form than UUIDs have
	}
	return realDevice{handle}, check("nvmlDeviceGetHandleByUUID", ret)
}

func (r goNVML) newSet() (eventSet, error) {
	set, ret := r.EventSetCreate()
	return realSet{set}, check("nvmlEventSetCreate", ret)
}

func (r goNVML) close() error { return check("nvmlShutdown", r.Shutdown()) }

type realDevice struct{ nvml.Device }

func (d realDevice) uuid() (string, error) {
	uuid, ret := d.GetUUID()
	return uuid, check("nvmlDeviceGetUUID", ret)
}

func (d realDevice) partitioned() (bool, error) {
	mode, _, ret := d.GetMigMode()
	if ret == nvml.ERROR_NOT_SUPPORTED {
		return false, nil // a GPU that cannot be divided is whole
	}
	return mode == nvml.DEVICE_MIG_ENABLE, check("nvmlDeviceGetMigMode", ret)
}

func (d realDevice) reportsXids() (bool, error) {
	types, ret := d.GetSupportedEventTypes()
	return types&nvml.EventTypeXidCriticalError != 0, check("nvmlDeviceGetSupportedEventTypes", ret)
}

type realSet struct{ nvml.EventSet }

func (s realSet) register(d device) error {
	handle, ok := d.(realDevice)
	if !ok {
		return fmt.Errorf("%T is no device of NVML's", d)
	}
	return check("nvmlDeviceRegisterEvents", handle.RegisterEvents(nvml.EventTypeXidCriticalError, s.EventSet))
}

func (s realSet) wait(timeout time.Duration) (event, error) {
	data, ret := s.Wait(uint32(timeout.Milliseconds()))
	if err := check("nvmlEventSetWait", ret); err != nil {
		return event{}, err
	}
	if data.EventType != nvml.EventTypeXidCriticalError {
		return event{}, errTimeout // nothing that was asked for
	}
	return event{realDevice{data.Device}, data.EventData}, nil
}

func (s realSet) free() error { return check("nvmlEventSetFree", s.Free()) }
