// Package gpu puts simulated GPUs on the GPU nodes of a local fleet: the Kubernetes objects that run gpu-substitute
// there. What the substitute does is in the packages below: device holds the simulated GPUs, plugin offers them to the
// kubelet, exporter shows them to Prometheus, control lets a rehearsal break them, and substitute is the program.
//
// Nothing outside of the fleet knows this package. In a cluster of a cloud, NVIDIA's device plugin and dcgm-exporter
// stand in its place, and the platform cannot tell the difference but by asking: the metric
// omnivision_gpu_substitute_info, the label omnivision.dev/substitute and the driver version "substitute" say so.
package gpu

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/omnivision/omnivision/localfleet/gpu/control"
	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/substitute"
)

const (
	// Image is the repository of the substitute's image.
	Image = "ghcr.io/omnivision/gpu-substitute"
	// Namespace is where the substitute runs. The gate never looks into it (P22), and Pod Security lets hostPath pass.
	Namespace = "kube-system"
	// Name is the substitute's name; the DaemonSet of a node is called Name-NODE.
	Name = "gpu-substitute"
	// NodeLabel is what the fleet puts on its GPU nodes, with the value "true".
	NodeLabel = "omnivision.dev/gpu-substitute"
	// SubstituteLabel names, on whatever stands in for something of a cloud, what that is.
	SubstituteLabel = "omnivision.dev/substitute"
	// MetricsPort is dcgm-exporter's.
	MetricsPort = 9400

	gpuTaint = "nvidia.com/gpu"
)

// NodePaths is a GPU node and where its kubelet keeps what the substitute needs. Paths are those that the node's
// container runtime sees.
type NodePaths struct {
	// Cluster and Node name the node: its GPUs' UUIDs are derived from them.
	Cluster, Node string
	// KubeletRoot is the kubelet's --root-dir: the pod-resources socket is below it.
	KubeletRoot string
	// DevicePluginDir is the directory that this node's kubelet sees as /var/lib/kubelet/device-plugins, a path that
	// no flag of the kubelet changes. Empty means KubeletRoot/device-plugins, which is right where each kubelet has
	// that directory mounted over the fixed path.
	DevicePluginDir string
	// StateDir keeps the simulated devices: their logs, their health and the control socket.
	StateDir string
	// GPUs is how many the node has; Model and MemoryMiB what they are. Zero values mean one T4.
	GPUs      int
	Model     string
	MemoryMiB int
}

// ControlSocket is where `omnivision gpu` reaches the node's substitute; see control.NewClient.
func (n NodePaths) ControlSocket() string { return filepath.Join(n.StateDir, control.SocketName) }

// UUIDs are those of the node's GPUs, by index, whether it runs or not.
func (n NodePaths) UUIDs() []string {
	uuids := make([]string, 0, n.count())
	for index := range n.count() {
		uuids = append(uuids, device.UUID(n.Cluster, n.Node, index))
	}
	return uuids
}

func (n NodePaths) count() int { return max(n.GPUs, 1) }

func (n NodePaths) devicePluginDir() string {
	if n.DevicePluginDir == "" {
		return filepath.Join(n.KubeletRoot, "device-plugins")
	}
	return n.DevicePluginDir
}

// Objects makes what runs the substitute on the nodes of one cluster: a DaemonSet for each node, since the paths of
// nodes that share a machine differ, and the Service that dcgm-exporter's chart has.
func Objects(image string, nodes []NodePaths) ([]client.Object, error) {
	if err := checkImage(image); err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, errors.New("no GPU node is given: simulated GPUs need at least one")
	}
	objects := []client.Object{service()}
	seen := map[string]bool{}
	for _, node := range nodes {
		if err := node.check(); err != nil {
			return nil, fmt.Errorf("simulated GPUs of node %q: %w", node.Node, err)
		}
		if seen[node.Node] {
			return nil, fmt.Errorf("simulated GPUs of node %q: the node is given twice", node.Node)
		}
		seen[node.Node] = true
		objects = append(objects, daemonSet(image, node))
	}
	return objects, nil
}

// checkImage refuses a reference that can name another image tomorrow.
func checkImage(image string) error {
	name := image[strings.LastIndex(image, "/")+1:]
	if strings.Contains(name, "@sha256:") {
		return nil
	}
	_, tag, tagged := strings.Cut(name, ":")
	if !tagged || tag == "" || tag == "latest" {
		return fmt.Errorf("the image %q of the substitute is not pinned: give %s with the fleet's own tag or a digest", image, Image)
	}
	return nil
}

func (n NodePaths) check() error {
	if problems := validation.IsDNS1123Subdomain(n.Node); len(problems) > 0 {
		return fmt.Errorf("not a node name: %s", strings.Join(problems, "; "))
	}
	for _, dir := range []struct{ what, path string }{
		{"KubeletRoot", n.KubeletRoot}, {"DevicePluginDir", n.devicePluginDir()}, {"StateDir", n.StateDir},
	} {
		if !filepath.IsAbs(dir.path) {
			return fmt.Errorf("%s is %q: give an absolute path of the node", dir.what, dir.path)
		}
	}
	if n.GPUs < 0 || n.GPUs > device.MaxCount {
		return fmt.Errorf("%d GPUs: choose 1 to %d", n.GPUs, device.MaxCount)
	}
	return nil
}

// selector is what dcgm-exporter's chart selects its Pods by, and Prometheus finds them by.
func selector() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "dcgm-exporter"}
}

func labels(node string) map[string]string {
	l := selector()
	l["app.kubernetes.io/component"] = Name
	l["app.kubernetes.io/part-of"] = "omnivision-local-fleet"
	l[SubstituteLabel] = "gpu"
	if node != "" {
		l["app.kubernetes.io/instance"] = instance(node)
	}
	return l
}

// instance names a node's DaemonSet; a label's value has at most 63 characters, a node's name may have more.
func instance(node string) string {
	name := Name + "-" + node
	if len(name) > validation.LabelValueMaxLength {
		uuid := device.UUID("", node, 0)
		name = name[:validation.LabelValueMaxLength-9] + "-" + uuid[len("GPU-"):len("GPU-")+8]
	}
	return name
}

func service() *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: Name, Namespace: Namespace, Labels: labels("")},
		Spec: corev1.ServiceSpec{
			Selector: selector(),
			Ports:    []corev1.ServicePort{{Name: "metrics", Port: MetricsPort, TargetPort: intstr.FromString("metrics"), Protocol: corev1.ProtocolTCP}},
		},
	}
}

func daemonSet(image string, node NodePaths) *appsv1.DaemonSet {
	all := labels(node.Node)
	selected := map[string]string{"app.kubernetes.io/name": all["app.kubernetes.io/name"], "app.kubernetes.io/instance": all["app.kubernetes.io/instance"]}
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Name: instance(node.Node), Namespace: Namespace, Labels: all},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: selected},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: all},
				Spec:       podSpec(image, node),
			},
		},
	}
}

func podSpec(image string, node NodePaths) corev1.PodSpec {
	pluginVolume, pluginMount := hostDir("device-plugins", node.devicePluginDir(), substitute.DefaultDevicePluginDir)
	podsVolume, podsMount := hostDir("pod-resources", filepath.Join(node.KubeletRoot, "pod-resources"), filepath.Dir(substitute.DefaultPodResourcesSocket))
	podsMount.ReadOnly = true
	stateVolume, stateMount := hostDir("state", node.StateDir, substitute.DefaultStateDir)
	arguments := []string{"--cluster=" + node.Cluster, "--gpus=" + strconv.Itoa(node.count()), "--host-state-dir=" + node.StateDir}
	if node.Model != "" {
		arguments = append(arguments, "--model="+node.Model)
	}
	if node.MemoryMiB != 0 {
		arguments = append(arguments, "--memory-mib="+strconv.Itoa(node.MemoryMiB))
	}
	return corev1.PodSpec{
		NodeSelector: map[string]string{NodeLabel: "true", corev1.LabelHostname: node.Node},
		Tolerations:  []corev1.Toleration{{Key: gpuTaint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
		// Without it the node has no GPUs, so it goes first and stays longest, as NVIDIA's does.
		PriorityClassName:            "system-node-critical",
		AutomountServiceAccountToken: new(false),
		EnableServiceLinks:           new(false),
		SecurityContext:              &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Volumes:                      []corev1.Volume{pluginVolume, podsVolume, stateVolume},
		Containers: []corev1.Container{{
			Name:  Name,
			Image: image,
			Args:  arguments,
			Env: []corev1.EnvVar{{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "spec.nodeName"}}}},
			Ports:          []corev1.ContainerPort{{Name: "metrics", ContainerPort: MetricsPort, Protocol: corev1.ProtocolTCP}},
			VolumeMounts:   []corev1.VolumeMount{pluginMount, podsMount, stateMount},
			LivenessProbe:  probe("/health", 10),
			ReadinessProbe: probe("/ready", 2),
			// The kubelet's sockets belong to root, and as their owner root needs no capability to use them.
			SecurityContext: &corev1.SecurityContext{
				RunAsUser:                new(int64(0)),
				AllowPrivilegeEscalation: new(false),
				ReadOnlyRootFilesystem:   new(true),
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("5m"), corev1.ResourceMemory: resource.MustParse("24Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
			},
		}},
	}
}

func hostDir(name, onNode, inPod string) (corev1.Volume, corev1.VolumeMount) {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{
			Path: onNode, Type: new(corev1.HostPathDirectoryOrCreate)}}},
		corev1.VolumeMount{Name: name, MountPath: inPod}
}

func probe(path string, period int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("metrics")}},
		PeriodSeconds: period, TimeoutSeconds: 3,
	}
}
