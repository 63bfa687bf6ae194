package webhook

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Recorder hears of denials. It must not block.
type Recorder interface {
	Denied(subject corev1.ObjectReference, message string)
}

// subject is what a person looks at when a Pod does not come: its controller, or else its namespace. The Pod
// itself does not exist.
func subject(q *request) corev1.ObjectReference {
	for _, o := range q.Object.Metadata.OwnerReferences {
		if o.Controller != nil && *o.Controller {
			return corev1.ObjectReference{APIVersion: o.APIVersion, Kind: o.Kind, Name: o.Name, UID: o.UID, Namespace: q.Namespace}
		}
	}
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: q.Namespace, Namespace: q.Namespace}
}

// Events writes denials as Events of type Warning. Equal ones are counted in one Event, and each object gets
// a few at once and then one every five minutes, so that a controller that tries again and again fills
// neither etcd nor the client's queue.
type Events struct{ recorder record.EventRecorder }

// DeniedReason is the Events' reason.
const DeniedReason = "ImageRefused"

// Limits of Events of one object.
const (
	eventBurst   = 10
	eventsPerSec = 1. / 300
)

// NewEvents writes by the client, in the background, until the context ends. Give it a client with a rate
// limit of its own.
func NewEvents(ctx context.Context, client kubernetes.Interface, instance string) *Events {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx), record.WithCorrelatorOptions(record.CorrelatorOptions{BurstSize: eventBurst, QPS: eventsPerSec}))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return &Events{broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "omnivision-gate", Host: instance})}
}

// Eventf queues an Event about something else than a denial, and drops it when the queue is full.
func (e *Events) Eventf(object runtime.Object, eventtype, reason, format string, args ...any) {
	e.recorder.Event(object, eventtype, reason, line(fmt.Sprintf(format, args...), 1024))
}

// Denied queues an Event and drops it when the queue is full.
func (e *Events) Denied(subject corev1.ObjectReference, message string) {
	e.recorder.Event(&subject, corev1.EventTypeWarning, DeniedReason, line(message, 1024))
}
