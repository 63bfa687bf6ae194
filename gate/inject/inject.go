// Package inject puts a log sidecar, Fluent Bit, into every Pod of a namespace that is labelled logging=enabled, which
// the Fluent Operator does not do (gh:fluent/fluent-operator#1048). The sidecar is a native one (an init container with
// restartPolicy Always) and comes first, so that it is there before the other containers and outlives them (P31); it
// reads only its own Pod's directory of /var/log/pods (P30).
//
// Injecting is a pure function of the Pod, its namespace and the configuration: however often and in whatever order
// with other webhooks it is called, the result is the same (P29). It fails open: a Pod that cannot have a sidecar starts
// without one, says so in the annotation logging.omnivision.ai/status, and is counted (P23).
package inject

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	// NamespaceLabel with the value NamespaceEnabled asks for sidecars in a namespace.
	NamespaceLabel   = "logging"
	NamespaceEnabled = "enabled"
	// OptOutAnnotation with the value OptOut on a Pod keeps the sidecar out of it.
	OptOutAnnotation = "logging.omnivision.ai/inject"
	OptOut           = "disabled"
	// StatusAnnotation says on each Pod of a labelled namespace what was done, as a Result.
	StatusAnnotation = "logging.omnivision.ai/status"

	// ContainerName is the sidecar's.
	ContainerName = "omnivision-fluent-bit"
	// SecretName is what the sidecar's configuration is called in each labelled namespace (package gate/logconfig).
	SecretName = "omnivision-fluent-bit"
)

// Result is what became of a Pod: a metric label, and the value of StatusAnnotation.
type Result string

const (
	// Injected: the Pod has a sidecar that reads its logs through the CSI driver.
	Injected Result = "injected"
	// InjectedHostPath: the same through hostPath, where Pod Security allows it and no driver is installed.
	InjectedHostPath Result = "injected-hostpath"
	// OptedOut: the Pod's annotation says so.
	OptedOut Result = "opted-out"
	// NoDriver: no driver is installed, and Pod Security forbids hostPath.
	NoDriver Result = "not-injected-no-driver"
	// StaticPod: the kubelet made the Pod of a file; the API server has only its mirror.
	StaticPod Result = "not-injected-static-pod"
	// Windows: the sidecar is a Linux program.
	Windows Result = "not-injected-windows"
	// Failed: the namespace or the driver could not be looked up. Such a Pod has no annotation that could be believed.
	Failed Result = "failed"
)

// Config says what the sidecar is.
type Config struct {
	// Image is the sidecar's, pinned by digest: ghcr.io/fluent/fluent-operator/fluent-bit:4.1.1@sha256:….
	Image string
	// Cluster and Region become labels of every log line.
	Cluster, Region string
	// BufferLimit is the size limit of the volume with position database and buffer. It must be well above the
	// configuration's storage.total_limit_size: the kubelet evicts a Pod whose volume outgrows its limit.
	BufferLimit resource.Quantity
	// Resources of the sidecar; GuaranteedResources are those in a Pod whose QoS class is Guaranteed, which it keeps.
	Resources, GuaranteedResources corev1.ResourceRequirements
}

// DefaultConfig has everything but image, cluster and region. A sidecar was measured at 13 MB and 1 % of a core for
// 1,000 lines a second.
func DefaultConfig() Config {
	memory, cpu := resource.MustParse("96Mi"), resource.MustParse("100m")
	return Config{
		BufferLimit: resource.MustParse("192Mi"),
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: memory},
		},
		GuaranteedResources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory},
		},
	}
}

var (
	pinned = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)
	// labelValue is what cluster and region may be: Fluent Bit's list of labels has commas between and = within.
	labelValue = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
)

func (c Config) validate() error {
	if !pinned.MatchString(c.Image) {
		return fmt.Errorf("sidecar image %q is not pinned by digest: name it as repository:tag@sha256:…", c.Image)
	}
	for what, value := range map[string]string{"cluster": c.Cluster, "region": c.Region} {
		if !labelValue.MatchString(value) {
			return fmt.Errorf("%s %q cannot be a label of log lines: letters, digits, dots, dashes and underscores are allowed", what, value)
		}
	}
	if c.BufferLimit.Sign() <= 0 {
		return errors.New("the sidecar's buffer has no limit: set one, or a log that cannot be delivered fills the node's disk")
	}
	if c.Resources.Limits.Memory().IsZero() || c.GuaranteedResources.Limits.Memory().IsZero() {
		return errors.New("the sidecar has no memory limit")
	}
	return nil
}

// Cluster answers what injecting depends on beside the Pod.
type Cluster interface {
	// NamespaceLabels are those of a namespace.
	NamespaceLabels(ctx context.Context, namespace string) (map[string]string, error)
	// DriverInstalled says whether the cluster has the CSI driver podlogs.
	DriverInstalled(ctx context.Context) (bool, error)
}

// Injector changes Pods. It is safe for concurrent use.
type Injector struct {
	config   Config
	prepared prepared
	cluster  Cluster
	log      *slog.Logger
	pods     *prometheus.CounterVec
}

// New makes an Injector. log may be nil; registerer may be nil in tests.
func New(config Config, cluster Cluster, log *slog.Logger, registerer prometheus.Registerer) (*Injector, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	prepared, err := config.prepare()
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	i := &Injector{config: config, prepared: prepared, cluster: cluster, log: log, pods: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "omnivision_log_injection_pods_total",
		Help: "Pods created in namespaces labelled logging=enabled, by what became of them. Dry runs are not counted.",
	}, []string{"namespace", "result"})}
	if registerer != nil {
		if err := registerer.Register(i.pods); err != nil {
			return nil, fmt.Errorf("register the injection's metric: %w", err)
		}
	}
	return i, nil
}

// Mutate gives the Pod of a request to create one its sidecar, where the namespace asks for it. It changes nothing but
// the Pod, and never fails a request.
func (i *Injector) Mutate(ctx context.Context, request *admissionv1.AdmissionRequest, pod *corev1.Pod) error {
	result, err := i.decide(ctx, request, pod)
	switch {
	case err != nil:
		i.fail(request, pod, err)
	case result != "":
		i.count(request, i.config.apply(pod, request.Namespace, result))
	}
	return nil
}

// decide says what is to become of a Pod; nothing where nobody asks for sidecars.
func (i *Injector) decide(ctx context.Context, request *admissionv1.AdmissionRequest, pod *corev1.Pod) (Result, error) {
	if request.Operation != admissionv1.Create || request.SubResource != "" {
		return "", nil
	}
	labels, err := i.cluster.NamespaceLabels(ctx, request.Namespace)
	if err != nil {
		return "", fmt.Errorf("look up namespace %s: %w", request.Namespace, err)
	}
	if labels[NamespaceLabel] != NamespaceEnabled {
		return "", nil
	}
	driver, err := i.cluster.DriverInstalled(ctx)
	if err != nil {
		return "", fmt.Errorf("look up the CSI driver: %w", err)
	}
	return decide(pod, labels, driver), nil
}

func (i *Injector) fail(request *admissionv1.AdmissionRequest, pod *corev1.Pod, err error) {
	i.log.Warn("a Pod starts without a log sidecar", "namespace", request.Namespace, "pod", podName(pod), "error", err)
	i.count(request, Failed)
}

func (i *Injector) count(request *admissionv1.AdmissionRequest, result Result) {
	if request.DryRun == nil || !*request.DryRun {
		i.pods.WithLabelValues(request.Namespace, string(result)).Inc()
	}
}

// decide says what is to become of a Pod in a labelled namespace.
func decide(pod *corev1.Pod, namespaceLabels map[string]string, driver bool) Result {
	switch {
	case pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return StaticPod
	case pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows:
		return Windows
	case pod.Annotations[OptOutAnnotation] == OptOut:
		return OptedOut
	case driver:
		return Injected
	case hostPathAllowed(namespaceLabels):
		return InjectedHostPath
	}
	return NoDriver
}

// hostPathAllowed reports whether the namespace's labels make Pod Security enforce nothing. Where a cluster has another
// default than upstream's (privileged), namespaces need the driver.
func hostPathAllowed(namespaceLabels map[string]string) bool {
	level := namespaceLabels["pod-security.kubernetes.io/enforce"]
	return level == "" || level == "privileged"
}
