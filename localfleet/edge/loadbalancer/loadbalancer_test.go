package loadbalancer

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func service(name string, age time.Duration, address string, ports ...int32) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "traefik", CreationTimestamp: metav1.NewTime(time.Unix(1_800_000_000, 0).Add(-age))},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
	}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: p, Protocol: corev1.ProtocolTCP})
	}
	if address != "" {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
	}
	return s
}

func TestAssignGivesEachPortOfAnAddressOnce(t *testing.T) {
	addresses := []string{"10.111.1.11", "10.111.1.12"}
	for name, tc := range map[string]struct {
		services []*corev1.Service
		want     map[string]string
	}{
		"the first address is preferred": {
			[]*corev1.Service{service("a", 0, "", 80)},
			map[string]string{"a": "10.111.1.11"},
		},
		"different ports share an address": {
			[]*corev1.Service{service("a", 2, "", 80), service("b", 1, "", 443)},
			map[string]string{"a": "10.111.1.11", "b": "10.111.1.11"},
		},
		"the older Service chooses first": {
			[]*corev1.Service{service("young", 1, "", 80), service("old", 2, "", 80)},
			map[string]string{"old": "10.111.1.11", "young": "10.111.1.12"},
		},
		"a holder keeps its address against an older newcomer": {
			[]*corev1.Service{service("old", 2, "", 80), service("holder", 1, "10.111.1.11", 80)},
			map[string]string{"old": "10.111.1.12", "holder": "10.111.1.11"},
		},
		"two that claim the same are told apart": {
			[]*corev1.Service{service("a", 2, "10.111.1.11", 80), service("b", 1, "10.111.1.11", 80)},
			map[string]string{"a": "10.111.1.11", "b": "10.111.1.12"},
		},
		"a third gets nothing": {
			[]*corev1.Service{service("a", 3, "", 80), service("b", 2, "", 80), service("c", 1, "", 80)},
			map[string]string{"a": "10.111.1.11", "b": "10.111.1.12", "c": ""},
		},
		"an address that is no longer there is replaced": {
			[]*corev1.Service{service("a", 1, "192.0.2.1", 80)},
			map[string]string{"a": "10.111.1.11"},
		},
		"the kubelet's port is not given away": {
			[]*corev1.Service{service("a", 1, "", 10250)},
			map[string]string{"a": ""},
		},
	} {
		got := assign(tc.services, addresses)
		for service, want := range tc.want {
			if got["traefik/"+service] != want {
				t.Errorf("%s: %s got %q, want %q", name, service, got["traefik/"+service], want)
			}
		}
	}
}

func run(t *testing.T, client kubernetes.Interface, opts Options) *Controller {
	t.Helper()
	factory := informers.NewSharedInformerFactory(client, 0)
	c, err := New(client, factory.Core().V1().Services().Informer(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; factory.Shutdown() })
	return c
}

func addressOf(t *testing.T, client kubernetes.Interface, namespace, name string) string {
	t.Helper()
	s, err := client.CoreV1().Services(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return ""
	}
	return s.Status.LoadBalancer.Ingress[0].IP
}

// waitAddress watches the Service until it has the address.
func waitAddress(t *testing.T, client kubernetes.Interface, namespace, name, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		watcher, err := client.CoreV1().Services(namespace).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatalf("watching Service %s/%s: %v", namespace, name, err)
		}
		// Looked at after the watch began, so that no change falls between the two.
		for addressOf(t, client, namespace, name) != want && changed(ctx, watcher) {
		}
		watcher.Stop()
		if addressOf(t, client, namespace, name) == want {
			return
		}
	}
	t.Fatalf("waited 20 s for Service %s/%s to have the address %q; it has %q", namespace, name, want, addressOf(t, client, namespace, name))
}

// changed waits for a change, and is false when the watch was ended by the server or by the deadline.
func changed(ctx context.Context, watcher watch.Interface) bool {
	select {
	case _, open := <-watcher.ResultChan():
		return open
	case <-ctx.Done():
		return false
	}
}

// waitAssignments asks until the assignments are as wanted.
func waitAssignments(t *testing.T, c *Controller, what string, wanted func([]Assignment) bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !wanted(c.Assignments()) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited 20 s for %s: %+v", what, c.Assignments())
		}
	}
}

func TestFailedWriteIsTriedAgain(t *testing.T) {
	client := fake.NewClientset(service("traefik", 1, "", 80))
	var failures atomic.Int32
	client.PrependReactor("patch", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		if failures.Add(1) <= 3 {
			return true, nil, errors.New("etcdserver: leader changed")
		}
		return false, nil, nil
	})
	run(t, client, Options{Addresses: []string{"10.111.1.11"}})
	waitAddress(t, client, "traefik", "traefik", "10.111.1.11")
	if failures.Load() != 4 {
		t.Errorf("%d writes, want 4: three that fail and the one that counts", failures.Load())
	}
}

// Whoever reads the address off the Service and then asks the controller gets the same answer, and a write that
// fails is an error until it succeeds.
func TestAssignmentsAreKnownBeforeTheyAreWritten(t *testing.T) {
	client := fake.NewClientset(service("traefik", 1, "", 80))
	var c *Controller
	made := make(chan struct{})
	var seen [][]Assignment // at each write
	client.PrependReactor("patch", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		<-made
		seen = append(seen, c.Assignments())
		if len(seen) == 1 {
			return true, nil, errors.New("etcdserver: leader changed")
		}
		return false, nil, nil
	})
	c = run(t, client, Options{Addresses: []string{"10.111.1.11"}})
	close(made)
	waitAddress(t, client, "traefik", "traefik", "10.111.1.11")
	waitAssignments(t, c, "the error to be gone", func(a []Assignment) bool { return len(a) == 1 && a[0].Error == "" })
	for i, failure := range []string{"", "leader changed"} {
		if a := seen[i]; len(a) != 1 || a[0].Address != "10.111.1.11" || !strings.Contains(a[0].Error, failure) || failure == "" && a[0].Error != "" {
			t.Errorf("at write %d the assignments were %+v, want the address and the error %q", i+1, a, failure)
		}
	}
}

func TestServicesOfOthersAreLeftAlone(t *testing.T) {
	foreign := service("foreign", 1, "", 80)
	class := "example.com/other"
	foreign.Spec.LoadBalancerClass = &class
	internal := service("internal", 1, "", 80)
	internal.Spec.Type = corev1.ServiceTypeClusterIP
	mine := service("mine", 1, "", 80)
	client := fake.NewClientset(foreign, internal, mine)
	c := run(t, client, Options{Addresses: []string{"10.111.1.11"}})
	waitAddress(t, client, "traefik", "mine", "10.111.1.11")
	for _, name := range []string{"foreign", "internal"} {
		if a := addressOf(t, client, "traefik", name); a != "" {
			t.Errorf("%s got %s", name, a)
		}
	}
	if a := c.Assignments(); len(a) != 1 || a[0].Service != "traefik/mine" {
		t.Errorf("assignments: %+v", a)
	}
}

func TestAgainstARealAPIServer(t *testing.T) {
	server := apiservertest.Start(t)
	client, err := kubernetes.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	create := func(name string, ports ...int32) {
		t.Helper()
		s := service(name, 0, "", ports...)
		s.Namespace, s.CreationTimestamp = "default", metav1.Time{}
		if _, err := client.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("before", 80)
	c := run(t, client, Options{Addresses: []string{"10.111.1.11"}})
	waitAddress(t, client, "default", "before", "10.111.1.11")

	// Kubernetes fills in how the address works: kube-proxy takes over what is sent to it.
	s, err := client.CoreV1().Services("default").Get(ctx, "before", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m := s.Status.LoadBalancer.Ingress[0].IPMode; m == nil || *m != corev1.LoadBalancerIPModeVIP {
		t.Errorf("ipMode %v", m)
	}
	create("after", 443)
	waitAddress(t, client, "default", "after", "10.111.1.11")
	// A conflict is visible, and resolves when the holder goes.
	create("late", 80)
	waitAssignments(t, c, "the conflict to be shown", func(a []Assignment) bool {
		return len(a) == 3 && strings.Contains(a[2].Error, "no address")
	})
	// Nothing is written twice: by now the controller has looked at all Services more than once.
	again, err := client.CoreV1().Services("default").Get(ctx, "before", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again.ResourceVersion != s.ResourceVersion {
		t.Error("a status that is right was written again")
	}

	// The API server restarts: the watch goes on where it was.
	server.StopAPI(t)
	server.StartAPI(t)
	if err := client.CoreV1().Services("default").Delete(ctx, "before", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitAddress(t, client, "default", "late", "10.111.1.11")
	if e := firstEvent(t, client, "late"); e.Source.Component != Component {
		t.Errorf("event: %+v", e)
	}

	// A Service that stops being a load balancer's loses the address, and it is not given back.
	if _, err := client.CoreV1().Services("default").Patch(ctx, "after", "application/merge-patch+json", []byte(`{"spec":{"type":"ClusterIP"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	waitAddress(t, client, "default", "after", "")
}

// firstEvent is the first one about the Service, which comes a little after what it is about.
func firstEvent(t *testing.T, client kubernetes.Interface, service string) *corev1.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	watcher, err := client.CoreV1().Events("default").Watch(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + service})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	for e := range watcher.ResultChan() {
		if event, ok := e.Object.(*corev1.Event); ok {
			return event
		}
	}
	t.Fatalf("waited 20 s for an event about Service %s", service)
	return nil
}

func TestAddressesAreRequired(t *testing.T) {
	for _, o := range []Options{{}, {Addresses: []string{"node-1"}}} {
		if o.Validate() == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
