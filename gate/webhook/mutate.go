package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/omnivision/omnivision/gate"
)

// mutate lets the Mutators change a new Pod, and then turns tags into digests. A tag that cannot be resolved
// stays: the answer of /validate says why, after every other webhook had its turn.
func (w *Webhook) mutate(ctx context.Context, body []byte) (*decision, error) {
	q, err := decode(body)
	if err != nil {
		return nil, err
	}
	d := &decision{review: q}
	if len(w.mutators) > 0 && q.Operation == "CREATE" {
		ctx, cancel := kept(ctx)
		defer cancel()
		patch, after, err := run(ctx, w.mutators, body)
		if err != nil {
			return nil, err
		}
		changed, err := reread(after)
		if err != nil {
			return nil, err
		}
		// The patch names places in the Pod as the Mutators left it, and so must the pins.
		d.patch, q.Object = patch, changed
	}
	pins, verdicts, err := w.pin(ctx, q)
	if err != nil {
		return nil, err
	}
	d.patch = append(d.patch, pins...)
	d.resolved = verdicts
	return d, nil
}

// inject runs the Injectors alone. Whatever goes wrong leaves the Pod as it is, with a warning (P23).
func (w *Webhook) inject(ctx context.Context, body []byte) (d *decision, _ error) {
	ctx, cancel := kept(ctx)
	defer cancel()
	if d, ok := w.insert(ctx, body); ok {
		return d, nil
	}
	q, before, err := decodeWhole(body)
	if err != nil {
		return &decision{review: identify(body), skipped: err, status: http.StatusBadRequest}, nil
	}
	d = &decision{review: q}
	defer func() {
		if p := recover(); p != nil {
			w.audit.Error("panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			d = &decision{review: q, skipped: errors.New("injecting failed; the gate's log says why")}
		}
	}()
	if q.Operation != "CREATE" {
		return d, nil
	}
	after := forInsertion(before)
	if err = change(ctx, w.injectors, q.identity(), after); err == nil {
		d.patch, err = difference(before, after)
	}
	if err != nil {
		d.patch, d.skipped = nil, err
	}
	return d, nil
}

// insert asks the only Injector what it adds, without reading all of the Pod. ok is false where that does not tell.
func (w *Webhook) insert(ctx context.Context, body []byte) (d *decision, ok bool) {
	if w.inserter == nil {
		return nil, false
	}
	r, ok := readCompact(body, readNames)
	if !ok || r.check() != nil || r.Request.Operation != "CREATE" {
		return nil, false
	}
	defer func() {
		if p := recover(); p != nil {
			w.audit.Error("panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			d, ok = nil, false
		}
	}()
	d = &decision{review: r.Request}
	asked := r.Request.identity()
	asked.Object.Raw = r.Request.raw
	ok = w.inserter.Insert(ctx, asked, func(path string, value []byte) {
		d.patch = append(d.patch, operation{"add", path, json.RawMessage(value)})
	})
	return d, ok
}

// forInsertion is a Pod of which annotations, init containers and volumes may be changed. All else is shared with the one
// that it is made of: copying every Pod as a whole, and comparing the two, cost more than what is injected.
func forInsertion(before *corev1.Pod) *corev1.Pod {
	after := *before
	after.Annotations = maps.Clone(before.Annotations)
	after.Spec.InitContainers = slices.Clone(before.Spec.InitContainers)
	after.Spec.Volumes = slices.Clone(before.Spec.Volumes)
	return &after
}

func change(ctx context.Context, mutators []Mutator, q *admissionv1.AdmissionRequest, pod *corev1.Pod) error {
	for _, m := range mutators {
		if err := m.Mutate(ctx, q, pod); err != nil {
			return fmt.Errorf("changing the Pod by %T: %w", m, err)
		}
	}
	return nil
}

// run applies mutators to a review's Pod and returns the Pod that comes out, and how to get there.
func run(ctx context.Context, mutators []Mutator, body []byte) (patch []operation, after *corev1.Pod, err error) {
	var full admissionv1.AdmissionReview
	if err := strict(body, &full); err != nil {
		return nil, nil, &refusal{reason: Undecodable, text: "the review cannot be read", err: err}
	}
	var before corev1.Pod
	if err := strict(full.Request.Object.Raw, &before); err != nil {
		return nil, nil, &refusal{reason: Undecodable, text: "the Pod cannot be read", err: err}
	}
	after = before.DeepCopy()
	if err := change(ctx, mutators, full.Request, after); err != nil {
		return nil, nil, err
	}
	patch, err = difference(&before, after)
	return patch, after, err
}

// reread is what of a changed Pod decides.
func reread(after *corev1.Pod) (*pod, error) {
	text, err := json.Marshal(after)
	if err != nil {
		return nil, err
	}
	var p pod
	return &p, strict(text, &p)
}

// pin resolves what the Pod would newly run by tag. Every list of containers is looked at; templates of
// other objects never are (P9).
func (w *Webhook) pin(ctx context.Context, q *request) ([]operation, []gate.Verdict, error) {
	var open []slot
	for _, s := range q.fresh() {
		if !pinned(s.reference) && s.reference != "" {
			open = append(open, s)
		}
	}
	verdicts, err := w.judgeAll(ctx, q, open)
	if err != nil {
		return nil, nil, err
	}
	digests := make(map[string]string, len(verdicts))
	for _, v := range verdicts {
		digests[v.Image] = v.Digest
	}
	var patch []operation
	for _, s := range open {
		if digest := digests[s.reference]; isDigest(digest) {
			patch = append(patch, operation{"replace", s.path(), withDigest(s.reference, digest)})
		}
	}
	return patch, verdicts, nil
}

// isDigest reports whether a digest is sha256: and 64 hexadecimal digits.
func isDigest(digest string) bool {
	digits, is := strings.CutPrefix(digest, "sha256:")
	return is && len(digits) == 64 && strings.Trim(digits, "0123456789abcdef") == ""
}

// withDigest writes repository:tag@digest, as the chart does (P3): people read the tag, the node uses the digest.
func withDigest(reference, digest string) string {
	if last := reference[strings.LastIndexByte(reference, '/')+1:]; !strings.Contains(last, ":") {
		reference += ":latest" // what a reference without a tag means
	}
	return reference + "@" + digest
}
