package webhook

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Whatever arrives: no panic, a review in return, and yes only to a Pod whose every image the Judge knows.
func FuzzReview(f *testing.F) {
	pod := newPod("a@"+digest, "b:1")
	f.Add(body(f, create(pod)))
	f.Add(body(f, update(pod, newPod("bad@"+digest))))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","object":{"spec":{"containers":[{"image":"bad"}]}}}}`))
	f.Add([]byte(`{"request":null}`))
	f.Add([]byte(`[`))
	o := Options{Judge: judge(honest), Mutators: []Mutator{mutator(addSidecar)}, Injectors: []Mutator{mutator(addSidecar)}}
	h := New(o).Handler()
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, path := range []string{ValidatePath, MutatePath, InjectPath} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(text))
			r.Header.Set("Content-Type", "application/json")
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			var answer admissionv1.AdmissionReview
			if err := strict(rec.Body.Bytes(), &answer); err != nil || answer.Response == nil {
				t.Fatalf("%s answers %q: %v", path, rec.Body, err)
			}
			if path == ValidatePath && answer.Response.Allowed {
				mayBeAllowed(t, text)
			}
		}
	})
}

// mayBeAllowed reads the review with Kubernetes' own types.
func mayBeAllowed(t *testing.T, text []byte) {
	var review admissionv1.AdmissionReview
	var pod, old corev1.Pod
	if err := strict(text, &review); err != nil {
		return // the gate needs less of it than the full type
	}
	if strict(review.Request.Object.Raw, &pod) != nil {
		return
	}
	if review.Request.Operation == admissionv1.Update {
		if strict(review.Request.OldObject.Raw, &old) != nil || equality.Semantic.DeepEqual(pod.Spec, old.Spec) {
			return
		}
	}
	was := map[string]string{}
	for _, c := range old.Spec.Containers {
		was[c.Name] = c.Image
	}
	for _, c := range pod.Spec.Containers {
		if was[c.Name] != c.Image && !honest(t.Context(), image(c.Image)).Allowed {
			t.Errorf("image %q was admitted", c.Image)
		}
	}
}

func FuzzPinnedReference(f *testing.F) {
	for _, s := range []string{"a", "a:1", "localhost:5000/a", "a/b:c/d", "", "@", "a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reference string) {
		if pinned(reference) {
			return
		}
		if got := withDigest(reference, digest); !pinned(got) || got == reference {
			t.Errorf("%q became %q", reference, got)
		}
	})
}
