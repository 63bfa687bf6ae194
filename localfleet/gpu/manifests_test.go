package gpu

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apilabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

const pinned = Image + ":v0.1.0"

func node(name string) NodePaths {
	root := "/var/lib/omnivision/clusters/cluster-aws/nodes/" + name
	return NodePaths{Cluster: "cluster-aws", Node: name, KubeletRoot: root + "/kubelet", StateDir: root + "/gpu"}
}

func daemonSets(t *testing.T, image string, nodes ...NodePaths) (service *corev1.Service, sets []*appsv1.DaemonSet) {
	t.Helper()
	objects, err := Objects(image, nodes)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if object.GetNamespace() != "kube-system" || object.GetObjectKind().GroupVersionKind().Kind == "" {
			t.Errorf("%s is in namespace %q and of kind %q", object.GetName(), object.GetNamespace(), object.GetObjectKind().GroupVersionKind().Kind)
		}
		switch object := object.(type) {
		case *corev1.Service:
			service = object
		case *appsv1.DaemonSet:
			sets = append(sets, object)
		default:
			t.Errorf("unexpected %T", object)
		}
	}
	return service, sets
}

func TestEachNodeHasADaemonSetWithItsPathsAlone(t *testing.T) {
	own := node("gpu-1")
	own.DevicePluginDir, own.GPUs, own.Model, own.MemoryMiB = "/somewhere/else", 4, "NVIDIA L4", 23034
	service, sets := daemonSets(t, pinned, node("gpu-0"), own)
	if len(sets) != 2 {
		t.Fatalf("%d DaemonSets for 2 nodes", len(sets))
	}
	gpuNode := map[string]string{"omnivision.dev/gpu-substitute": "true"}
	for i, want := range []struct {
		name  string
		paths map[string]string // where in the Pod, and what of the node
		args  []string
	}{
		{"gpu-0", map[string]string{
			"/var/lib/kubelet/device-plugins": "/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-0/kubelet/device-plugins",
			"/var/lib/kubelet/pod-resources":  "/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-0/kubelet/pod-resources",
			"/var/lib/omnivision-gpu":         "/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-0/gpu",
		}, []string{"--cluster=cluster-aws", "--gpus=1", "--host-state-dir=/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-0/gpu"}},
		{"gpu-1", map[string]string{
			"/var/lib/kubelet/device-plugins": "/somewhere/else",
			"/var/lib/kubelet/pod-resources":  "/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-1/kubelet/pod-resources",
			"/var/lib/omnivision-gpu":         "/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-1/gpu",
		}, []string{"--cluster=cluster-aws", "--gpus=4", "--host-state-dir=/var/lib/omnivision/clusters/cluster-aws/nodes/gpu-1/gpu", "--model=NVIDIA L4", "--memory-mib=23034"}},
	} {
		set, pod := sets[i], sets[i].Spec.Template.Spec
		if set.Name != "gpu-substitute-"+want.name || pod.Containers[0].Image != pinned || !slices.Equal(pod.Containers[0].Args, want.args) {
			t.Errorf("%s runs %s %q", set.Name, pod.Containers[0].Image, pod.Containers[0].Args)
		}
		onNode := map[string]string{}
		for _, volume := range pod.Volumes {
			onNode[volume.Name] = volume.HostPath.Path
		}
		mounts := pod.Containers[0].VolumeMounts
		if len(mounts) != len(want.paths) {
			t.Errorf("%s has the mounts %v", set.Name, mounts)
		}
		for _, mount := range mounts {
			if onNode[mount.Name] != want.paths[mount.MountPath] {
				t.Errorf("%s sees %s of the node at %s, want %s", set.Name, onNode[mount.Name], mount.MountPath, want.paths[mount.MountPath])
			}
		}
		gpuNode["kubernetes.io/hostname"] = want.name
		if !apilabels.SelectorFromSet(pod.NodeSelector).Matches(apilabels.Set(gpuNode)) || len(pod.NodeSelector) != 2 {
			t.Errorf("%s selects nodes by %v", set.Name, pod.NodeSelector)
		}
		taint := corev1.Taint{Key: "nvidia.com/gpu", Value: "present", Effect: corev1.TaintEffectNoSchedule}
		if !slices.ContainsFunc(pod.Tolerations, func(to corev1.Toleration) bool {
			return to.Key == taint.Key && to.Operator == corev1.TolerationOpExists && to.Effect == taint.Effect
		}) {
			t.Errorf("%s does not tolerate %v", set.Name, taint)
		}
		// Each DaemonSet selects its own Pods; Prometheus and the Service select all of them.
		own, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		for j, other := range sets {
			podLabels := apilabels.Set(other.Spec.Template.Labels)
			if own.Matches(podLabels) != (i == j) {
				t.Errorf("%s selects the Pods of %s: %v", set.Name, other.Name, own.Matches(podLabels))
			}
			if podLabels["app.kubernetes.io/name"] != "dcgm-exporter" || podLabels["omnivision.dev/substitute"] != "gpu" || !apilabels.SelectorFromSet(service.Spec.Selector).Matches(podLabels) {
				t.Errorf("the Pods of %s have the labels %v", other.Name, podLabels)
			}
		}
		if port := pod.Containers[0].Ports[0]; port.Name != "metrics" || port.ContainerPort != 9400 {
			t.Errorf("%s has the port %v", set.Name, port)
		}
	}
}

func TestPodMayDoNoMoreThanItMust(t *testing.T) {
	_, sets := daemonSets(t, pinned, node("gpu-0"))
	pod := sets[0].Spec.Template.Spec
	security := pod.Containers[0].SecurityContext
	if !*security.ReadOnlyRootFilesystem || *security.AllowPrivilegeEscalation || security.Privileged != nil || !slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("the container may %+v", security)
	}
	if *pod.AutomountServiceAccountToken || pod.HostNetwork || pod.HostPID {
		t.Error("the Pod has a token, or the host's network or processes")
	}
	for _, mount := range pod.Containers[0].VolumeMounts {
		if mount.ReadOnly != (mount.Name == "pod-resources") {
			t.Errorf("the mount %s is read-only %v", mount.Name, mount.ReadOnly)
		}
	}
}

func TestObjectsAreStrictYAML(t *testing.T) {
	objects, err := Objects(Image+"@sha256:"+strings.Repeat("0", 64), []NodePaths{node("gpu-0")})
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		content, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		var into any = &corev1.Service{}
		if object.GetObjectKind().GroupVersionKind().Kind == "DaemonSet" {
			into = &appsv1.DaemonSet{}
		}
		if err := yaml.UnmarshalStrict(content, into); err != nil {
			t.Errorf("%s: %v\n%s", object.GetName(), err, content)
		}
		for key, value := range object.GetLabels() {
			if problems := slices.Concat(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)); len(problems) > 0 {
				t.Errorf("label %s=%s: %v", key, value, problems)
			}
		}
	}
}

func TestLongNodeNamesStayDistinct(t *testing.T) {
	long := strings.Repeat("ip-10-0-0-1.", 6) + "us-west-2.compute.internal"
	_, sets := daemonSets(t, pinned, node(long+"a"), node(long+"b"))
	for _, set := range sets {
		if problems := validation.IsDNS1123Subdomain(set.Name); len(problems) > 0 || len(set.Name) > 63 {
			t.Errorf("%s: %v", set.Name, problems)
		}
	}
	if sets[0].Name == sets[1].Name {
		t.Errorf("two nodes share the DaemonSet %s", sets[0].Name)
	}
}

func TestNodePathsKnowTheControlSocketAndTheGPUs(t *testing.T) {
	n := node("gpu-0")
	if got := n.ControlSocket(); got != n.StateDir+"/control.sock" {
		t.Errorf("the control socket is %s", got)
	}
	if got := n.UUIDs(); len(got) != 1 || got[0] != "GPU-2e41338f-5355-591c-8035-e673b555c231" {
		t.Errorf("the GPUs are %v, which is not what the substitute makes", got)
	}
}

func TestWhatCannotWorkIsRefused(t *testing.T) {
	relative, nameless, many := node("gpu-0"), node("GPU_0"), node("gpu-0")
	relative.StateDir, many.GPUs = "gpu", 17
	for _, c := range []struct {
		name, image, says string
		nodes             []NodePaths
	}{
		{"no tag", Image, "not pinned", []NodePaths{node("gpu-0")}},
		{"a registry's port is no tag", "registry.internal:5000/gpu-substitute", "not pinned", []NodePaths{node("gpu-0")}},
		{"latest", Image + ":latest", "not pinned", []NodePaths{node("gpu-0")}},
		{"no node", pinned, "no GPU node", nil},
		{"a node twice", pinned, "given twice", []NodePaths{node("gpu-0"), node("gpu-0")}},
		{"a relative path", pinned, "StateDir", []NodePaths{relative}},
		{"no node name", pinned, "not a node name", []NodePaths{nameless}},
		{"too many GPUs", pinned, "17 GPUs", []NodePaths{many}},
	} {
		if _, err := Objects(c.image, c.nodes); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", c.name, err, c.says)
		}
	}
}
