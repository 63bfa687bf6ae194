package webhook

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/gate"
)

// validate judges every image that the Pod would newly run (P25). The API server sends the Pod as all
// mutating webhooks left it.
func (w *Webhook) validate(ctx context.Context, body []byte) (*decision, error) {
	q, err := decode(body)
	if err != nil {
		return nil, err
	}
	d := &decision{review: q}
	d.verdicts, err = w.judgeAll(ctx, q, q.fresh())
	if err != nil {
		return nil, err
	}
	for i := range d.verdicts {
		confirm(&d.verdicts[i])
	}
	return d, nil
}

// confirm makes sure that what was judged is what the kubelet will pull. A tag would be resolved a second
// time by the node, and by then it may name something else.
func confirm(v *gate.Verdict) {
	if !v.Allowed {
		if len(v.Denials) == 0 {
			v.Denials = []gate.Denial{{Reason: Internal, Message: "refused without a reason"}}
		}
		return
	}
	_, digest, isPinned := strings.Cut(v.Image, "@")
	switch {
	case isPinned && v.Digest != "" && digest != v.Digest:
		deny(v, Internal, fmt.Sprintf("the verdict is about %s", v.Digest))
	case !isPinned && len(v.Policies) > 0:
		deny(v, NotPinned, "the tag was not replaced by the digest that was verified; name repository:tag@digest")
	}
}

func deny(v *gate.Verdict, reason gate.Reason, message string) {
	v.Allowed = false
	v.Denials = append(v.Denials, gate.Denial{Policy: strings.Join(v.Policies, ","), Reason: reason, Message: message})
}

// maxImages is how many images of one Pod are judged: each may cost the registry a question.
const maxImages = 128

// judgeAll asks for a verdict on each distinct reference at the same time. The verdicts are in the order of
// first mention. Who does not answer in time is not waited for.
func (w *Webhook) judgeAll(ctx context.Context, q *request, slots []slot) ([]gate.Verdict, error) {
	references := distinct(slots)
	switch {
	case len(references) == 0:
		return nil, nil
	case len(references) > maxImages:
		return nil, unexpected("the Pod has more than %d images; no more are judged at once", maxImages)
	}
	verdicts := make([]gate.Verdict, len(references))
	var unknown []int
	for i, reference := range references {
		known := false
		if verdicts[i], known = w.known(q.image(reference)); !known {
			verdicts[i] = late(reference)
			unknown = append(unknown, i)
		}
	}
	w.judgeUnknown(ctx, q, verdicts, unknown)
	return verdicts, nil
}

// judgeUnknown replaces those of the verdicts that come in time.
func (w *Webhook) judgeUnknown(ctx context.Context, q *request, verdicts []gate.Verdict, unknown []int) {
	if len(unknown) == 0 {
		return
	}
	type answer struct {
		i       int
		verdict gate.Verdict
	}
	ctx, cancel := kept(ctx)
	defer cancel()
	answers := make(chan answer, len(unknown))
	for _, i := range unknown {
		image := q.image(verdicts[i].Image)
		go func() { answers <- answer{i, w.judgeOne(ctx, image)} }()
	}
	overtime := time.NewTimer(untilOvertime(ctx))
	defer overtime.Stop()
	for range unknown {
		select {
		case a := <-answers:
			verdicts[a.i] = a.verdict
		case <-overtime.C:
			return
		}
	}
}

// known answers without waiting, where the Judge can. One that panics is asked again, where that is told.
func (w *Webhook) known(image gate.Image) (v gate.Verdict, ok bool) {
	if w.knower == nil {
		return gate.Verdict{}, false
	}
	defer func() {
		if recover() != nil {
			v, ok = gate.Verdict{}, false
		}
	}()
	start := time.Now()
	if v, ok = w.knower.Known(image); ok {
		v.Image = image.Reference
		w.metrics.judged(v.Source, time.Since(start))
	}
	return v, ok
}

// untilOvertime ends when even a Judge that looks at its deadline should have answered: between that and the
// API server's own.
func untilOvertime(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return defaultTimeout
	}
	return time.Until(deadline) + leastMargin/2
}

// judgeOne keeps a Judge that panics from taking the gate along: it runs in a goroutine of its own.
func (w *Webhook) judgeOne(ctx context.Context, image gate.Image) (v gate.Verdict) {
	defer func() {
		if p := recover(); p != nil {
			w.audit.Error("panic", "panic", fmt.Sprint(p), "image", image.Reference, "stack", string(debug.Stack()))
			v = gate.Verdict{Image: image.Reference, Denials: []gate.Denial{{Reason: Internal, Message: "judging it failed; the gate's log says why"}}}
		}
	}()
	start := time.Now()
	v = w.judge.Judge(ctx, image)
	v.Image = image.Reference
	w.metrics.judged(v.Source, time.Since(start))
	return v
}

func late(reference string) gate.Verdict {
	return gate.Verdict{Image: reference, Denials: []gate.Denial{{Reason: gate.Deadline, Message: "no verdict in time; try again"}}}
}

func distinct(slots []slot) []string {
	references := make([]string, 0, len(slots))
	for _, s := range slots {
		// A Pod has few: this costs less than a map. Of one with many no more are looked at than judgeAll takes.
		if len(references) <= maxImages && !slices.Contains(references, s.reference) {
			references = append(references, s.reference)
		}
	}
	return references
}

func (q *request) image(reference string) gate.Image {
	p := q.Object
	image := gate.Image{Reference: reference, Namespace: q.Namespace, ServiceAccount: p.Spec.ServiceAccountName, PodLabels: p.Metadata.Labels}
	for _, s := range p.Spec.ImagePullSecrets {
		image.PullSecrets = append(image.PullSecrets, s.Name)
	}
	return image
}
