package webhook

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kjson "sigs.k8s.io/json"
)

// review is the part of an AdmissionReview that the gate reads. Decoding only this takes a fraction of the
// time that decoding the Pod's own type takes, and a newer API server may send fields that we do not know.
type review struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Request    *request `json:"request"`
}

type request struct {
	UID         string                      `json:"uid"`
	Kind        metav1.GroupVersionKind     `json:"kind"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	SubResource string                      `json:"subResource"`
	Name        string                      `json:"name"`
	Namespace   string                      `json:"namespace"`
	Operation   string                      `json:"operation"`
	UserInfo    userInfo                    `json:"userInfo"`
	DryRun      bool                        `json:"dryRun"`
	Object      *pod                        `json:"object"`
	OldObject   *pod                        `json:"oldObject"`

	raw []byte // the object's text, of a review that was read by readCompact; part of the body
}

type userInfo struct {
	Username string `json:"username"`
}

// pod is what decides which images a Pod runs and who judges them.
type pod struct {
	Metadata podMetadata `json:"metadata"`
	Spec     podSpec     `json:"spec"`
}

type podMetadata struct {
	Name            string                  `json:"name"`
	GenerateName    string                  `json:"generateName"`
	Labels          map[string]string       `json:"labels"`
	OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
}

type podSpec struct {
	ServiceAccountName  string      `json:"serviceAccountName"`
	ImagePullSecrets    []named     `json:"imagePullSecrets"`
	InitContainers      []container `json:"initContainers"`
	Containers          []container `json:"containers"`
	EphemeralContainers []container `json:"ephemeralContainers"`
	Volumes             []volume    `json:"volumes"`
}

type named struct {
	Name string `json:"name"`
}

type container struct {
	Name  string `json:"name"`
	Image string `json:"image"`
}

type volume struct {
	Name  string       `json:"name"`
	Image *imageVolume `json:"image"`
}

type imageVolume struct {
	Reference string `json:"reference"`
}

// decode reads a review of a Pod. Keys are compared exactly, a key that comes twice is an error, and so is
// anything after the document: what two readers could read differently is not read at all.
func decode(body []byte) (*request, error) {
	r, ok := readCompact(body, readPod)
	if !ok {
		r = review{}
		if err := strict(body, &r); err != nil {
			return nil, &refusal{reason: Undecodable, text: "the review cannot be read", err: err}
		}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r.Request, nil
}

// decodeWhole is decode with all of a new Pod, which is read once.
func decodeWhole(body []byte) (*request, *corev1.Pod, error) {
	var r struct {
		review
		Request *struct {
			request
			Object *corev1.Pod `json:"object"` // in place of the request's own
		} `json:"request"`
	}
	if err := strict(body, &r); err != nil {
		return nil, nil, &refusal{reason: Undecodable, text: "the review cannot be read", err: err}
	}
	if r.Request == nil {
		return nil, nil, r.review.check()
	}
	q, whole := &r.Request.request, r.Request.Object
	if r.review.Request = q; whole != nil {
		q.Object = &pod{Metadata: podMetadata{Name: whole.Name, GenerateName: whole.GenerateName}}
	}
	if err := r.review.check(); err != nil {
		return nil, nil, err
	}
	return q, whole, nil
}

// identity is the request in the API's own type, without its objects.
func (q *request) identity() *admissionv1.AdmissionRequest {
	return &admissionv1.AdmissionRequest{
		UID: types.UID(q.UID), Kind: q.Kind, Resource: q.Resource, SubResource: q.SubResource, Name: q.Name, Namespace: q.Namespace,
		Operation: admissionv1.Operation(q.Operation), UserInfo: authenticationv1.UserInfo{Username: q.UserInfo.Username}, DryRun: &q.DryRun,
	}
}

func strict(body []byte, into any) error {
	problems, err := kjson.UnmarshalStrict(body, into, kjson.DisallowDuplicateFields)
	if err == nil && len(problems) > 0 {
		err = problems[0]
	}
	return err
}

func (r *review) check() error {
	switch q := r.Request; {
	case r.APIVersion != "admission.k8s.io/v1" || r.Kind != "AdmissionReview":
		return unexpected("%s %s is no AdmissionReview of admission.k8s.io/v1", r.APIVersion, r.Kind)
	case q == nil:
		return unexpected("the review has no request")
	case q.UID == "":
		return unexpected("the request has no uid")
	case q.Resource.Group != "" || q.Resource.Version != "v1" || q.Resource.Resource != "pods" || q.Kind.Kind != "Pod":
		return unexpected("%s (%s) is not judged here", q.Resource, q.Kind.Kind)
	case q.SubResource != "" && q.SubResource != "ephemeralcontainers":
		return unexpected("pods/%s is not judged here", q.SubResource)
	case q.Operation != "CREATE" && q.Operation != "UPDATE":
		return unexpected("%s of a Pod is not judged here", q.Operation)
	case q.Object == nil:
		return unexpected("the request has no object")
	case q.Operation == "UPDATE" && q.OldObject == nil:
		return unexpected("an update has no old object")
	}
	return nil
}

func unexpected(format string, args ...any) error {
	return &refusal{reason: Unexpected, text: fmt.Sprintf(format, args...)}
}

// identify finds in a review that could not be used at least whose it is, so that it can be refused.
func identify(body []byte) *request {
	var r struct {
		APIVersion string `json:"apiVersion"`
		Request    struct {
			UID       string   `json:"uid"`
			Name      string   `json:"name"`
			Namespace string   `json:"namespace"`
			Operation string   `json:"operation"`
			UserInfo  userInfo `json:"userInfo"`
			DryRun    bool     `json:"dryRun"`
		} `json:"request"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &r); err != nil {
		return &request{}
	}
	q := r.Request
	return &request{UID: q.UID, Name: q.Name, Namespace: q.Namespace, Operation: q.Operation, UserInfo: q.UserInfo, DryRun: q.DryRun}
}

// slot is a place of a Pod that names an image.
type slot struct {
	kind      string // of the list in the Pod's spec; kind and name tell two slots apart
	name      string
	at        int // in the list
	reference string
}

// path is the slot's JSON pointer.
func (s slot) path() string {
	path := "/spec/" + s.kind + "/" + strconv.Itoa(s.at) + "/image"
	if s.kind == "volumes" {
		path += "/reference"
	}
	return path
}

// slots are all places that name an image. An image volume is one of them: its files come from a registry
// as a container's do.
func (p *pod) slots() []slot {
	found := make([]slot, 0, len(p.Spec.InitContainers)+len(p.Spec.Containers)+len(p.Spec.EphemeralContainers))
	add := func(kind string, list []container) {
		for i, c := range list {
			found = append(found, slot{kind, c.Name, i, c.Image})
		}
	}
	add("initContainers", p.Spec.InitContainers)
	add("containers", p.Spec.Containers)
	add("ephemeralContainers", p.Spec.EphemeralContainers)
	for i, v := range p.Spec.Volumes {
		// A reference may be missing in a Pod template that something fills in later.
		if v.Image != nil && v.Image.Reference != "" {
			found = append(found, slot{"volumes", v.Name, i, v.Image.Reference})
		}
	}
	return found
}

// fresh are the slots whose image the Pod does not run already.
func (q *request) fresh() []slot {
	all := q.Object.slots()
	if q.Operation != "UPDATE" {
		return all
	}
	type key struct{ kind, name string }
	before := map[key]string{}
	for _, s := range q.OldObject.slots() {
		before[key{s.kind, s.name}] = s.reference
	}
	kept := all[:0]
	for _, s := range all {
		if was, there := before[key{s.kind, s.name}]; !there || was != s.reference {
			kept = append(kept, s)
		}
	}
	return kept
}

// pinned reports whether a reference names content and not a name that can move (P3).
func pinned(reference string) bool { return strings.Contains(reference, "@") }

// bufferPool keeps the bodies' memory, but not that of a rare huge one.
type bufferPool struct{ pool sync.Pool }

const keptBuffer = 256 << 10

var buffers bufferPool

func (p *bufferPool) get() *bytes.Buffer {
	if b, ok := p.pool.Get().(*bytes.Buffer); ok {
		b.Reset()
		return b
	}
	return bytes.NewBuffer(make([]byte, 0, 16<<10))
}

func (p *bufferPool) put(b *bytes.Buffer) {
	if b.Cap() <= keptBuffer {
		p.pool.Put(b)
	}
}
