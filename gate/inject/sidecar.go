package inject

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	driverName = "podlogs.omnivision.ai"
	hostLogDir = "/var/log/pods"

	logsVolume   = "omnivision-logs"
	bufferVolume = "omnivision-logs-buffer"
	configVolume = "omnivision-logs-config"

	// LogsPath, BufferPath and ConfigPath are where the sidecar's configuration finds the Pod's logs
	// (<container>/<restart>.log), its position database and buffer, and itself.
	LogsPath   = "/var/log/pod"
	BufferPath = "/var/lib/fluent-bit"
	ConfigPath = "/fluent-bit/config"

	// ConfigFile is the main file of the configuration; HostNetworkConfigFile is the same without the HTTP server,
	// for Pods that share their node's ports with other Pods' sidecars.
	ConfigFile            = "fluent-bit.conf"
	HostNetworkConfigFile = "fluent-bit-hostnetwork.conf"
	// HTTPPort is Fluent Bit's HTTP server's: metrics, health, reload. An uncommon one, since the Pod's other containers
	// have the same ports.
	HTTPPort = 21020

	// user is not root; its group is, since the kubelet's and the runtime's log files are 0640 root:root.
	user, group = 65532, 0

	tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// EnvCluster and the like are what the configuration takes the labels' values from (${…}).
const (
	EnvCluster   = "OMNIVISION_CLUSTER"
	EnvRegion    = "OMNIVISION_REGION"
	EnvNamespace = "POD_NAMESPACE"
	EnvWorkload  = "OMNIVISION_WORKLOAD"
	EnvVersion   = "OMNIVISION_VERSION"
	EnvPod       = "POD_NAME"
	EnvUID       = "POD_UID"
	EnvNode      = "NODE_NAME"
)

// apply takes away whatever of the sidecar the Pod has and gives it what the result says, so that applying it twice is
// the same as once.
func (c Config) apply(pod *corev1.Pod, namespace string, result Result) Result {
	remove(pod)
	// Copied: the map may be shared with the request's old object.
	pod.Annotations = maps.Clone(pod.Annotations)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[StatusAnnotation] = string(result)
	if result != Injected && result != InjectedHostPath {
		return result
	}
	shape := shape{result, pod.Spec.HostNetwork, guaranteed(pod)}
	pod.Spec.InitContainers = append([]corev1.Container{c.sidecar(shape, namespace, workload(pod), version(pod))}, pod.Spec.InitContainers...)
	pod.Spec.Volumes = append(pod.Spec.Volumes, c.volumes(result)...)
	return result
}

func remove(pod *corev1.Pod) {
	ours := func(c corev1.Container) bool { return c.Name == ContainerName }
	pod.Spec.InitContainers = slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), ours)
	pod.Spec.Volumes = slices.DeleteFunc(slices.Clone(pod.Spec.Volumes), func(v corev1.Volume) bool {
		return v.Name == logsVolume || v.Name == bufferVolume || v.Name == configVolume
	})
}

// shape is what of a Pod decides how its sidecar looks, beside the values of its log lines' labels.
type shape struct {
	result      Result
	hostNetwork bool
	guaranteed  bool
}

func (c Config) sidecar(shape shape, namespace, workload, version string) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	s := corev1.Container{
		Name:                     ContainerName,
		Image:                    c.Image,
		ImagePullPolicy:          corev1.PullIfNotPresent,
		Args:                     []string{"-c", ConfigPath + "/" + configFile(shape.hostNetwork)},
		Env:                      c.env(namespace, workload, version),
		Resources:                c.resources(shape.guaranteed),
		RestartPolicy:            &always,
		SecurityContext:          securityContext(),
		LivenessProbe:            livenessProbe(shape.hostNetwork),
		VolumeMounts:             mounts(shape.result),
		TerminationMessagePath:   corev1.TerminationMessagePathDefault,
		TerminationMessagePolicy: corev1.TerminationMessageReadFile,
	}
	if s.LivenessProbe != nil {
		s.Ports = []corev1.ContainerPort{{Name: "omnivision-logs", ContainerPort: HTTPPort, Protocol: corev1.ProtocolTCP}}
	}
	return s
}

func configFile(hostNetwork bool) string {
	if hostNetwork {
		return HostNetworkConfigFile
	}
	return ConfigFile
}

func (c Config) env(namespace, workload, version string) []corev1.EnvVar {
	return []corev1.EnvVar{
		{Name: EnvCluster, Value: c.Cluster},
		{Name: EnvRegion, Value: c.Region},
		{Name: EnvNamespace, Value: namespace},
		{Name: EnvWorkload, Value: workload},
		{Name: EnvVersion, Value: version},
		// The API server makes the names of most Pods only after the webhooks.
		fromField(EnvPod, "metadata.name"),
		fromField(EnvUID, "metadata.uid"),
		fromField(EnvNode, "spec.nodeName"),
	}
}

func fromField(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

func (c Config) resources(guaranteed bool) corev1.ResourceRequirements {
	if guaranteed {
		return *c.GuaranteedResources.DeepCopy()
	}
	return *c.Resources.DeepCopy()
}

// guaranteed reports whether every container has CPU and memory limits that equal its requests, which makes a Pod's QoS
// class Guaranteed. (An absent request is the limit.)
func guaranteed(pod *corev1.Pod) bool {
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	for _, c := range containers {
		if !allLimited(c.Resources) {
			return false
		}
	}
	return len(containers) > 0
}

func allLimited(r corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, limited := r.Limits[name]
		request, requested := r.Requests[name]
		if !limited || limit.IsZero() || requested && request.Cmp(limit) != 0 {
			return false
		}
	}
	return true
}

// securityContext is within Pod Security `restricted`, whatever the Pod's own says.
func securityContext() *corev1.SecurityContext {
	no, yes, uid, gid := false, true, int64(user), int64(group)
	return &corev1.SecurityContext{
		RunAsUser: &uid, RunAsGroup: &gid, RunAsNonRoot: &yes,
		AllowPrivilegeEscalation: &no, Privileged: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// livenessProbe restarts a sidecar that hangs. There is no readiness and no startup probe on purpose: trouble with logs
// must neither take an application out of its Service nor keep it from starting.
func livenessProbe(hostNetwork bool) *corev1.Probe {
	if hostNetwork {
		return nil
	}
	return &corev1.Probe{
		ProbeHandler:        corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/api/v1/uptime", Port: intstr.FromInt32(HTTPPort), Scheme: corev1.URISchemeHTTP}},
		InitialDelaySeconds: 10, PeriodSeconds: 20, TimeoutSeconds: 5, FailureThreshold: 5, SuccessThreshold: 1,
	}
}

func mounts(result Result) []corev1.VolumeMount {
	logs := corev1.VolumeMount{Name: logsVolume, MountPath: LogsPath, ReadOnly: true}
	if result == InjectedHostPath {
		// The kubelet expands it, and the container sees no more than this directory.
		logs.SubPathExpr = "$(" + EnvNamespace + ")_$(" + EnvPod + ")_$(" + EnvUID + ")"
	}
	return []corev1.VolumeMount{
		logs,
		{Name: bufferVolume, MountPath: BufferPath, SubPath: "data"},
		{Name: configVolume, MountPath: ConfigPath, ReadOnly: true},
		// An empty directory where the API server would otherwise mount the application's token.
		{Name: bufferVolume, MountPath: tokenPath, SubPath: "no-token", ReadOnly: true},
	}
}

func (c Config) volumes(result Result) []corev1.Volume {
	limit, yes, mode := c.BufferLimit.DeepCopy(), true, int32(0o444)
	logs := corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driverName, ReadOnly: &yes}}
	if result == InjectedHostPath {
		directory := corev1.HostPathDirectory
		logs = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: hostLogDir, Type: &directory}}
	}
	return []corev1.Volume{
		{Name: logsVolume, VolumeSource: logs},
		{Name: bufferVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}},
		// Optional: an application starts also where the configuration has not arrived yet, and its logs follow.
		{Name: configVolume, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: SecretName, Optional: &yes, DefaultMode: &mode}}},
	}
}
