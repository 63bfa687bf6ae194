package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

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
		changed, patch, err := run(ctx, w.mutators, body)
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
	q, err := decode(body)
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
	if _, d.patch, err = run(ctx, w.injectors, body); err != nil {
		d.patch, d.skipped = nil, err
	}
	return d, nil
}

// run applies mutators to a review's Pod and returns the Pod that comes out, and how to get there.
func run(ctx context.Context, mutators []Mutator, body []byte) (changed *pod, patch []operation, err error) {
	var full admissionv1.AdmissionReview
	if err := strict(body, &full); err != nil {
		return nil, nil, &refusal{reason: Undecodable, text: "the review cannot be read", err: err}
	}
	var before corev1.Pod
	if err := strict(full.Request.Object.Raw, &before); err != nil {
		return nil, nil, &refusal{reason: Undecodable, text: "the Pod cannot be read", err: err}
	}
	after := before.DeepCopy()
	for _, m := range mutators {
		if err := m.Mutate(ctx, full.Request, after); err != nil {
			return nil, nil, fmt.Errorf("changing the Pod by %T: %w", m, err)
		}
	}
	return difference(&before, after)
}

// difference compares two Pods as our types write them: a field that a newer API server sent and we do not
// know is in neither, and so not taken away.
func difference(before, after *corev1.Pod) (changed *pod, patch []operation, err error) {
	old, err := json.Marshal(before)
	if err != nil {
		return nil, nil, err
	}
	text := old
	if !equality.Semantic.DeepEqual(before, after) {
		if text, err = json.Marshal(after); err != nil {
			return nil, nil, err
		}
		steps, err := jsonpatch.CreatePatch(old, text)
		if err != nil {
			return nil, nil, fmt.Errorf("comparing the Pod with the changed one: %w", err)
		}
		for _, s := range steps {
			patch = append(patch, operation{s.Operation, s.Path, s.Value})
		}
	}
	changed = &pod{}
	return changed, patch, strict(text, changed)
}

// operation is one of a JSON patch, https://www.rfc-editor.org/rfc/rfc6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

func (o operation) MarshalJSON() ([]byte, error) {
	if o.Op == "remove" {
		return json.Marshal(map[string]string{"op": o.Op, "path": o.Path})
	}
	type plain operation // without this method
	return json.Marshal(plain(o))
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
		if digest := digests[s.reference]; digestPattern.MatchString(digest) {
			patch = append(patch, operation{"replace", s.path, withDigest(s.reference, digest)})
		}
	}
	return patch, verdicts, nil
}

var digestPattern = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)

// withDigest writes repository:tag@digest, as the chart does (P3): people read the tag, the node uses the digest.
func withDigest(reference, digest string) string {
	if last := reference[strings.LastIndexByte(reference, '/')+1:]; !strings.Contains(last, ":") {
		reference += ":latest" // what a reference without a tag means
	}
	return reference + "@" + digest
}
