package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/omnivision/omnivision/gate"
)

var digest = "sha256:" + strings.Repeat("ab", 32)

// judge is a Judge in a function.
type judge func(ctx context.Context, image gate.Image) gate.Verdict

func (j judge) Judge(ctx context.Context, image gate.Image) gate.Verdict { return j(ctx, image) }

// honest resolves every tag to one digest and refuses images with "bad" in the name.
func honest(_ context.Context, image gate.Image) gate.Verdict {
	v := gate.Verdict{Image: image.Reference, Digest: digest, Allowed: true, Policies: []string{"platform"}, Source: gate.FromCache}
	if strings.Contains(image.Reference, "bad") {
		v.Allowed = false
		v.Denials = []gate.Denial{{Policy: "platform", Reason: gate.Unsigned, Message: "no signature by the release identity"}}
	}
	return v
}

// knower knows what is called known, and asks its judge about the rest.
type knower struct {
	judge
	answers func(image gate.Image) gate.Verdict
}

func (k knower) Known(image gate.Image) (gate.Verdict, bool) {
	if !strings.Contains(image.Reference, "known") {
		return gate.Verdict{}, false
	}
	return k.answers(image), true
}

// What the Judge knows is answered without asking it again; what it does not know, and what it panics about, is asked.
func TestKnownVerdictNeedsNoAsking(t *testing.T) {
	var asked sync.Map
	j := knower{
		judge: func(ctx context.Context, image gate.Image) gate.Verdict {
			asked.Store(image.Reference, true)
			return honest(ctx, image)
		},
		answers: func(image gate.Image) gate.Verdict {
			if strings.Contains(image.Reference, "panic") {
				panic("known")
			}
			return honest(context.Background(), image)
		},
	}
	references := []string{"known@" + digest, "new@" + digest, "panic-known@" + digest}
	if r := ask(t, Options{Judge: j}, ValidatePath, create(newPod(references...))); !r.Allowed {
		t.Errorf("refused: %s", r.Result.Message)
	}
	for i, reference := range references {
		if _, was := asked.Load(reference); was != (i > 0) {
			t.Errorf("%s was asked about: %t", reference, was)
		}
	}
	if r := ask(t, Options{Judge: j}, ValidatePath, create(newPod("known/bad@"+digest))); r.Allowed {
		t.Error("a refusal that is known admits")
	}
}

func newPod(images ...string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "omnivision", Labels: map[string]string{"app": "worker"}},
		Spec:       corev1.PodSpec{ServiceAccountName: "worker", ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}}},
	}
	for i, image := range images {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: string(rune('a' + i)), Image: image})
	}
	return p
}

func create(pod *corev1.Pod) *admissionv1.AdmissionRequest {
	return &admissionv1.AdmissionRequest{
		UID: "705ab4f5-6393-11e8-b7cc-42010a800002", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Namespace: "omnivision", Name: pod.Name,
		Operation: admissionv1.Create, Object: raw(pod),
	}
}

func update(before, after *corev1.Pod) *admissionv1.AdmissionRequest {
	q := create(after)
	q.Operation, q.OldObject = admissionv1.Update, raw(before)
	return q
}

func raw(pod *corev1.Pod) runtime.RawExtension {
	text, err := json.Marshal(pod)
	if err != nil {
		panic(err)
	}
	return runtime.RawExtension{Raw: text}
}

func body(t testing.TB, q *admissionv1.AdmissionRequest) []byte {
	t.Helper()
	text, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: q})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// post sends a body and returns the HTTP status and, if there is one, the response.
func post(t testing.TB, o Options, path string, body []byte) (int, *admissionv1.AdmissionResponse) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	New(o).Handler().ServeHTTP(rec, r)
	var review admissionv1.AdmissionReview
	if err := strict(rec.Body.Bytes(), &review); err != nil {
		t.Fatalf("%s answers %q: %v", path, rec.Body, err)
	}
	if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || review.Response == nil {
		t.Fatalf("%s answers %s", path, rec.Body)
	}
	return rec.Code, review.Response
}

func ask(t testing.TB, o Options, path string, q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	t.Helper()
	status, response := post(t, o, path, body(t, q))
	if status != http.StatusOK || response.UID != q.UID {
		t.Fatalf("status %d, uid %q, want 200 and the request's", status, response.UID)
	}
	return response
}

// patched is the Pod after the response's patch.
func patched(t testing.TB, pod *corev1.Pod, response *admissionv1.AdmissionResponse) *corev1.Pod {
	t.Helper()
	if response.Patch == nil {
		return pod
	}
	if response.PatchType == nil || *response.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("patch type %v", response.PatchType)
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	text, err := patch.Apply(raw(pod).Raw)
	if err != nil {
		t.Fatalf("applying %s: %v", response.Patch, err)
	}
	var after corev1.Pod
	if err := strict(text, &after); err != nil {
		t.Fatal(err)
	}
	return &after
}

func TestTagsOfEveryContainerKindBecomeDigests(t *testing.T) {
	pod := newPod("ghcr.io/omnivision/worker:1.2", "localhost:5000/app", "ghcr.io/omnivision/ui:1@"+digest)
	pod.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "init:1"}}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "debug:1"}}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "tmp"}, {Name: "weights", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "weights:3"}}}}
	after := patched(t, pod, ask(t, Options{Judge: judge(honest)}, MutatePath, create(pod)))
	for got, want := range map[string]string{
		after.Spec.Containers[0].Image:          "ghcr.io/omnivision/worker:1.2@" + digest,
		after.Spec.Containers[1].Image:          "localhost:5000/app:latest@" + digest,
		after.Spec.Containers[2].Image:          "ghcr.io/omnivision/ui:1@" + digest,
		after.Spec.InitContainers[0].Image:      "init:1@" + digest,
		after.Spec.EphemeralContainers[0].Image: "debug:1@" + digest,
		after.Spec.Volumes[1].Image.Reference:   "weights:3@" + digest,
	} {
		if got != want {
			t.Errorf("image %s, want %s", got, want)
		}
	}
	if again := ask(t, Options{Judge: judge(honest)}, MutatePath, create(after)); again.Patch != nil {
		t.Errorf("a second review changes the Pod again (P29): %s", again.Patch)
	}
}

func TestPatchIsMinimal(t *testing.T) {
	response := ask(t, Options{Judge: judge(honest)}, MutatePath, create(newPod("a:1@"+digest, "b:1")))
	if want := `[{"op":"replace","path":"/spec/containers/1/image","value":"b:1@` + digest + `"}]`; string(response.Patch) != want {
		t.Errorf("patch %s, want %s", response.Patch, want)
	}
}

func TestTagThatCannotBeResolvedStaysAndIsRefusedLater(t *testing.T) {
	o := Options{Judge: judge(func(_ context.Context, i gate.Image) gate.Verdict {
		return gate.Verdict{Image: i.Reference, Denials: []gate.Denial{{Policy: "platform", Reason: gate.RegistryUnavailable, Message: "the registry does not answer"}}}
	})}
	if r := ask(t, o, MutatePath, create(newPod("a:1"))); !r.Allowed || r.Patch != nil {
		t.Errorf("allowed %t, patch %s", r.Allowed, r.Patch)
	}
	if r := ask(t, o, ValidatePath, create(newPod("a:1"))); r.Allowed {
		t.Error("an image that cannot be resolved was admitted")
	}
}

// A digest that the Judge makes up must not reach a Pod.
func TestOnlyDigestsAreWritten(t *testing.T) {
	for _, bad := range []string{"", "sha256:", "sha256:xyz", digest + "\n", "latest", digest[:70], strings.ToUpper(digest)} {
		o := Options{Judge: judge(func(_ context.Context, i gate.Image) gate.Verdict {
			return gate.Verdict{Image: i.Reference, Digest: bad, Allowed: true}
		})}
		if r := ask(t, o, MutatePath, create(newPod("a:1"))); r.Patch != nil {
			t.Errorf("digest %q was written: %s", bad, r.Patch)
		}
	}
}

func TestDenialSaysWhatIsMissing(t *testing.T) {
	pod := newPod("ghcr.io/omnivision/good:1@"+digest, "ghcr.io/omnivision/bad:1@"+digest)
	r := ask(t, Options{Judge: judge(honest)}, ValidatePath, create(pod))
	want := "policy platform refuses image ghcr.io/omnivision/bad:1@" + digest +
		": no signature by the release identity [Unsigned]; see: omnivision verify ghcr.io/omnivision/bad:1@" + digest
	if r.Allowed || r.Result == nil || r.Result.Message != want || r.Result.Code != http.StatusForbidden {
		t.Errorf("allowed %t, status %+v\nwant %s", r.Allowed, r.Result, want)
	}
}

func TestEveryContainerKindIsJudged(t *testing.T) {
	bad := corev1.Container{Name: "x", Image: "bad@" + digest}
	for name, change := range map[string]func(*corev1.PodSpec){
		"container":      func(s *corev1.PodSpec) { s.Containers = append(s.Containers, bad) },
		"init container": func(s *corev1.PodSpec) { s.InitContainers = []corev1.Container{bad} },
		"sidecar": func(s *corev1.PodSpec) {
			always := corev1.ContainerRestartPolicyAlways
			s.InitContainers = []corev1.Container{{Name: "x", Image: bad.Image, RestartPolicy: &always}}
		},
		"ephemeral container": func(s *corev1.PodSpec) {
			s.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "x", Image: bad.Image}}}
		},
		"image volume": func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "x", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: bad.Image}}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newPod("good@" + digest)
			before := pod.DeepCopy()
			change(&pod.Spec)
			if ask(t, Options{Judge: judge(honest)}, ValidatePath, create(pod)).Allowed {
				t.Error("admitted when created")
			}
			q := update(before, pod)
			if name == "ephemeral container" {
				q.SubResource = "ephemeralcontainers"
			}
			if ask(t, Options{Judge: judge(honest)}, ValidatePath, q).Allowed {
				t.Error("admitted in an update")
			}
		})
	}
}

// What runs already is not judged again: a label or a finalizer must be able to change while an image is quarantined.
func TestUpdateJudgesOnlyWhatIsNew(t *testing.T) {
	before := newPod("bad@"+digest, "good@"+digest)
	after := before.DeepCopy()
	after.Labels["x"] = "y"
	if r := ask(t, Options{Judge: judge(honest)}, ValidatePath, update(before, after)); !r.Allowed {
		t.Errorf("a changed label is refused: %s", r.Result.Message)
	}
	// The same image in another container is new.
	after.Spec.Containers[1].Image = before.Spec.Containers[0].Image
	if ask(t, Options{Judge: judge(honest)}, ValidatePath, update(before, after)).Allowed {
		t.Error("a bad image went from one container to another")
	}
}

func TestJudgeIsToldWhatTheKubeletWouldKnow(t *testing.T) {
	var got gate.Image
	o := Options{Judge: judge(func(ctx context.Context, i gate.Image) gate.Verdict { got = i; return honest(ctx, i) })}
	ask(t, o, ValidatePath, create(newPod("a@"+digest)))
	if got.Reference != "a@"+digest || got.Namespace != "omnivision" || got.ServiceAccount != "worker" || len(got.PullSecrets) != 1 ||
		got.PullSecrets[0] != "registry" || got.PodLabels["app"] != "worker" {
		t.Errorf("the Judge was asked about %+v", got)
	}
}

// The node resolves a tag a second time.
func TestTagThatWasVerifiedButNotPinnedIsRefused(t *testing.T) {
	r := ask(t, Options{Judge: judge(honest)}, ValidatePath, create(newPod("good:1")))
	if r.Allowed || !strings.Contains(r.Result.Message, "[NotPinned]") {
		t.Errorf("allowed %t: %+v", r.Allowed, r.Result)
	}
	other := "sha256:" + strings.Repeat("cd", 32)
	r = ask(t, Options{Judge: judge(honest)}, ValidatePath, create(newPod("good@"+other)))
	if r.Allowed {
		t.Error("a verdict about another digest admitted the Pod")
	}
	unmatched := Options{Judge: judge(func(_ context.Context, i gate.Image) gate.Verdict {
		return gate.Verdict{Image: i.Reference, Allowed: true}
	})}
	if r := ask(t, unmatched, ValidatePath, create(newPod("any:1"))); !r.Allowed {
		t.Errorf("an image that no policy is about needs no digest: %s", r.Result.Message)
	}
}

func TestWarningsOfWarnMode(t *testing.T) {
	o := Options{Judge: judge(func(ctx context.Context, i gate.Image) gate.Verdict {
		v := honest(ctx, i)
		v.Warnings = []gate.Denial{{Policy: "next", Reason: gate.NoScan, Message: "no scan\x1b[31m\nattestation"}}
		return v
	})}
	r := ask(t, o, ValidatePath, create(newPod("a@"+digest)))
	if !r.Allowed || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "policy next would refuse image a@") || strings.ContainsAny(r.Warnings[0], "\x1b\n") {
		t.Errorf("allowed %t, warnings %q", r.Allowed, r.Warnings)
	}
}

func TestWhatCannotBeReadIsRefused(t *testing.T) {
	good := string(body(t, create(newPod("a@"+digest))))
	const uid = `"uid":"705ab4f5-6393-11e8-b7cc-42010a800002"`
	for name, c := range map[string]struct {
		body   string
		hasUID bool
	}{
		"nothing":             {"", false},
		"no JSON":             {"no", false},
		"half":                {good[:len(good)/2], false},
		"more after it":       {good + "{}", false},
		"no request":          {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, false},
		"other kind":          {strings.Replace(good, `"AdmissionReview"`, `"Review"`, 1), true},
		"older version":       {strings.Replace(good, `admission.k8s.io/v1`, `admission.k8s.io/v1beta1`, 1), true},
		"other resource":      {strings.Replace(good, `"pods"`, `"deployments"`, 1), true},
		"other subresource":   {strings.Replace(good, uid, uid+`,"subResource":"status"`, 1), true},
		"delete":              {strings.Replace(good, `"CREATE"`, `"DELETE"`, 1), true},
		"update of nothing":   {strings.Replace(good, `"CREATE"`, `"UPDATE"`, 1), true},
		"a key twice":         {strings.Replace(good, `"image":`, `"image":"good","image":`, 1), true},
		"containers are text": {strings.Replace(good, `"containers":[`, `"containers":"x","y":[`, 1), true},
		"too many images":     {string(body(t, create(newPod(manyImages()...)))), true},
	} {
		for _, path := range []string{ValidatePath, MutatePath} {
			t.Run(name+path, func(t *testing.T) {
				if strings.Contains(c.body, `"a:0"`) && path == MutatePath {
					c.body = strings.ReplaceAll(c.body, "@"+digest, "")
				}
				status, r := post(t, Options{Judge: judge(honest)}, path, []byte(c.body))
				if r.Allowed {
					t.Fatal("admitted")
				}
				if c.hasUID && (status != http.StatusOK || r.UID == "" || r.Result.Message == "") || !c.hasUID && status < 400 {
					t.Errorf("status %d, response %+v", status, r)
				}
			})
		}
	}
}

func manyImages() (images []string) {
	for i := range maxImages + 1 {
		images = append(images, "a:"+string(rune('0'+i%10))+strings.Repeat("x", i))
	}
	return images
}

func TestOnlyReviewsOfReasonableSizeArePosted(t *testing.T) {
	h := New(Options{Judge: judge(honest), MaxBytes: 100}).Handler()
	for name, c := range map[string]struct {
		method, contentType string
		body                io.Reader
		want                int
	}{
		"GET":       {http.MethodGet, "application/json", http.NoBody, http.StatusMethodNotAllowed},
		"text":      {http.MethodPost, "text/plain", http.NoBody, http.StatusUnsupportedMediaType},
		"too large": {http.MethodPost, "application/json", strings.NewReader(strings.Repeat(" ", 101)), http.StatusRequestEntityTooLarge},
		"too large, of unknown length": {http.MethodPost, "application/json", io.MultiReader(strings.NewReader(strings.Repeat(" ", 101))),
			http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), c.method, ValidatePath, c.body)
			r.Header.Set("Content-Type", c.contentType)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != c.want || strings.Contains(rec.Body.String(), `"allowed":true`) {
				t.Errorf("status %d, %s", rec.Code, rec.Body)
			}
		})
	}
}

func TestJudgeThatFailsAdmitsNothing(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for name, j := range map[string]judge{
		"panics":     func(context.Context, gate.Image) gate.Verdict { panic("oops") },
		"says zero":  func(context.Context, gate.Image) gate.Verdict { return gate.Verdict{} },
		"never ends": func(context.Context, gate.Image) gate.Verdict { <-release; return gate.Verdict{Allowed: true} },
	} {
		t.Run(name, func(t *testing.T) {
			r := ask(t, Options{Judge: j}, ValidatePath+"?timeout=1ms", create(newPod("a@"+digest)))
			if r.Allowed || r.Result.Message == "" {
				t.Errorf("allowed %t, %+v", r.Allowed, r.Result)
			}
			if m := ask(t, Options{Judge: j}, MutatePath+"?timeout=1ms", create(newPod("a:1"))); m.Patch != nil {
				t.Errorf("patched: %s", m.Patch)
			}
		})
	}
}

// P26: the denial must arrive before the API server stops to wait.
func TestDeadlineIsBelowTheWebhooks(t *testing.T) {
	for parameter, want := range map[string]time.Duration{
		"10s": 9 * time.Second, "1s": 800 * time.Millisecond, "30s": 27 * time.Second, "5s": 4500 * time.Millisecond,
		"": 9 * time.Second, "soon": 9 * time.Second, "-1s": 9 * time.Second, "1h": 27 * time.Second, "100ms": 50 * time.Millisecond,
	} {
		timeout, margin := deadlines(parameter)
		if timeout-margin != want {
			t.Errorf("timeout=%s: the Judge gets %s, want %s", parameter, timeout-margin, want)
		}
	}
	var left time.Duration
	o := Options{Judge: judge(func(ctx context.Context, i gate.Image) gate.Verdict {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return honest(ctx, i)
	})}
	ask(t, o, ValidatePath+"?timeout=3s", create(newPod("a@"+digest)))
	if left <= 0 || left > 3*time.Second-leastMargin {
		t.Errorf("the Judge was given %s of 3s", left)
	}
}

func TestImagesAreJudgedAtTheSameTimeAndEachOnce(t *testing.T) {
	var calls atomic.Int32
	both := make(chan struct{})
	o := Options{Judge: judge(func(ctx context.Context, i gate.Image) gate.Verdict {
		if calls.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both: // reached only when the other one is being judged as well
			return honest(ctx, i)
		case <-ctx.Done():
			return gate.Verdict{}
		}
	})}
	r := ask(t, o, ValidatePath, create(newPod("a@"+digest, "b@"+digest, "a@"+digest)))
	if !r.Allowed || calls.Load() != 2 {
		t.Errorf("allowed %t after %d calls", r.Allowed, calls.Load())
	}
}

type mutator func(*corev1.Pod) error

func (m mutator) Mutate(_ context.Context, _ *admissionv1.AdmissionRequest, pod *corev1.Pod) error {
	return m(pod)
}

// addSidecar is idempotent, as a Mutator must be.
func addSidecar(pod *corev1.Pod) error {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == "logs" {
			return nil
		}
	}
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: "logs", Image: "logs:1"})
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations["logs/injected"] = "true"
	return nil
}

func TestWhatAMutatorAddsIsPinnedToo(t *testing.T) {
	o := Options{Judge: judge(honest), Mutators: []Mutator{mutator(addSidecar)}}
	pod := newPod("a:1")
	after := patched(t, pod, ask(t, o, MutatePath, create(pod)))
	if len(after.Spec.InitContainers) != 1 || after.Spec.InitContainers[0].Image != "logs:1@"+digest || after.Spec.Containers[0].Image != "a:1@"+digest || after.Annotations["logs/injected"] != "true" {
		t.Errorf("after: %+v", after.Spec)
	}
	if again := ask(t, o, MutatePath, create(after)); again.Patch != nil {
		t.Errorf("a second review changes the Pod again (P29): %s", again.Patch)
	}
}

// A newer API server sends fields that these types do not have.
func TestFieldsThatWeDoNotKnowSurvive(t *testing.T) {
	text := strings.Replace(string(body(t, create(newPod("a:1")))), `"containers":[{`, `"fromTheFuture":{"a":1},"containers":[{"alsoNew":true,`, 1)
	_, r := post(t, Options{Judge: judge(honest), Mutators: []Mutator{mutator(addSidecar)}}, MutatePath, []byte(text))
	if !r.Allowed || strings.Contains(string(r.Patch), "Future") || strings.Contains(string(r.Patch), "alsoNew") || strings.Contains(string(r.Patch), "remove") {
		t.Errorf("allowed %t, patch %s", r.Allowed, r.Patch)
	}
}

// P23: logs may be missing, images may not be unverified.
func TestInjectionFailsOpenAndMutationDoesNot(t *testing.T) {
	failing := []Mutator{mutator(func(p *corev1.Pod) error { p.Labels["half"] = "done"; return errors.New("no configuration") })}
	o := Options{Judge: judge(honest), Mutators: failing, Injectors: failing}
	if r := ask(t, o, InjectPath, create(newPod("a:1"))); !r.Allowed || r.Patch != nil || len(r.Warnings) != 1 {
		t.Errorf("inject: allowed %t, patch %s, warnings %q", r.Allowed, r.Patch, r.Warnings)
	}
	if r := ask(t, o, MutatePath, create(newPod("a:1"))); r.Allowed || !strings.Contains(r.Result.Message, "no configuration") {
		t.Errorf("mutate: allowed %t, %+v", r.Allowed, r.Result)
	}
	broken := strings.Replace(string(body(t, create(newPod("a:1")))), `"containers":[`, `"containers":"x","y":[`, 1)
	if status, r := post(t, o, InjectPath, []byte(broken)); status != http.StatusOK || !r.Allowed || r.UID == "" || len(r.Warnings) != 1 {
		t.Errorf("inject of what cannot be read: status %d, %+v", status, r)
	}
	panics := []Mutator{mutator(func(*corev1.Pod) error { panic("oops") })}
	o = Options{Judge: judge(honest), Mutators: panics, Injectors: panics}
	if r := ask(t, o, InjectPath, create(newPod("a:1"))); !r.Allowed || r.Patch != nil || len(r.Warnings) != 1 {
		t.Errorf("inject that panics: %+v", r)
	}
	if r := ask(t, o, MutatePath, create(newPod("a:1"))); r.Allowed {
		t.Error("a mutator that panics admits the Pod")
	}
	o = Options{Judge: judge(honest), Injectors: []Mutator{mutator(addSidecar)}}
	pod := newPod("a:1")
	if after := patched(t, pod, ask(t, o, InjectPath, create(pod))); len(after.Spec.InitContainers) != 1 || after.Spec.Containers[0].Image != "a:1" {
		t.Errorf("injected: %+v", after.Spec)
	}
}

// What an Injector does in place is a difference to the Pod that came, also where the two share the rest.
func TestInjectorMayChangeInPlaceWhatItIsThereFor(t *testing.T) {
	pod := newPod("a:1")
	pod.Annotations = map[string]string{"there": "before"}
	pod.Spec.InitContainers = make([]corev1.Container, 1, 4)
	pod.Spec.InitContainers[0] = corev1.Container{Name: "first", Image: "first:1"}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data"}}
	o := Options{Judge: judge(honest), Injectors: []Mutator{mutator(func(p *corev1.Pod) error {
		p.Spec.InitContainers[0].Args, p.Spec.Volumes[0].Name = []string{"changed"}, "renamed"
		return addSidecar(p)
	})}}
	after := patched(t, pod, ask(t, o, InjectPath, create(pod)))
	if len(after.Annotations) != 2 || len(after.Spec.InitContainers) != 2 || len(after.Spec.InitContainers[0].Args) != 1 || after.Spec.Volumes[0].Name != "renamed" || after.Spec.Containers[0].Image != "a:1" {
		t.Errorf("after: %+v", after)
	}
}

// An Injector hears of the request what one hears who reads it as a whole.
func TestInjectorIsToldWhoseRequestItIs(t *testing.T) {
	dry := true
	q := create(newPod("a:1"))
	q.DryRun, q.UserInfo.Username = &dry, "alice"
	body := body(t, q)
	light, err := decode(body)
	if err != nil {
		t.Fatal(err)
	}
	whole, pod, err := decodeWhole(body)
	if err != nil {
		t.Fatal(err)
	}
	got := whole.identity()
	if got.UID != q.UID || got.Kind != q.Kind || got.Resource != q.Resource || got.Namespace != q.Namespace || got.Operation != q.Operation || !*got.DryRun || got.UserInfo.Username != "alice" {
		t.Errorf("it is told of %+v", got)
	}
	if whole.podName() != light.podName() || pod.Spec.Containers[0].Image != "a:1" {
		t.Errorf("the Pod is %q with %+v", whole.podName(), pod.Spec)
	}
	for name, broken := range map[string]string{"no request": `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, "nothing": `{}`, "two of a key": strings.Replace(string(body), `"spec":`, `"spec":{},"spec":`, 1)} {
		if _, _, err := decodeWhole([]byte(broken)); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

type events []string

func (e *events) Denied(subject corev1.ObjectReference, message string) {
	*e = append(*e, subject.Kind+"/"+subject.Name+": "+message)
}

func TestDenialsBecomeEventsOfTheOwnerButNotInADryRun(t *testing.T) {
	var got events
	o := Options{Judge: judge(honest), Events: &got}
	pod := newPod("bad@" + digest)
	ask(t, o, ValidatePath, create(pod))
	yes := true
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n"}, {APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: types.UID("1"), Controller: &yes}}
	ask(t, o, ValidatePath, create(pod))
	dry := create(pod)
	dry.DryRun = &yes
	if ask(t, o, ValidatePath, dry).Allowed {
		t.Error("admitted in a dry run")
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "Namespace/omnivision: policy platform refuses") || !strings.HasPrefix(got[1], "ReplicaSet/rs: ") {
		t.Errorf("events: %q", got)
	}
}

func TestOneAuditLinePerDecisionWithoutThePodsSecrets(t *testing.T) {
	var out bytes.Buffer
	o := Options{Judge: judge(honest), Audit: slog.New(slog.NewJSONHandler(&out, nil))}
	pod := newPod("bad@" + digest)
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "TOKEN", Value: "hunter2"}}
	pod.Spec.Containers[0].Args = []string{"--password=hunter2"}
	q := create(pod)
	q.UserInfo.Username = "alice"
	ask(t, o, ValidatePath, q)
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("not one line of JSON: %v\n%s", err, out.String())
	}
	if got["allowed"] != false || got["user"] != "alice" || got["namespace"] != "omnivision" || got["pod"] != "p" || got["webhook"] != "validate" ||
		!strings.Contains(out.String(), `"reason":"Unsigned"`) || strings.Contains(out.String(), "hunter2") {
		t.Errorf("audit line: %s", out.String())
	}
}

func TestMetricsCountDecisionsByPolicyAndReason(t *testing.T) {
	m := NewMetrics()
	o := Options{Judge: judge(honest), Metrics: m}
	ask(t, o, ValidatePath, create(newPod("a@"+digest, "bad@"+digest)))
	post(t, o, ValidatePath, []byte("no"))
	const want = `
# HELP omnivision_gate_decisions_total Images that were admitted, refused, or admitted with a warning, by policy and reason.
# TYPE omnivision_gate_decisions_total counter
omnivision_gate_decisions_total{decision="allowed",policy="platform",reason=""} 1
omnivision_gate_decisions_total{decision="denied",policy="",reason="Undecodable"} 1
omnivision_gate_decisions_total{decision="denied",policy="platform",reason="Unsigned"} 1
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), "omnivision_gate_decisions_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(m, "omnivision_gate_review_duration_seconds"); n == 0 {
		t.Error("no latency was measured")
	}
}

// A reference that a shell would act upon is not put into a command.
func TestNoCommandIsMadeOfHostileReferences(t *testing.T) {
	for image, want := range map[string]bool{"a/b:1@" + digest: true, "bad;rm -rf /": false, "bad$(id)": false, "--help": false, "bad\nx": false} {
		text := explain(gate.Verdict{Image: image}, gate.Denial{Message: "no"}, "refuses")
		if strings.Contains(text, "omnivision verify") != want {
			t.Errorf("%q: %s", image, text)
		}
	}
}

func image(reference string) gate.Image { return gate.Image{Reference: reference} }

func BenchmarkReview(b *testing.B) {
	j := knower{judge(honest), func(image gate.Image) gate.Verdict { return honest(context.Background(), image) }}
	for name, c := range map[string]struct{ path, image string }{
		"validate known": {ValidatePath, "ghcr.io/omnivision/known:1.2@" + digest}, "validate": {ValidatePath, "ghcr.io/omnivision/worker:1.2@" + digest},
		"mutate known tag": {MutatePath, "ghcr.io/omnivision/known:1.2"}, "mutate tag": {MutatePath, "ghcr.io/omnivision/worker:1.2"},
	} {
		text := body(b, create(newPod(c.image)))
		h := New(Options{Judge: j, Audit: slog.New(slog.NewJSONHandler(io.Discard, nil))}).Handler()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, c.path+"?timeout=10s", bytes.NewReader(text))
				r.Header.Set("Content-Type", "application/json")
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}
