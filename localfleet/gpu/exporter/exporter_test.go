package exporter

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/kubelettest"
	"github.com/omnivision/omnivision/localfleet/gpu/podresources"
)

type fixture struct {
	devices *device.Set
	uuids   []string
	now     time.Time
	kubelet *kubelettest.Kubelet
	handler http.Handler
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), kubelet: kubelettest.New(t)}
	var err error
	clock := func() time.Time { return f.now }
	if f.devices, err = device.Open(t.Context(), device.Config{Dir: t.TempDir(), Node: "gpu-0", Count: 2, Now: clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.devices.Close)
	list, _ := f.devices.Devices()
	for _, d := range list {
		f.uuids = append(f.uuids, d.UUID)
	}
	pods := podresources.Lister{Socket: f.kubelet.PodResourcesSocket(), Resource: "nvidia.com/gpu"}
	f.handler = Handler(Config{Node: "gpu-0", Version: "v0", Devices: f.devices, Owners: pods.Owners, Now: clock})
	return f
}

// scrape reads the metrics as Prometheus does.
func (f *fixture) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	recorder := httptest.NewRecorder()
	f.handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if recorder.Code != http.StatusOK {
		t.Fatalf("the scrape fails with %d: %s", recorder.Code, recorder.Body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(recorder.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// samples are a metric's values by the value of one label, among those of one GPU.
func samples(t *testing.T, families map[string]*dto.MetricFamily, name, uuid, by string) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	if families[name] == nil {
		t.Fatalf("there is no metric %s", name)
	}
	for _, m := range families[name].GetMetric() {
		if label(m, "UUID") == uuid {
			values[label(m, by)] = m.GetGauge().GetValue()
		}
	}
	return values
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return "(absent)"
}

func value(t *testing.T, families map[string]*dto.MetricFamily, name, uuid string) float64 {
	t.Helper()
	values := samples(t, families, name, uuid, "UUID")
	if len(values) != 1 {
		t.Fatalf("%s has %d samples for %s, want one", name, len(values), uuid)
	}
	return values[uuid]
}

func TestMetricsHaveTheShapeOfDCGMExporter(t *testing.T) {
	f := newFixture(t)
	f.kubelet.Start(t)
	f.kubelet.RunPod("omnivision", "worker-abc", "worker", "nvidia.com/gpu", f.uuids[0])
	f.kubelet.RunPod("omnivision", "other", "other", "example.com/fpga", f.uuids[1])
	families := f.scrape(t)
	for name, help := range map[string]string{
		"DCGM_FI_DEV_GPU_UTIL":      "GPU utilization (in %).",
		"DCGM_FI_DEV_FB_USED":       "Framebuffer memory used (in MiB).",
		"DCGM_FI_DEV_FB_FREE":       "Framebuffer memory free (in MiB).",
		"DCGM_FI_DEV_XID_ERRORS":    "Value of the last XID error encountered.",
		"DCGM_EXP_XID_ERRORS_COUNT": "Count of XID Errors within user-specified time window (see xid-count-window-size param).",
	} {
		family := families[name]
		if family == nil || family.GetType() != dto.MetricType_GAUGE || family.GetHelp() != help {
			t.Errorf("%s is %v, want a gauge with dcgm-exporter's help", name, family)
			continue
		}
		if len(family.GetMetric()) != 2 {
			t.Errorf("%s has %d samples, want one for each GPU", name, len(family.GetMetric()))
		}
		for _, m := range family.GetMetric() {
			index := "0"
			if label(m, "UUID") == f.uuids[1] {
				index = "1"
			}
			want := map[string]string{"gpu": index, "device": "nvidia" + index, "modelName": "Tesla T4", "Hostname": "gpu-0", "DCGM_FI_DRIVER_VERSION": "substitute",
				"namespace": "(absent)", "pod": "(absent)", "container": "(absent)"}
			if index == "0" {
				want["namespace"], want["pod"], want["container"] = "omnivision", "worker-abc", "worker"
			}
			for name, value := range want {
				if got := label(m, name); got != value {
					t.Errorf("%s of GPU %s has %s=%q, want %q", family.GetName(), index, name, got, value)
				}
			}
		}
	}
	if got := families["omnivision_gpu_substitute_info"]; got == nil || label(got.GetMetric()[0], "version") != "v0" {
		t.Errorf("the metrics do not say that they come from a substitute: %v", got)
	}
}

func TestUtilizationFollowsAllocationAndHealth(t *testing.T) {
	f := newFixture(t)
	f.kubelet.Start(t)
	check := func(when string, util, used float64) {
		t.Helper()
		families := f.scrape(t)
		if got := value(t, families, "DCGM_FI_DEV_GPU_UTIL", f.uuids[0]); got != util {
			t.Errorf("%s: utilization %v, want %v", when, got, util)
		}
		gotUsed, gotFree := value(t, families, "DCGM_FI_DEV_FB_USED", f.uuids[0]), value(t, families, "DCGM_FI_DEV_FB_FREE", f.uuids[0])
		if gotUsed != used || gotUsed+gotFree != device.DefaultMemoryMiB {
			t.Errorf("%s: %v MiB used and %v free, want %v used of %d", when, gotUsed, gotFree, used, device.DefaultMemoryMiB)
		}
	}
	check("idle", 0, 0)
	f.kubelet.RunPod("omnivision", "worker-abc", "worker", "nvidia.com/gpu", f.uuids[0])
	check("used", BusyPercent, 3840)
	if _, err := f.devices.Raise(t.Context(), f.uuids[0], 79); err != nil {
		t.Fatal(err)
	}
	check("off the bus", 0, 0)
	if _, err := f.devices.Reset(f.uuids[0]); err != nil {
		t.Fatal(err)
	}
	check("reset", BusyPercent, 3840)
	f.kubelet.DeletePods()
	check("idle again", 0, 0)
}

func TestXidCountIsAWindowAndTheLastXidSticks(t *testing.T) {
	f := newFixture(t)
	f.kubelet.Start(t)
	raise := func(xid int) {
		t.Helper()
		if _, err := f.devices.Raise(t.Context(), f.uuids[0], xid); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, last float64, message string, counts map[string]float64) {
		t.Helper()
		families := f.scrape(t)
		if got := samples(t, families, "DCGM_FI_DEV_XID_ERRORS", f.uuids[0], "err_msg"); len(got) != 1 || got[message] != last {
			t.Errorf("%s: the last Xid is %v, want %v (%s)", when, got, last, message)
		}
		got := samples(t, families, "DCGM_EXP_XID_ERRORS_COUNT", f.uuids[0], "xid")
		if len(got) != len(counts) {
			t.Errorf("%s: the counts are %v, want %v", when, got, counts)
		}
		for xid, count := range counts {
			if _, there := got[xid]; !there || got[xid] != count {
				t.Errorf("%s: the counts are %v, want %v", when, got, counts)
			}
		}
		windows := samples(t, families, "DCGM_EXP_XID_ERRORS_COUNT", f.uuids[0], "window_size_in_ms")
		if _, there := windows["300000"]; len(windows) != 1 || !there {
			t.Errorf("%s: the windows are %v, want 300000 ms", when, windows)
		}
		if other := samples(t, families, "DCGM_EXP_XID_ERRORS_COUNT", f.uuids[1], "xid"); len(other) != 1 || other["(absent)"] != 0 {
			t.Errorf("%s: the other GPU counts %v", when, other)
		}
	}
	check("before", 0, "No Error", map[string]float64{"(absent)": 0})
	raise(31)
	f.now = f.now.Add(time.Minute)
	raise(31)
	raise(79)
	check("after three Xids", 79, "GPU has fallen off the bus", map[string]float64{"31": 2, "79": 1})
	f.now = f.now.Add(4*time.Minute + time.Second)
	check("when the first left the window", 79, "GPU has fallen off the bus", map[string]float64{"31": 1, "79": 1})
	f.now = f.now.Add(time.Minute)
	check("when all left the window", 79, "GPU has fallen off the bus", map[string]float64{"(absent)": 0})
	if _, err := f.devices.Reset(f.uuids[0]); err != nil {
		t.Fatal(err)
	}
	check("after the reset", 79, "GPU has fallen off the bus", map[string]float64{"(absent)": 0})
	raise(999)
	check("after an Xid that nobody knows", 999, "Unknown Error", map[string]float64{"999": 1})
}

func TestAttributionFollowsAKubeletThatStartsAnew(t *testing.T) {
	f := newFixture(t)
	up := func() float64 {
		return f.scrape(t)["omnivision_gpu_substitute_pod_attribution_up"].GetMetric()[0].GetGauge().GetValue()
	}
	if up() != 0 {
		t.Error("attributed without a kubelet")
	}
	f.kubelet.Start(t)
	f.kubelet.RunPod("omnivision", "worker-abc", "worker", "nvidia.com/gpu", f.uuids...)
	for range 2 {
		if got := samples(t, f.scrape(t), "DCGM_FI_DEV_GPU_UTIL", f.uuids[1], "pod"); got["worker-abc"] != BusyPercent || up() != 1 {
			t.Errorf("the second GPU's samples are %v, want them attributed", got)
		}
		f.kubelet.Stop()
		if got := samples(t, f.scrape(t), "DCGM_FI_DEV_GPU_UTIL", f.uuids[1], "pod"); len(got) != 1 || up() != 0 {
			t.Errorf("without a kubelet the second GPU's samples are %v", got)
		}
		f.kubelet.Start(t)
	}
}

func TestUnpronounceableNamesDoNotSpoilTheScrape(t *testing.T) {
	f := newFixture(t)
	f.handler = Handler(Config{Node: "gpu\"\n\\\xff", Devices: f.devices,
		Owners: func(context.Context) (map[string]podresources.Owner, error) { return nil, errors.New("none") }})
	if len(f.scrape(t)["DCGM_FI_DEV_GPU_UTIL"].GetMetric()) != 2 {
		t.Error("samples are missing")
	}
}
