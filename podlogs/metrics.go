package podlogs

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	calls      *prometheus.CounterVec
	registered prometheus.Gauge
}

func newMetrics() metrics {
	return metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "podlogs_calls_total",
			Help: "Calls of the kubelet by method (publish, unpublish) and gRPC status code.",
		}, []string{"method", "code"}),
		registered: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "podlogs_registered",
			Help: "1 while the kubelet has the driver registered.",
		}),
	}
}

func (m metrics) register(r prometheus.Registerer) error {
	if err := r.Register(m.calls); err != nil {
		return err
	}
	return r.Register(m.registered)
}
