//go:build cgo && linux

package nvml_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/omnivision/omnivision/worker"
	"github.com/omnivision/omnivision/worker/cppn"
	"github.com/omnivision/omnivision/worker/gpu"
	"github.com/omnivision/omnivision/worker/gpu/nvml"
	"github.com/omnivision/omnivision/worker/gpu/nvml/nvmltest"
)

// told is a driver that says when an event has been counted.
type told struct {
	gpu.Driver
	counted chan gpu.Event
}

func (d told) Watch(ctx context.Context, emit func(gpu.Event)) error {
	return d.Driver.Watch(ctx, func(e gpu.Event) {
		emit(e)
		d.counted <- e
	})
}

func TestXidsOfTheLibraryArriveInTheMetric(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t), "FAKE_NVML_SCRIPT=0:31,1:13,0:31,1:lost,1:74,0:119")
		return
	}
	registry := prometheus.NewRegistry()
	devices := []string{nvmltest.GPU0, nvmltest.GPU1}
	server, err := worker.New(worker.Config{Model: cppn.Model{}, Devices: devices, Log: slog.New(slog.DiscardHandler), Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	driver, err := nvml.Open(nvml.Config{Devices: devices, Report: server.XidTrouble})
	if err != nil {
		t.Fatal(err)
	}
	source := told{driver, make(chan gpu.Event, 16)}
	watch := server.CountXids(source)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- watch(ctx) }()
	last := gpu.Event{}
	for last.Xid != 119 {
		select {
		case last = <-source.counted:
		case <-ctx.Done():
			t.Fatalf("the last event was %+v, Xid 119 never came", last)
		}
	}
	if last.UUID != nvmltest.GPU0 || last.Time.IsZero() {
		t.Errorf("the event is %+v, want it of %s and with its time", last, nvmltest.GPU0)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Watch = %v, want a clean end", err)
	}
	// 74 came from a GPU that was lost before, so nobody could have heard it.
	for xid, want := range map[string]float64{"31": 2, "13": 1, "79": 1, "119": 1, "74": 0, "8": 0} {
		if got := count(t, registry, xid); got != want {
			t.Errorf("omnivision_worker_cuda_errors_total{xid=%q} is %v, want %v", xid, got, want)
		}
	}
}

// count is -1 where there is no such series.
func count(t *testing.T, registry *prometheus.Registry, xid string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "omnivision_worker_cuda_errors_total" && m.GetLabel()[0].GetValue() == xid {
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

func TestTheLibrarysGPUsAreVisible(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t))
		return
	}
	devices, err := nvml.Visible()
	if err != nil || strings.Join(devices, ",") != nvmltest.GPU0+","+nvmltest.GPU1 {
		t.Errorf("Visible = %q, %v; want both GPUs", devices, err)
	}
}

// refused wants Open to fail with a text, and the process to survive it.
func refused(t *testing.T, c nvml.Config, want string) {
	t.Helper()
	driver, err := nvml.Open(c)
	if err == nil || driver != nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Open = %v, %v; want an error with %q", driver, err, want)
	}
}

func TestADriverThatIsNotLoadedIsNamed(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t), "FAKE_NVML_INIT=9")
		return
	}
	refused(t, nvml.Config{}, "Driver Not Loaded")
}

func TestAFunctionThatTheDriverLacksIsAnErrorNotTheEnd(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t, "-DOLD"))
		return
	}
	refused(t, nvml.Config{}, "nvmlEventSetWait_v2")
}

func TestAGPUWithoutXidEventsIsRefused(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t), "FAKE_NVML_SUPPORTED=7")
		return
	}
	refused(t, nvml.Config{}, "reports no Xid events")
	refused(t, nvml.Config{Devices: []string{"GPU-other"}}, "NVML knows no GPU GPU-other")
}

func TestAGPUInMIGModeIsRefused(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t), "FAKE_NVML_MIG=1")
		return
	}
	if _, err := nvml.Open(nvml.Config{}); !errors.Is(err, nvml.ErrPartitioned) {
		t.Errorf("Open = %v, want %v", err, nvml.ErrPartitioned)
	}
}

func TestWithoutTheLibraryTheLinkersReasonIsGiven(t *testing.T) {
	if !nvmltest.Inside() {
		dir := t.TempDir()
		nvmltest.Run(t, dir)
		return
	}
	if _, err := nvml.Open(nvml.Config{}); err == nil {
		t.Skip("this machine has an NVIDIA driver")
	} else if !strings.Contains(err.Error(), "libnvidia-ml.so.1") {
		t.Errorf("Open = %v, want the name of the library", err)
	}
}
