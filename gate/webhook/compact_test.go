package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/omnivision/omnivision/gate"
)

// fullPod has all that a Pod can have of what the gate reads.
func fullPod() *corev1.Pod {
	yes := true
	p := newPod("a@"+digest, "b:1")
	p.GenerateName, p.Annotations = "p-", map[string]string{"note": "\"\u00e9\"\n"}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "1", Controller: &yes}, {Kind: "Node", Name: "n"}}
	p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: "first:1", Args: []string{"--a=\\", "{}"}}}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "debug:1"}}}
	p.Spec.Volumes = []corev1.Volume{{Name: "model", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "model:1"}}}, {Name: "tmp"}}
	return p
}

func TestReviewsOfAPIServersAreReadCompactly(t *testing.T) {
	dry := true
	q := update(newPod("a:1"), fullPod())
	q.DryRun, q.UserInfo.Username, q.SubResource = &dry, "system:serviceaccount:a:b", "ephemeralcontainers"
	for name, q := range map[string]*admissionv1.AdmissionRequest{"a new Pod": create(newPod("a:1")), "all of one": create(fullPod()), "a change": q} {
		text := body(t, q)
		got, ok := readCompact(text, readPod)
		var want review
		if err := strict(text, &want); err != nil || !ok {
			t.Fatalf("%s: read %t (%v)", name, ok, err)
		}
		if string(got.Request.raw) != string(q.Object.Raw) {
			t.Errorf("%s: the Pod's text is %s", name, got.Request.raw)
		}
		if got.Request.raw = nil; !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, exactly %+v", name, got.Request, want.Request)
		}
	}
}

// Never is a Pod another one to the reader of every day than it is to the exact one.
func FuzzReadCompact(f *testing.F) {
	whole := string(body(f, update(newPod("a:1"), fullPod())))
	for _, text := range []string{
		whole, string(body(f, create(newPod("a:1")))), `{"request":{"object":null,"oldObject":{}}}`,
		strings.Replace(whole, `"spec":{`, `"spec":{"containers":null,`, 1), strings.Replace(whole, `"containers"`, `"Containers"`, 1),
		strings.Replace(whole, `"image":`, `"image":"b","image":`, 1), strings.Replace(whole, `"image":`, `"\u0069mage":`, 1), strings.Replace(whole, `"image":{`, `"image":null,"x":{`, 1),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, ok := readCompact(text, readPod)
		if !ok {
			return
		}
		var want review
		err := strict(text, &want)
		if got.Request != nil {
			got.Request.raw = nil
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\nis read as %+v\nexactly     %+v (%v)", text, got.Request, want.Request, err)
		}
		if names, ok := readCompact(text, readNames); !ok || names.check() == nil && names.Request.podName() != want.Request.podName() {
			t.Errorf("%s: called otherwise", text)
		}
	})
}

// inserter adds what addSidecar does, or leaves it to that.
type inserter struct {
	Mutator
	insert func(q *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool
}

func (i inserter) Insert(_ context.Context, q *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool {
	return i.insert(q, add)
}

func TestInserterIsAskedFirstAndItsTextIsSent(t *testing.T) {
	pod := newPod("a:1")
	pod.Annotations = map[string]string{"there": "before"}
	q := create(pod)
	dry := true
	q.DryRun, q.UserInfo.Username = &dry, "alice"
	for name, c := range map[string]struct {
		insert func(q *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool
		want   string // of the first init container
	}{
		"it says": {func(got *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool {
			if got.Operation != admissionv1.Create || got.Namespace != q.Namespace || !*got.DryRun || got.UserInfo.Username != "alice" || !bytes.Equal(got.Object.Raw, q.Object.Raw) {
				t.Errorf("it is told of %+v", got)
			}
			add("/spec/initContainers", []byte(`[{"name":"inserted","image":"s:1"}]`))
			return true
		}, "inserted"},
		"it leaves it": {func(_ *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool {
			add("/spec/initContainers", []byte(`[{"name":"half"}]`))
			return false
		}, "logs"},
		"it panics": {func(*admissionv1.AdmissionRequest, func(path string, value []byte)) bool { panic("oops") }, "logs"},
	} {
		o := Options{Judge: judge(honest), Injectors: []Mutator{inserter{mutator(addSidecar), c.insert}}}
		r := ask(t, o, InjectPath, q)
		if after := patched(t, pod, r); !r.Allowed || len(after.Spec.InitContainers) != 1 || after.Spec.InitContainers[0].Name != c.want {
			t.Errorf("%s: %+v", name, after.Spec.InitContainers)
		}
	}
	never := inserter{mutator(addSidecar), func(*admissionv1.AdmissionRequest, func(path string, value []byte)) bool {
		t.Error("it is asked about what is not created, or not plain")
		return true
	}}
	o := Options{Judge: judge(honest), Injectors: []Mutator{never}}
	ask(t, o, InjectPath, update(pod, pod))
	post(t, o, InjectPath, bytes.Replace(body(t, q), []byte(`"request":{`), []byte(`"request": {`), 1))
	post(t, o, InjectPath, bytes.Replace(body(t, q), []byte(`"spec":{`), []byte(`"spec":{},"spec":{`), 1))
}

// The API server goes on while the audit log is written, except where the log has to know first.
func TestOnlyADecisionWaitsForItsAuditLine(t *testing.T) {
	for path, flushed := range map[string]bool{MutatePath: true, InjectPath: true, ValidatePath: false} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body(t, create(newPod("a:1")))))
		r.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		New(Options{Judge: judge(honest)}).Handler().ServeHTTP(rec, r)
		if rec.Flushed != flushed {
			t.Errorf("%s: sent before the audit line: %t, want %t", path, rec.Flushed, flushed)
		}
	}
}

func TestImagesInTheAuditLogAreJSON(t *testing.T) {
	type denial struct {
		Policy  string `json:"policy,omitempty"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	type image struct {
		Image    string   `json:"image"`
		Digest   string   `json:"digest,omitempty"`
		Allowed  bool     `json:"allowed"`
		Source   string   `json:"source,omitempty"`
		Policies []string `json:"policies,omitempty"`
		Denials  []denial `json:"denials,omitempty"`
		Warnings []denial `json:"warnings,omitempty"`
	}
	for _, c := range []struct {
		verdicts []gate.Verdict
		want     []image
	}{
		{[]gate.Verdict{{}}, []image{{}}},
		{[]gate.Verdict{{Image: "a:1", Digest: digest, Allowed: true, Policies: []string{"p", "q"}, Source: gate.FromCache}, {Image: "\"b\"\\\n\u00e9<", Allowed: false}},
			[]image{{Image: "a:1", Digest: digest, Allowed: true, Policies: []string{"p", "q"}, Source: "cache"}, {Image: "\"b\"\\\n\u00e9<"}}},
		{[]gate.Verdict{{Denials: []gate.Denial{{Policy: "p", Reason: gate.Unsigned, Message: "no \"one\""}, {Reason: gate.Deadline}}, Warnings: []gate.Denial{{Policy: "w", Reason: gate.NoScan, Message: "x"}}}},
			[]image{{Denials: []denial{{"p", "Unsigned", "no \"one\""}, {"", "Deadline", ""}}, Warnings: []denial{{"w", "NoScan", "x"}}}}},
	} {
		got, err := json.Marshal(imageLines(c.verdicts))
		if err != nil {
			t.Fatal(err)
		}
		if want := quoted(c.want); !bytes.Equal(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
