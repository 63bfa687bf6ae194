// Package logs_test proves what the manifests of the log components promise together.
package logs_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/podlogs"
)

func render(t *testing.T, component string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := fleet.RenderSource(os.DirFS("../omnivision-gitops"), fleet.Source{Path: "components/" + component + "/manifests"}, "")
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

type template struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     corev1.PodSpec    `json:"spec"`
}

func templates(t *testing.T, component string) (found []template) {
	t.Helper()
	for _, o := range render(t, component) {
		raw, has, _ := unstructured.NestedMap(o.Object, "spec", "template")
		if !has {
			continue
		}
		var pod template
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &pod); err != nil {
			t.Fatal(err)
		}
		found = append(found, pod)
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d Pod templates", component, len(found))
	}
	return found
}

func forbidden(t *testing.T, level api.Level, pod template) (why []string) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range evaluator.EvaluatePod(api.LevelVersion{Level: level, Version: api.LatestVersion()}, &pod.Metadata, &pod.Spec) {
		if !r.Allowed {
			why = append(why, r.ForbiddenReason+": "+r.ForbiddenDetail)
		}
	}
	return why
}

func TestOnlyTheDriverIsPrivileged(t *testing.T) {
	for _, component := range []string{"loki", "fluent-operator"} {
		if why := forbidden(t, api.LevelRestricted, templates(t, component)[0]); why != nil {
			t.Errorf("%s does not fit Pod Security restricted: %v", component, why)
		}
	}
	driver := templates(t, "podlogs")[0]
	if forbidden(t, api.LevelRestricted, driver) == nil {
		t.Error("the driver fits Pod Security restricted: the check proves nothing, or its namespace need not be privileged")
	}
	var paths []string
	for _, v := range driver.Spec.Volumes {
		if v.HostPath == nil {
			t.Fatalf("volume %s is not of the host", v.Name)
		}
		paths = append(paths, v.HostPath.Path)
	}
	slices.Sort(paths)
	want := []string{podlogs.DefaultKubeletDir + "/plugins/" + podlogs.DriverName, podlogs.DefaultKubeletDir + "/plugins_registry", podlogs.DefaultKubeletDir + "/pods", podlogs.DefaultLogDir}
	if !slices.Equal(paths, want) {
		t.Errorf("host paths %v, want %v", paths, want)
	}
	if driver.Spec.AutomountServiceAccountToken == nil || *driver.Spec.AutomountServiceAccountToken || driver.Spec.HostNetwork || driver.Spec.HostPID {
		t.Error("the driver has a token or more of the host than it needs")
	}
}

func TestDriverRunsOnEveryNodeUnderTheNameThatVolumesSay(t *testing.T) {
	driver := templates(t, "podlogs")[0]
	if !slices.ContainsFunc(driver.Spec.Tolerations, func(t corev1.Toleration) bool {
		return t.Operator == corev1.TolerationOpExists && t.Key == "" && t.Effect == ""
	}) {
		t.Error("a taint, as GPU nodes have it, keeps the driver away")
	}
	for _, o := range render(t, "podlogs") {
		if o.GetKind() != "CSIDriver" {
			continue
		}
		var d storagev1.CSIDriver
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
			t.Fatal(err)
		}
		s := d.Spec
		if d.Name != podlogs.DriverName || *s.AttachRequired || !*s.PodInfoOnMount || *s.FSGroupPolicy != storagev1.NoneFSGroupPolicy || !slices.Equal(s.VolumeLifecycleModes, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}) {
			t.Errorf("CSIDriver %s: %+v", d.Name, s)
		}
		return
	}
	t.Error("there is no CSIDriver")
}

// The injection names the driver without importing it.
func TestInjectedVolumesNameTheDriver(t *testing.T) {
	golden, err := os.ReadFile("../gate/inject/testdata/worker.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(golden), "driver: "+podlogs.DriverName+"\n") || !strings.Contains(string(golden), "mountPath: "+inject.LogsPath+"\n") {
		t.Error("sidecars ask for another driver")
	}
}
