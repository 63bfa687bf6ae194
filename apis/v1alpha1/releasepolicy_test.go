package v1alpha1

import (
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const head = "apiVersion: omnivision.ai/v1alpha1\nkind: ReleasePolicy\nmetadata: {name: p}\nspec:\n"

var digest = "sha256:" + strings.Repeat("a", 64)

// full has every field.
var full = head + `
  images: [{glob: "**/omnivision-*"}]
  mode: warn
  scan: {maxAge: 720h, exceptions: [{id: CVE-1, package: x, app: a, reason: unreachable, expires: "2026-12-31"}]}
  floors: [{repository: omnivision-worker, version: "1.4.0"}]
  gitOnly: true
  admitted: [{repository: omnivision-worker, digest: "` + digest + `"}]
  quarantine: [{digest: "` + digest + `", app: a, version: 1.5.0, cluster: c, reason: r, since: "2026-11-27T02:00:00Z", evidence: "https://x/y"}]
status:
  observedGeneration: 1
  conditions: [{type: Ready, status: "True", reason: Used, message: m, lastTransitionTime: "2026-11-27T02:00:00Z"}]
  named: [{repository: omnivision-worker, digest: "` + digest + `"}]
  previous: [{repository: omnivision-worker, digest: "` + digest + `", lastNamed: "2026-11-27T02:00:00Z"}]
`

func TestPolicyIsReadStrictly(t *testing.T) {
	if _, err := DecodeReleasePolicy([]byte(full)); err != nil {
		t.Error(err)
	}
	for field, spec := range map[string]string{
		`"spec.surprise"`:             "  surprise: 1\n",
		"key \"mode\" already set":    "  mode: warn\n  mode: enforce\n",
		"spec.mode":                   "  mode: maybe\n",
		"spec.images[0].glob":         "  images: [{glob: \"[\"}]\n",
		"spec.images: scan":           "  scan: {maxAge: 1h}\n",
		"spec.scan.maxAge":            "  images: [{glob: x}]\n  scan: {maxAge: 0s}\n",
		"spec.scan.exceptions[0].id":  "  images: [{glob: x}]\n  scan: {maxAge: 1h, exceptions: [{id: \"*\", package: x, reason: r, expires: \"2026-12-31\"}]}\n",
		"spec.floors[0].version":      "  floors: [{repository: x, version: latest}]\n",
		"spec.floors[0].repository":   "  floors: [{repository: /x, version: 1.0.0}]\n",
		"spec.admitted[0].digest":     "  admitted: [{repository: x, digest: \"1.0\"}]\n",
		"spec.quarantine[0].digest":   "  quarantine: [{digest: x, reason: r}]\n",
		"spec.quarantine[0].reason":   "  quarantine: [{digest: \"" + digest + "\"}]\n",
		"spec.quarantine[0].evidence": "  quarantine: [{digest: \"" + digest + "\", reason: r, evidence: \"javascript:x\"}]\n",
	} {
		policy, err := DecodeReleasePolicy([]byte(head + spec))
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: the error is %v", field, err)
		}
		if policy == nil && !strings.Contains(field, "already set") {
			t.Errorf("%s: nothing is left of the policy", field)
		}
	}
}

func TestCopyIsWholeAndItsOwn(t *testing.T) {
	policy, err := DecodeReleasePolicy([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	copied := policy.DeepCopy()
	if !reflect.DeepEqual(policy, copied) {
		t.Errorf("%+v is not %+v", copied, policy)
	}
	// What the copy points at is nothing of the original's.
	var same func(path string, a, b reflect.Value)
	same = func(path string, a, b reflect.Value) {
		switch a.Kind() {
		case reflect.Struct:
			if a.Type() == reflect.TypeFor[metav1.Time]() {
				return
			}
			for i := range a.NumField() {
				same(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		case reflect.Pointer, reflect.Slice, reflect.Map:
			if a.IsNil() {
				return
			}
			if a.Pointer() == b.Pointer() {
				t.Errorf("%s is shared", path)
			}
			if a.Kind() == reflect.Pointer {
				same(path, a.Elem(), b.Elem())
			}
		}
	}
	same("policy", reflect.ValueOf(*policy), reflect.ValueOf(*copied))
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if kinds, _, err := scheme.ObjectKinds(copied); err != nil || kinds[0] != GroupVersion.WithKind(ReleasePolicyKind) {
		t.Errorf("the scheme knows %v: %v", kinds, err)
	}
}

// What Git named stays admitted while something uses it, and nothing else gets in (P32).
func TestPreviousDigestStaysWhileItIsUsed(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	a, b := ImageDigest{"worker", "sha256:a"}, ImageDigest{"worker", "sha256:b"}
	uses := func(used ...ImageDigest) func(ImageDigest) bool {
		return func(d ImageDigest) bool {
			for _, u := range used {
				if u == d {
					return true
				}
			}
			return false
		}
	}
	status := ReleasePolicyStatus{}
	step := func(was, is []ImageDigest, used ...ImageDigest) []PreviousDigest {
		status.Named = was
		status.Previous = Previously(status, is, uses(used...), now)
		return status.Previous
	}
	if p := step([]ImageDigest{a}, []ImageDigest{b}, a); len(p) != 1 || p[0].ImageDigest != a || !p[0].LastNamed.Time.Equal(now) {
		t.Fatalf("after Git moved on there is %+v", p)
	}
	now = now.Add(30 * 24 * time.Hour)
	if p := step([]ImageDigest{b}, []ImageDigest{b}, a, b); len(p) != 1 {
		t.Errorf("a digest that is used is gone: %+v", p)
	}
	if p := step([]ImageDigest{b}, []ImageDigest{b}, b); len(p) != 0 {
		t.Errorf("a digest that nothing uses stays: %+v", p)
	}
	if p := step([]ImageDigest{b}, []ImageDigest{b}, a, b); len(p) != 0 {
		t.Errorf("using a digest brings it back: %+v", p)
	}
	if p := step([]ImageDigest{b}, []ImageDigest{a}); len(p) != 1 || p[0].ImageDigest != b {
		t.Errorf("right after Git moved on there is %+v", p)
	}
	if p := step([]ImageDigest{a}, []ImageDigest{b}); len(p) != 1 || p[0].ImageDigest != a {
		t.Errorf("after Git went back there is %+v", p)
	}
}

func FuzzDecodeReleasePolicy(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(head + "  quarantine: [{}]"))
	f.Fuzz(func(t *testing.T, src []byte) {
		policy, err := DecodeReleasePolicy(src)
		if err == nil && policy.Validate() != nil {
			t.Error("what was read is not valid")
		}
		policy.DeepCopy()
	})
}
