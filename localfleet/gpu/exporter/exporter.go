// Package exporter shows simulated GPUs to Prometheus in the shape of NVIDIA's dcgm-exporter (4.x): the same metric
// names, types, help texts and labels, the container that uses each GPU attributed from the kubelet's pod-resources
// API. A query that was written for dcgm-exporter works here, pitfalls included:
//
//   - DCGM_FI_DEV_XID_ERRORS is a gauge that holds the code of the last Xid for ever; a reset of the device does not
//     clear it (P17). It has the labels err_code and err_msg.
//   - DCGM_EXP_XID_ERRORS_COUNT is a gauge that counts the Xids of the last Window, by xid. It falls again when they
//     leave the window. A GPU without an Xid in the window has one sample of value 0, without the label xid.
//   - A GPU that no container uses has no labels pod, namespace and container.
//
// Three things differ: the counts survive a restart of the exporter, because the simulated devices remember their
// Xids; the DCGM_EXP metric, which dcgm-exporter offers in its counters file commented out, is always on; and the
// label DCGM_FI_DRIVER_VERSION says "substitute".
//
// What the numbers say is simple on purpose: a healthy device that a container uses is busy to BusyPercent and has
// BusyMemoryShare of its memory in use; any other device is idle and empty. There is no noise to hide behind.
package exporter

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/podresources"
)

const (
	// BusyPercent and BusyMemoryShare are what a healthy device shows that a container uses.
	BusyPercent     = 40
	BusyMemoryShare = 0.25
	// DefaultWindow is dcgm-exporter's default for --xid-count-window-size.
	DefaultWindow = 5 * time.Minute
	// scrapeTimeout bounds one scrape, which is mostly the question to the kubelet.
	scrapeTimeout = 5 * time.Second
)

// Config says what to show.
type Config struct {
	// Node is the label Hostname, which in a cluster is the node's name.
	Node    string
	Version string
	Devices *device.Set
	// Owners asks which container uses which device; without an answer the metrics are served unattributed.
	Owners func(ctx context.Context) (map[string]podresources.Owner, error)
	// Registrations counts the device plugin's registrations; nil leaves the metric out.
	Registrations func() int
	// Window is how far back DCGM_EXP_XID_ERRORS_COUNT counts; zero means DefaultWindow.
	Window time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Handler serves the metrics.
func Handler(cfg Config) http.Handler {
	if cfg.Window == 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{cfg})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelError)})
}

type collector struct{ cfg Config }

// Describe says nothing, which lets the label sets within a metric differ, as dcgm-exporter's do.
func (collector) Describe(chan<- *prometheus.Desc) {}

// metric is the head of a metric: name, help and type as dcgm-exporter's counters file has them.
type metric struct {
	name, help string
	kind       prometheus.ValueType
}

var (
	gpuUtil  = metric{"DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", prometheus.GaugeValue}
	fbFree   = metric{"DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", prometheus.GaugeValue}
	fbUsed   = metric{"DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", prometheus.GaugeValue}
	lastXid  = metric{"DCGM_FI_DEV_XID_ERRORS", "Value of the last XID error encountered.", prometheus.GaugeValue}
	xidCount = metric{"DCGM_EXP_XID_ERRORS_COUNT", "Count of XID Errors within user-specified time window (see xid-count-window-size param).", prometheus.GaugeValue}

	healthy       = metric{"omnivision_gpu_substitute_healthy", "Whether the simulated GPU is advertised as healthy.", prometheus.GaugeValue}
	info          = metric{"omnivision_gpu_substitute_info", "Always 1: these GPUs are simulated by OmniVision's gpu-substitute.", prometheus.GaugeValue}
	attributed    = metric{"omnivision_gpu_substitute_pod_attribution_up", "Whether the kubelet said which containers use the GPUs.", prometheus.GaugeValue}
	registrations = metric{"omnivision_gpu_substitute_registrations_total", "How often the GPUs were registered with the kubelet.", prometheus.CounterValue}
)

func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	owners, err := c.cfg.Owners(ctx)
	if err != nil {
		c.cfg.Log.Warn("serving metrics without the Pods that use the GPUs", "error", err)
	}
	devices, _ := c.cfg.Devices.Devices()
	for _, d := range devices {
		c.collectDevice(out, d, owners)
	}
	send(out, info, 1, labels{"node": c.cfg.Node, "version": c.cfg.Version})
	send(out, attributed, truth(err == nil), nil)
	if c.cfg.Registrations != nil {
		send(out, registrations, float64(c.cfg.Registrations()), nil)
	}
}

func (c collector) collectDevice(out chan<- prometheus.Metric, d device.Device, owners map[string]podresources.Owner) {
	identity := labels{
		"gpu":                    strconv.Itoa(d.Index),
		"UUID":                   d.UUID,
		"pci_bus_id":             fmt.Sprintf("00000000:00:%02X.0", 0x10+d.Index),
		"device":                 fmt.Sprintf("nvidia%d", d.Index),
		"modelName":              d.Model,
		"Hostname":               c.cfg.Node,
		"DCGM_FI_DRIVER_VERSION": "substitute",
	}
	owner, used := owners[d.UUID]
	if used {
		identity = identity.with(labels{"namespace": owner.Namespace, "pod": owner.Pod, "container": owner.Container})
	}
	util, memory := 0.0, 0.0
	if used && d.Healthy {
		util, memory = BusyPercent, float64(int(BusyMemoryShare*float64(d.MemoryMiB)))
	}
	send(out, gpuUtil, util, identity)
	send(out, fbUsed, memory, identity)
	send(out, fbFree, float64(d.MemoryMiB)-memory, identity)
	send(out, healthy, truth(d.Healthy), identity)

	last := 0
	if d.Last != nil {
		last = d.Last.Xid
	}
	send(out, lastXid, float64(last), identity.with(labels{"err_code": strconv.Itoa(last), "err_msg": XidText(last)}))

	counts := map[int]int{}
	for _, event := range c.cfg.Devices.Events(d.UUID, c.cfg.Now().Add(-c.cfg.Window)) {
		counts[event.Xid]++
	}
	windowed := identity.with(labels{"window_size_in_ms": strconv.FormatInt(c.cfg.Window.Milliseconds(), 10)})
	if len(counts) == 0 {
		send(out, xidCount, 0, windowed)
	}
	for xid, count := range counts {
		send(out, xidCount, float64(count), windowed.with(labels{"xid": strconv.Itoa(xid)}))
	}
}

type labels map[string]string

// with is l and more, in a new map.
func (l labels) with(more labels) labels {
	both := make(labels, len(l)+len(more))
	for name, value := range l {
		both[name] = value
	}
	for name, value := range more {
		both[name] = value
	}
	return both
}

func send(out chan<- prometheus.Metric, m metric, value float64, l labels) {
	names, values := make([]string, 0, len(l)), make([]string, 0, len(l))
	for name, value := range l {
		// A model or node name comes from a flag; what is not UTF-8 would spoil the whole scrape.
		names, values = append(names, name), append(values, strings.ToValidUTF8(value, "\uFFFD"))
	}
	out <- prometheus.MustNewConstMetric(prometheus.NewDesc(m.name, m.help, names, nil), m.kind, value, values...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
