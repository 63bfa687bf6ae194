// Package webhook answers the API server's admission reviews of Pods: it pins tags to digests, lets other
// Mutators change a Pod before it is judged, and refuses Pods with an image that the Judge refuses.
//
// Nothing on the way of a review calls Kubernetes, and nothing that goes wrong lets a Pod in: what cannot be
// read, is late or panics is refused. The one exception is InjectPath, which fails open (P23).
//
// The protocol is admission.k8s.io/v1,
// https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/omnivision/omnivision/gate"
)

// Where the webhook configurations send reviews.
const (
	MutatePath   = "/mutate"   // Mutators, then tags become digests
	InjectPath   = "/inject"   // Injectors alone; an error leaves the Pod as it is
	ValidatePath = "/validate" // every image is judged
)

// DefaultMaxBytes is how large a review may be. A Pod is at most 1.5 MiB in etcd, and an update carries two.
const DefaultMaxBytes = 8 << 20

// Mutator changes a Pod before it is judged. It must be idempotent and side-effect free.
type Mutator interface {
	Mutate(ctx context.Context, request *admissionv1.AdmissionRequest, pod *corev1.Pod) error
}

// Inserter is a Mutator that can mostly say what it adds to a new Pod without the Pod being read as a whole.
type Inserter interface {
	Mutator
	// Insert calls add for each operation of the JSON patch that leads to the Pod that Mutate would make, all of which are
	// "add" (https://www.rfc-editor.org/rfc/rfc6902#section-4.1). The request's object is the Pod's text. False leaves it to
	// Mutate, whatever was added.
	Insert(ctx context.Context, request *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool
}

// Options says who judges and who hears of it. Only Judge is needed.
type Options struct {
	Judge    gate.Judge
	Mutators []Mutator // at MutatePath, in this order, before tags are pinned; an error refuses the Pod
	// Injectors run at InjectPath; an error leaves the Pod unchanged. They get a request without its objects, and may change
	// the Pod's annotations, init containers and volumes in place. Whatever else they change they replace by something new.
	// A single one that is an Inserter is asked to Insert first.
	Injectors []Mutator
	Audit     *slog.Logger // one line per decision; nil is none
	Metrics   *Metrics     // nil counts nothing that anybody reads
	Events    Recorder     // hears of denials; nil is nobody
	MaxBytes  int64        // of a review; 0 is DefaultMaxBytes
}

// Webhook answers reviews. It is safe for concurrent use.
type Webhook struct {
	judge     gate.Judge
	knower    gate.Knower // the same, or nil
	mutators  []Mutator
	injectors []Mutator
	inserter  Inserter // the only one of them, or nil
	audit     *slog.Logger
	metrics   *Metrics
	events    Recorder
	maxBytes  int64
}

// New returns a Webhook; it panics without a Judge, since a gate that does not judge must not start.
func New(o Options) *Webhook {
	if o.Judge == nil {
		panic("webhook: no Judge")
	}
	w := &Webhook{judge: o.Judge, mutators: o.Mutators, injectors: o.Injectors, audit: o.Audit, metrics: o.Metrics, events: o.Events, maxBytes: o.MaxBytes}
	w.knower, _ = o.Judge.(gate.Knower)
	if len(o.Injectors) == 1 {
		w.inserter, _ = o.Injectors[0].(Inserter)
	}
	if w.audit == nil {
		w.audit = slog.New(slog.DiscardHandler)
	}
	if w.metrics == nil {
		w.metrics = NewMetrics()
	}
	if w.maxBytes == 0 {
		w.maxBytes = DefaultMaxBytes
	}
	return w
}

// Handler serves the three paths.
func (w *Webhook) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(MutatePath, w.serve("mutate", w.mutate))
	mux.Handle(InjectPath, w.serve("inject", w.inject))
	mux.Handle(ValidatePath, w.serve(judging, w.validate))
	return mux
}

// judging is what the webhook is called that decides.
const judging = "validate"

// reviewer answers one review. An error refuses the Pod.
type reviewer func(ctx context.Context, body []byte) (*decision, error)

// refusal is an error with the words for whoever created the Pod, and a Reason for the metrics.
type refusal struct {
	status int // of HTTP, when there is no review that could be answered
	reason gate.Reason
	text   string
	err    error
}

func (r *refusal) Error() string {
	if r.err == nil {
		return r.text
	}
	return r.text + ": " + r.err.Error()
}

func (r *refusal) Unwrap() error { return r.err }

// What the webhook itself refuses for; the Judge has Reasons of its own.
const (
	Undecodable gate.Reason = "Undecodable" // the review or its Pod cannot be read
	Unexpected  gate.Reason = "Unexpected"  // a review of something that this webhook does not judge
	NotPinned   gate.Reason = "NotPinned"   // a tag is left where a digest was judged
	Internal    gate.Reason = "Internal"    // the gate's own fault
)

func (w *Webhook) serve(name string, review reviewer) http.Handler {
	observe := w.metrics.webhook(name)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := time.Now()
		// Nobody holds a connection by sending slowly. Not every ResponseWriter can, and then it is not needed.
		_ = http.NewResponseController(rw).SetReadDeadline(start.Add(maxTimeout))
		observe.inFlight.Inc()
		defer observe.inFlight.Dec()
		d := w.answer(r, review)
		d.webhook, d.took = name, time.Since(start)
		d.write(rw)
		if name != judging { // what admits is in the audit log before the API server hears of it
			_ = http.NewResponseController(rw).Flush()
		}
		observe.decided(d)
		w.record(d)
	})
}

// answer is the one place where an error becomes a decision.
func (w *Webhook) answer(r *http.Request, review reviewer) (d *decision) {
	body := buffers.get()
	defer buffers.put(body)
	var err error
	defer func() {
		if p := recover(); p != nil {
			err = &refusal{reason: Internal, text: "the gate failed", err: fmt.Errorf("panic: %v", p)}
			w.audit.Error("panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		if err != nil {
			d = failed(body.Bytes(), err)
		}
	}()
	if err = w.read(r, body); err != nil {
		return nil
	}
	timeout, margin := deadlines(timeoutParameter(r))
	d, err = review(due{r.Context(), time.Now().Add(timeout - margin)}, body.Bytes())
	return d
}

func (w *Webhook) read(r *http.Request, into io.Writer) error {
	if r.Method != http.MethodPost {
		return &refusal{status: http.StatusMethodNotAllowed, reason: Undecodable, text: "a review is sent by POST"}
	}
	if !isJSON(r.Header.Get("Content-Type")) {
		return &refusal{status: http.StatusUnsupportedMediaType, reason: Undecodable, text: "a review is application/json"}
	}
	if r.ContentLength > w.maxBytes {
		return tooLarge(w.maxBytes)
	}
	n, err := io.Copy(into, io.LimitReader(r.Body, w.maxBytes+1))
	switch {
	case err != nil:
		return &refusal{status: http.StatusBadRequest, reason: Undecodable, text: "reading the review", err: err}
	case n > w.maxBytes:
		return tooLarge(w.maxBytes)
	}
	return nil
}

func isJSON(contentType string) bool {
	if contentType == "application/json" { // as API servers write it
		return true
	}
	kind, _, err := mime.ParseMediaType(contentType)
	return err == nil && kind == "application/json"
}

func tooLarge(limit int64) error {
	return &refusal{status: http.StatusRequestEntityTooLarge, reason: Undecodable, text: fmt.Sprintf("the review has more than %d bytes", limit)}
}

// failed is the decision after an error: refused if the review has an id, and otherwise an HTTP error, which
// the API server treats by the webhook's failurePolicy.
func failed(body []byte, err error) *decision {
	var r *refusal
	if !errors.As(err, &r) {
		r = &refusal{reason: Internal, text: "the gate failed", err: err}
	}
	d := &decision{review: identify(body), refused: r}
	d.status = r.status
	if d.status == 0 {
		d.status = http.StatusBadRequest
	}
	return d
}

// Deadlines of a review. The API server tells its own in a query parameter
// (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#timeouts).
const (
	defaultTimeout = 10 * time.Second // the API server's, when it does not say
	maxTimeout     = 30 * time.Second
	leastMargin    = 200 * time.Millisecond
)

// due is a context that says its deadline and does not end by it. Who may have to wait asks for one that does (kept): most
// reviews are answered at once, and a timer costs as much as half of them.
type due struct {
	context.Context
	at time.Time
}

// Deadline implements context.Context.
func (d due) Deadline() (time.Time, bool) { return d.at, true }

// kept ends before the API server gives up, so that what arrives there is a readable denial and not a timeout (P26).
func kept(ctx context.Context) (context.Context, context.CancelFunc) {
	if d, ok := ctx.(due); ok {
		return context.WithDeadline(d.Context, d.at)
	}
	return context.WithCancel(ctx)
}

// timeoutParameter is the query's, which has nothing else in it.
func timeoutParameter(r *http.Request) string {
	if value, only := strings.CutPrefix(r.URL.RawQuery, "timeout="); only && !strings.ContainsAny(value, "&%+;") {
		return value
	}
	return r.URL.Query().Get("timeout")
}

// deadlines returns the API server's timeout, and how long before it the verdicts are due.
func deadlines(parameter string) (timeout, margin time.Duration) {
	timeout, err := time.ParseDuration(strings.TrimSpace(parameter))
	if err != nil || timeout <= 0 {
		timeout = defaultTimeout
	}
	timeout = min(timeout, maxTimeout)
	return timeout, min(max(timeout/10, leastMargin), timeout/2)
}
