// Package certificate keeps the gate's own CA and serving certificate: in one Secret, which the replicas
// agree on without a leader, and in the caBundle of the gate's webhook configurations.
//
// Rotation needs no restart and fails no handshake (P27): a new CA is trusted before it signs, and the old
// one is trusted until it ends. A Secret that is deleted is written again from memory, with a new CA to
// follow, so that deleting it is also how one asks for new keys.
package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Clock tells the time.
type Clock interface{ Now() time.Time }

// Options of a Keeper.
type Options struct {
	Client     kubernetes.Interface
	Namespace  string
	Secret     string   // name
	Names      []string // DNS names and IP addresses of the serving certificate, at least one
	Mutating   []string // names of MutatingWebhookConfigurations that get the CAs
	Validating []string // names of ValidatingWebhookConfigurations that get the CAs
	Lifetimes  Lifetimes
	Clock      Clock         // nil is this machine's; see APIClock
	Interval   time.Duration // between looks at Secret and configurations, besides their changes; 0 is a minute
	Log        *slog.Logger
}

// Keeper keeps the certificate. It is a prometheus.Collector.
type Keeper struct {
	o         Options
	serving   atomic.Pointer[tls.Certificate]
	published atomic.Bool // once: every configuration that exists trusts what is served
	changed   chan struct{}

	mu     sync.Mutex // one reconcile at a time
	memory *state     // the last good one
	known  []byte     // the bundle that all configurations had at the last look; nil if that failed
	last   []byte     // the last bundle that all configurations had

	expiry    *prometheus.GaugeVec
	rotations *prometheus.CounterVec
	failures  prometheus.Counter
}

// New returns a Keeper that has no certificate until Run.
func New(o Options) (*Keeper, error) {
	if len(o.Names) == 0 || o.Secret == "" || o.Namespace == "" {
		return nil, errors.New("a certificate needs a name, and a Secret in a namespace")
	}
	if o.Lifetimes == (Lifetimes{}) {
		o.Lifetimes = DefaultLifetimes
	}
	if o.Clock == nil {
		o.Clock = &APIClock{}
	}
	if o.Interval == 0 {
		o.Interval = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Keeper{
		o: o, changed: make(chan struct{}, 1),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "omnivision_gate_certificate_expiry_timestamp_seconds", Help: "When the certificate ends, in seconds since 1970: serving, or ca, which signed it.",
		}, []string{"certificate"}),
		rotations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omnivision_gate_certificate_rotations_total", Help: "Certificates that this replica began to use: serving, or ca.",
		}, []string{"certificate"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omnivision_gate_certificate_failures_total", Help: "Looks at Secret and webhook configurations that failed.",
		}),
	}, nil
}

// GetCertificate is for tls.Config: each handshake gets the certificate of the moment.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.serving.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("there is no certificate yet")
}

// Ready says what is missing until API servers can trust this replica.
func (k *Keeper) Ready() error {
	switch c := k.serving.Load(); {
	case c == nil:
		return fmt.Errorf("no certificate: the Secret %s/%s could not be read or written yet", k.o.Namespace, k.o.Secret)
	case !valid(c.Leaf, k.o.Clock.Now()):
		return fmt.Errorf("the certificate is valid from %s until %s", c.Leaf.NotBefore.Format(time.RFC3339), c.Leaf.NotAfter.Format(time.RFC3339))
	case !k.published.Load():
		return errors.New("the webhook configurations do not have the CA yet")
	}
	return nil
}

// Run keeps the certificate until the context ends. Failures are logged and tried again.
func (k *Keeper) Run(ctx context.Context) {
	k.watch(ctx)
	wait := time.Duration(0)
	for failed := 0; ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-k.changed:
			timer.Stop()
		case <-timer.C:
		}
		if err := k.Reconcile(ctx); err != nil && ctx.Err() == nil {
			failed++
			k.failures.Inc()
			k.o.Log.Error("keeping the certificate failed; it is tried again", "error", err.Error(), "attempt", failed)
			wait = min(k.o.Interval, time.Second<<min(failed-1, 6))
			continue
		}
		failed, wait = 0, k.o.Interval
	}
}

// attempts is how often replicas may get in each other's way before it is an error.
const attempts = 10

// requestTimeout limits each look, so that an API server that hangs is seen.
const requestTimeout = 20 * time.Second

// Reconcile brings Secret, webhook configurations and what is served to what they should be, once.
func (k *Keeper) Reconcile(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var err error
	for range attempts {
		var s *state
		if s, err = k.agree(ctx); err == nil {
			return k.use(ctx, s)
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return fmt.Errorf("agreeing with the other replicas on the Secret %s/%s: %w", k.o.Namespace, k.o.Secret, err)
}

// agree reads what the replicas share, and writes it if something is due. Whoever is first wins: the others
// get a conflict and read again.
func (k *Keeper) agree(ctx context.Context) (*state, error) {
	secrets := k.o.Client.CoreV1().Secrets(k.o.Namespace)
	secret, err := secrets.Get(ctx, k.o.Secret, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return nil, err
	}
	current, lost := k.read(secret, missing)
	r := rotation{names: k.o.Names, lifetimes: k.o.Lifetimes, now: k.o.Clock.Now(), renewed: lost && current != nil}
	r.published = current != nil && bytes.Equal(k.known, encodeCerts(current.trusted()...))
	next, err := r.step(current)
	if err != nil || (next == current && !lost) {
		return next, err
	}
	data, err := next.encode()
	if err != nil {
		return nil, err
	}
	if missing {
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: k.o.Secret, Namespace: k.o.Namespace}, Data: data}, metav1.CreateOptions{})
	} else {
		secret.Data = data
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{})
	}
	return next, err
}

// read returns the Secret's state or, when that is lost, the one in memory.
func (k *Keeper) read(secret *corev1.Secret, missing bool) (s *state, lost bool) {
	if missing {
		k.o.Log.Warn("there is no Secret; it is written", "namespace", k.o.Namespace, "secret", k.o.Secret, "from_memory", k.memory != nil)
		return k.memory, true
	}
	s, err := decode(secret.Data)
	if err != nil {
		k.o.Log.Warn("the Secret is broken; it is written anew", "namespace", k.o.Namespace, "secret", k.o.Secret, "error", err.Error(), "from_memory", k.memory != nil)
		return k.memory, true
	}
	return s, false
}

// use publishes the CAs and then serves. While what is served is still good it is not replaced by something
// that could not be published.
func (k *Keeper) use(ctx context.Context, s *state) error {
	bundle := encodeCerts(s.trusted()...)
	err := k.publish(ctx, bundle)
	if err == nil {
		k.known, k.last = bundle, bundle
	} else {
		k.known = nil
		believed := bytes.Contains(k.last, encodeCerts(s.signer.cert))
		if c := k.serving.Load(); c != nil && valid(c.Leaf, k.o.Clock.Now()) && !believed {
			return err
		}
	}
	k.adopt(s)
	if err == nil {
		k.published.Store(true)
	}
	return err
}

func (k *Keeper) adopt(s *state) {
	if k.memory == nil || !k.memory.serving.cert.Equal(s.serving.cert) {
		k.rotations.WithLabelValues("serving").Inc()
		k.o.Log.Info("serving certificate", "from", s.serving.cert.NotBefore, "until", s.serving.cert.NotAfter, "names", k.o.Names)
	}
	if k.memory == nil || !k.memory.signer.cert.Equal(s.signer.cert) {
		k.rotations.WithLabelValues("ca").Inc()
	}
	k.memory = s
	k.serving.Store(s.certificate())
	k.expiry.WithLabelValues("serving").Set(float64(s.serving.cert.NotAfter.Unix()))
	k.expiry.WithLabelValues("ca").Set(float64(s.signer.cert.NotAfter.Unix()))
}

// Describe implements prometheus.Collector.
func (k *Keeper) Describe(ch chan<- *prometheus.Desc) {
	k.expiry.Describe(ch)
	k.rotations.Describe(ch)
	k.failures.Describe(ch)
}

// Collect implements prometheus.Collector.
func (k *Keeper) Collect(ch chan<- prometheus.Metric) {
	k.expiry.Collect(ch)
	k.rotations.Collect(ch)
	k.failures.Collect(ch)
}
