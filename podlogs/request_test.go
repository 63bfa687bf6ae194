package podlogs

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

const (
	podsDir = "/var/lib/kubelet/pods"
	uid     = "0f6c2f0e-6a0b-4f0e-9a51-2d1f6f1c7a10"
	other   = "11111111-2222-3333-4444-555555555555"
)

// attributes are what the kubelet says of a volume of Pod omnivision/worker-0.
func attributes() map[string]string {
	return map[string]string{
		podNameAttribute:                          "worker-0",
		namespaceAttribute:                        "omnivision",
		podUIDAttribute:                           uid,
		ephemeralAttribute:                        "true",
		attributePrefix + "serviceAccount.name":   "worker",
		attributePrefix + "something.of.tomorrow": "x",
	}
}

func targetPath(pods, uid string) string {
	return filepath.Join(pods, uid, "volumes/kubernetes.io~csi/pod-logs/mount")
}

func publishRequest(pods string) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId:   "csi-0123",
		TargetPath: targetPath(pods, uid),
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: attributes(),
		Readonly:      true,
	}
}

func with(key, value string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { r.VolumeContext[key] = value }
}

func at(path string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { r.TargetPath = path }
}

var refusals = []struct {
	name   string
	change func(*csi.NodePublishVolumeRequest)
	says   string
}{
	{"no volume id", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, "volume id"},
	{"no target", at(""), "target path is missing"},
	{"no capability", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, "capability"},
	{"a block device", func(r *csi.NodePublishVolumeRequest) {
		r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}, "block"},
	{"a file system type", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().FsType = "ext4" }, "fsType"},
	{"mount flags", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().MountFlags = []string{"rw"} }, "mount flags"},
	{"a secret", func(r *csi.NodePublishVolumeRequest) { r.Secrets = map[string]string{"a": "b"} }, "secret"},
	{"a staged volume", func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "/x" }, "inline"},
	{"an attached volume", func(r *csi.NodePublishVolumeRequest) { r.PublishContext = map[string]string{"a": "b"} }, "inline"},
	{"a PersistentVolume", with(ephemeralAttribute, "false"), "not an inline volume"},
	{"an attribute of the user's", with("path", "/etc"), `"path" is not known`},
	{"a driver without podInfoOnMount", func(r *csi.NodePublishVolumeRequest) {
		r.VolumeContext = map[string]string{ephemeralAttribute: "true"}
	}, "podInfoOnMount"},
	{"no namespace", with(namespaceAttribute, ""), "namespace"},
	{"a namespace that climbs", with(namespaceAttribute, ".."), "namespace"},
	{"a namespace with a separator", with(namespaceAttribute, "a/b"), "namespace"},
	{"a name that climbs", with(podNameAttribute, "../../etc"), "name of the Pod"},
	{"a name with an underscore", with(podNameAttribute, "a_b"), "name of the Pod"},
	{"a name with a zero byte", with(podNameAttribute, "a\x00b"), "name of the Pod"},
	{"a uid that climbs", with(podUIDAttribute, "../"+uid), "uid"},
	{"a uid in capitals", with(podUIDAttribute, strings.ToUpper(uid)), "uid"},
	{"a uid with a line after it", with(podUIDAttribute, uid+"\n"), "uid"},
	{"another Pod's uid", with(podUIDAttribute, other), "asks for the logs of Pod " + other},
	{"a target outside the kubelet", at("/etc/cron.d"), "not below"},
	{"a target that climbs", at(podsDir + "/" + uid + "/volumes/kubernetes.io~csi/../../../../x/mount"), "not below"},
	{"a target of another kind of volume", at(podsDir + "/" + uid + "/volumes/kubernetes.io~secret/pod-logs/mount"), "not where"},
	{"a target without a Pod", at(podsDir + "/x/volumes/kubernetes.io~csi/pod-logs/mount"), "uid"},
	{"a target with a strange volume", at(podsDir + "/" + uid + "/volumes/kubernetes.io~csi/a_b/mount"), "volume name"},
}

func TestWhatIsNotAPodsOwnInlineVolumeIsRefused(t *testing.T) {
	if _, _, err := parsePublish(podsDir, publishRequest(podsDir)); err != nil {
		t.Fatalf("the kubelet's own request is refused: %v", err)
	}
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			r := publishRequest(podsDir)
			c.change(r)
			if _, _, err := parsePublish(podsDir, r); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %q", err, c.says)
			}
		})
	}
}

// Whatever the attributes and the target are, what is accepted is one directory right below the log directory, and
// belongs to the Pod that the target belongs to.
func FuzzVolumeAttributes(f *testing.F) {
	f.Add("omnivision", "worker-0", uid, "true", "", targetPath(podsDir, uid))
	f.Add("..", "..", "..", "true", "", podsDir+"/../../etc")
	f.Add("a/b", "a\x00", uid+"/..", "", "path", targetPath(podsDir, other))
	f.Fuzz(func(t *testing.T, namespace, name, uid, ephemeral, extra, path string) {
		r := publishRequest(podsDir)
		r.TargetPath = path
		r.VolumeContext = map[string]string{namespaceAttribute: namespace, podNameAttribute: name, podUIDAttribute: uid, ephemeralAttribute: ephemeral}
		if extra != "" {
			r.VolumeContext[extra] = "x"
		}
		before := maps.Clone(r.VolumeContext)
		p, place, err := parsePublish(podsDir, r)
		if !maps.Equal(before, r.VolumeContext) {
			t.Fatal("the request was changed")
		}
		if err != nil {
			return
		}
		if d := p.directory(); filepath.Dir(filepath.Join("/logs", d)) != "/logs" || strings.ContainsAny(d, "/\x00") || strings.Count(d, "_") != 2 {
			t.Errorf("directory %q of %+v", d, p)
		}
		if p.uid != place.uid || filepath.Join(podsDir, place.parent(), mountFolder) != path {
			t.Errorf("Pod %+v published at %+v for %q", p, place, path)
		}
	})
}
