package certificate

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// settable is a clock that a test sets.
type settable struct {
	mu  sync.Mutex
	now time.Time
}

func (c *settable) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *settable) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

const namespace = "omnivision-system"

func webhookConfiguration(names ...string) *admissionregistrationv1.ValidatingWebhookConfiguration {
	c := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "gate", ResourceVersion: "1"}}
	for _, n := range names {
		c.Webhooks = append(c.Webhooks, admissionregistrationv1.ValidatingWebhook{Name: n})
	}
	return c
}

func keeper(t *testing.T, client *fake.Clientset, clock Clock) *Keeper {
	t.Helper()
	k, err := New(Options{Client: client, Namespace: namespace, Secret: "gate-certificate", Names: names, Validating: []string{"gate"}, Mutating: []string{"absent"}, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func reconcile(t *testing.T, keepers ...*Keeper) {
	t.Helper()
	for _, k := range keepers {
		if err := k.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func published(t *testing.T, client *fake.Clientset) []byte {
	t.Helper()
	c, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), "gate", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range c.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, c.Webhooks[0].ClientConfig.CABundle) {
			t.Fatal("the webhooks of one configuration trust different CAs")
		}
	}
	return c.Webhooks[0].ClientConfig.CABundle
}

func trusts(t *testing.T, client *fake.Clientset, clock *settable, keepers ...*Keeper) {
	t.Helper()
	for i, k := range keepers {
		c, err := k.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := handshake(t, c, published(t, client), clock.Now()); err != nil {
			t.Errorf("replica %d is not trusted: %v", i, err)
		}
	}
}

func TestReplicasServeTheSameAndAreTrusted(t *testing.T) {
	client, clock := fake.NewClientset(webhookConfiguration("a", "b")), &settable{now: epoch}
	a, b := keeper(t, client, clock), keeper(t, client, clock)
	if a.Ready() == nil {
		t.Error("ready without a certificate")
	}
	reconcile(t, a, b)
	trusts(t, client, clock, a, b)
	if err := errors.Join(a.Ready(), b.Ready()); err != nil {
		t.Error(err)
	}
	one, _ := a.GetCertificate(nil)
	two, _ := b.GetCertificate(nil)
	if !one.Leaf.Equal(two.Leaf) {
		t.Error("the replicas serve different certificates")
	}
}

// A year and more of two replicas that look at different times.
func TestTwoReplicasRotateWithoutAFailedHandshake(t *testing.T) {
	client, clock := fake.NewClientset(webhookConfiguration("a")), &settable{now: epoch}
	a, b := keeper(t, client, clock), keeper(t, client, clock)
	reconcile(t, a, b)
	first, _ := a.GetCertificate(nil)
	for day := range 500 {
		clock.step(24 * time.Hour)
		replica := []*Keeper{a, b}[day%2]
		reconcile(t, replica)
		trusts(t, client, clock, a, b)
		clock.step(time.Minute)
		reconcile(t, a, b)
		trusts(t, client, clock, a, b)
	}
	if last, _ := a.GetCertificate(nil); last.Leaf.Equal(first.Leaf) || a.memory.signer.cert.NotBefore.Before(epoch) {
		t.Error("nothing rotated in 500 days")
	}
}

func TestDeletedOrBrokenSecretIsWrittenAgainWithoutABreak(t *testing.T) {
	for name, destroy := range map[string]func(*fake.Clientset) error{
		"deleted": func(c *fake.Clientset) error {
			return c.CoreV1().Secrets(namespace).Delete(context.Background(), "gate-certificate", metav1.DeleteOptions{})
		},
		"emptied": func(c *fake.Clientset) error {
			_, err := c.CoreV1().Secrets(namespace).Update(context.Background(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "gate-certificate", Namespace: namespace}}, metav1.UpdateOptions{})
			return err
		},
		"broken": func(c *fake.Clientset) error {
			s, err := c.CoreV1().Secrets(namespace).Get(context.Background(), "gate-certificate", metav1.GetOptions{})
			if err == nil {
				s.Data[signerKey] = []byte("nonsense")
				_, err = c.CoreV1().Secrets(namespace).Update(context.Background(), s, metav1.UpdateOptions{})
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, clock := fake.NewClientset(webhookConfiguration("a")), &settable{now: epoch}
			a, b := keeper(t, client, clock), keeper(t, client, clock)
			reconcile(t, a, b)
			old := a.memory.signer
			if err := destroy(client); err != nil {
				t.Fatal(err)
			}
			reconcile(t, b)
			trusts(t, client, clock, a, b)
			reconcile(t, a)
			trusts(t, client, clock, a, b)
			if a.memory.next == nil {
				t.Fatal("no new CA follows")
			}
			clock.step(DefaultLifetimes.Propagation)
			reconcile(t, a, b)
			trusts(t, client, clock, a, b)
			if a.memory.signer.cert.Equal(old.cert) {
				t.Error("the old CA still signs")
			}
			// A new replica, which remembers nothing, finds all of it.
			c := keeper(t, client, clock)
			reconcile(t, c)
			trusts(t, client, clock, a, b, c)
		})
	}
}

func TestTakenAwayCABundleComesBack(t *testing.T) {
	client, clock := fake.NewClientset(webhookConfiguration("a", "b")), &settable{now: epoch}
	k := keeper(t, client, clock)
	reconcile(t, k)
	if _, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), webhookConfiguration("a", "b", "c"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	reconcile(t, k)
	trusts(t, client, clock, k)
}

// What could not be published is not served, as long as there is something that is trusted.
func TestUnpublishedCertificateIsNotServed(t *testing.T) {
	client, clock := fake.NewClientset(webhookConfiguration("a")), &settable{now: epoch}
	k := keeper(t, client, clock)
	reconcile(t, k)
	client.PrependReactor("patch", "*", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("forbidden") })
	for range 36 { // the next CA is announced after 275 days, and nobody hears of it
		clock.step(10 * 24 * time.Hour)
		_ = k.Reconcile(t.Context())
		trusts(t, client, clock, k)
	}
	if k.Reconcile(t.Context()) == nil {
		t.Error("a failed publication is no error")
	}
}
