package podlogs

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/util/validation"
)

// What the kubelet adds to a volume's context for a driver with podInfoOnMount.
const (
	attributePrefix    = "csi.storage.k8s.io/"
	podNameAttribute   = attributePrefix + "pod.name"
	namespaceAttribute = attributePrefix + "pod.namespace"
	podUIDAttribute    = attributePrefix + "pod.uid"
	ephemeralAttribute = attributePrefix + "ephemeral"
)

// uidFormat is how the API server writes a UID: a UUID in lower case. Static Pods have other ones, and cannot have CSI
// volumes.
var uidFormat = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// pod is whose logs a volume shows.
type pod struct {
	namespace, name, uid string
}

// directory is the name that the kubelet gives to the Pod's log directory
// (k8s.io/kubernetes/pkg/kubelet/kuberuntime, BuildPodLogsDirectory).
func (p pod) directory() string { return p.namespace + "_" + p.name + "_" + p.uid }

// parsePod reads the volume context that the kubelet made. Every name is checked by Kubernetes' own rules, which leave
// no room for separators of paths.
func parsePod(attributes map[string]string) (pod, error) {
	for key := range attributes {
		if !strings.HasPrefix(key, attributePrefix) {
			return pod{}, fmt.Errorf("volume attribute %q is not known: a volume of %s has no attributes of its own", key, DriverName)
		}
	}
	if attributes[ephemeralAttribute] != "true" {
		return pod{}, fmt.Errorf("not an inline volume: %s serves volumes that stand in the Pod's own spec, and no PersistentVolumes", DriverName)
	}
	p := pod{namespace: attributes[namespaceAttribute], name: attributes[podNameAttribute], uid: attributes[podUIDAttribute]}
	if p == (pod{}) {
		return pod{}, fmt.Errorf("the kubelet does not say which Pod the volume is for: CSIDriver %s needs podInfoOnMount: true", DriverName)
	}
	if wrong := validation.IsDNS1123Label(p.namespace); len(wrong) > 0 {
		return pod{}, fmt.Errorf("namespace %.80q: %s", p.namespace, wrong[0])
	}
	if wrong := validation.IsDNS1123Subdomain(p.name); len(wrong) > 0 {
		return pod{}, fmt.Errorf("name of the Pod %.300q: %s", p.name, wrong[0])
	}
	if !uidFormat.MatchString(p.uid) {
		return pod{}, fmt.Errorf("the Pod's uid %.80q is not a UUID", p.uid)
	}
	return p, nil
}

// target is a volume's place below the kubelet's folder pods: <uid>/volumes/kubernetes.io~csi/<volume>/mount.
type target struct {
	uid, volume string
}

func (t target) parent() string {
	return filepath.Join(t.uid, "volumes", "kubernetes.io~csi", t.volume)
}

const mountFolder = "mount"

// parseTarget takes a target path apart. pods is the kubelet's folder of Pods.
func parseTarget(pods, path string) (target, error) {
	relative, below := strings.CutPrefix(path, pods+"/")
	if !below || filepath.Clean(path) != path {
		return target{}, fmt.Errorf("target path %.300q is not below %s; set --kubelet-dir to the kubelet's root directory", path, pods)
	}
	parts := strings.Split(relative, "/")
	if len(parts) != 5 || parts[1] != "volumes" || parts[2] != "kubernetes.io~csi" || parts[4] != mountFolder {
		return target{}, fmt.Errorf("target path %.300q is not where the kubelet mounts a CSI volume", path)
	}
	if !uidFormat.MatchString(parts[0]) {
		return target{}, fmt.Errorf("target path %.300q does not begin with a Pod's uid", path)
	}
	if wrong := validation.IsDNS1123Label(parts[3]); len(wrong) > 0 {
		return target{}, fmt.Errorf("volume name in target path %.300q: %s", path, wrong[0])
	}
	return target{uid: parts[0], volume: parts[3]}, nil
}

// parsePublish checks a request whole, before anything is touched.
func parsePublish(pods string, r *csi.NodePublishVolumeRequest) (pod, target, error) {
	if err := checkCapability(r.GetVolumeCapability()); err != nil {
		return pod{}, target{}, err
	}
	switch {
	case r.GetVolumeId() == "":
		return pod{}, target{}, fmt.Errorf("volume id is missing")
	case r.GetTargetPath() == "":
		return pod{}, target{}, fmt.Errorf("target path is missing")
	case r.GetStagingTargetPath() != "", len(r.GetPublishContext()) > 0:
		return pod{}, target{}, fmt.Errorf("the volume was staged or attached, which %s does not do: it serves inline volumes", DriverName)
	case len(r.GetSecrets()) > 0:
		return pod{}, target{}, fmt.Errorf("the volume names a secret (nodePublishSecretRef), and %s takes none", DriverName)
	}
	t, err := parseTarget(pods, r.GetTargetPath())
	if err != nil {
		return pod{}, target{}, err
	}
	p, err := parsePod(r.GetVolumeContext())
	if err != nil {
		return pod{}, target{}, err
	}
	if p.uid != t.uid {
		return pod{}, target{}, fmt.Errorf("the volume of Pod %s asks for the logs of Pod %s", t.uid, p.uid)
	}
	return p, t, nil
}

func checkCapability(c *csi.VolumeCapability) error {
	switch {
	case c == nil:
		return fmt.Errorf("volume capability is missing")
	case c.GetMount() == nil:
		return fmt.Errorf("log directories are file systems, not block devices")
	case c.GetMount().GetFsType() != "":
		return fmt.Errorf("fsType %.40q: a log directory has the file system that it is on", c.GetMount().GetFsType())
	case len(c.GetMount().GetMountFlags()) > 0:
		return fmt.Errorf("mount flags are not taken: log directories are mounted read-only, nosuid, nodev and noexec")
	}
	return nil
}
