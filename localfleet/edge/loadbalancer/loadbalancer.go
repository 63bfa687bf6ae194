// Package loadbalancer substitutes for a cloud's load balancer controller: it gives Services of type
// LoadBalancer an address, which is that of a node, and kube-proxy does the balancing.
//
// Goal: what waits for a Service's address (Argo CD's health, an ingress controller's published address)
// finds one, as it would on EKS or GKE. Limits: no address of its own is made, so two Services share a
// node's address only while their ports differ; there are no health checks, and no hostname as AWS gives.
package loadbalancer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Substitute is how `status` lists this controller.
const Substitute = "load balancer controller: Services of type LoadBalancer get a node's address"

// Component is the source of the controller's events.
const Component = "omnivision-loadbalancer-substitute"

// nodePorts are those that the node itself serves: kube-proxy would take them away from it.
var nodePorts = []int32{22, 6443, 10250, 10256}

// Options of a Controller.
type Options struct {
	// Addresses to give, in order of preference: those of the cluster's nodes.
	Addresses []string `json:"addresses"`
	// Class is the spec.loadBalancerClass that is served besides none.
	Class string `json:"class,omitempty"`
}

// Validate checks the options.
func (o Options) Validate() error {
	if len(o.Addresses) == 0 {
		return errors.New("loadBalancer: addresses is empty, want the addresses of the cluster's nodes")
	}
	for _, a := range o.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("loadBalancer: address %q is no IP", a)
		}
	}
	return nil
}

// Assignment is what a Service got.
type Assignment struct {
	Service string `json:"service"` // namespace/name
	Address string `json:"address,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Controller keeps the status of a cluster's Services of type LoadBalancer.
type Controller struct {
	client   kubernetes.Interface
	informer cache.SharedIndexInformer
	lister   listers.ServiceLister
	opts     Options
	log      *slog.Logger
	queue    workqueue.TypedRateLimitingInterface[string]

	mu        sync.Mutex
	assigned  []Assignment
	unwritten map[string]string // by Service: why its status could not be written
}

// everything is the queue's only key: an address depends on what the other Services hold.
const everything = "services"

// New makes a controller on a Service informer, which the caller starts.
func New(client kubernetes.Interface, informer cache.SharedIndexInformer, opts Options, log *slog.Logger) (*Controller, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	c := &Controller{
		client: client, informer: informer, lister: listers.NewServiceLister(informer.GetIndexer()), opts: opts, log: log,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second)),
	}
	enqueue := func(any) { c.queue.Add(everything) }
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, DeleteFunc: enqueue, UpdateFunc: func(_, n any) { enqueue(n) },
	})
	if err != nil {
		return nil, fmt.Errorf("watching Services: %w", err)
	}
	return c, nil
}

// Run reconciles until ctx is done.
func (c *Controller) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	if !cache.WaitForCacheSync(ctx.Done(), c.informer.HasSynced) {
		return
	}
	c.queue.Add(everything)
	for {
		key, shutdown := c.queue.Get()
		if shutdown {
			return
		}
		if err := c.reconcile(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("load balancer substitute: trying again", "error", err.Error())
			c.queue.AddRateLimited(key)
		} else {
			c.queue.Forget(key)
		}
		c.queue.Done(key)
	}
}

// Assignments is what was decided for each Service, in order of namespace and name, and why a Service does not have it yet.
func (c *Controller) Assignments() []Assignment {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Clone(c.assigned)
	for i, a := range list {
		if failure := c.unwritten[a.Service]; failure != "" {
			list[i].Error = failure
		}
	}
	return list
}

func (c *Controller) reconcile(ctx context.Context) error {
	all, err := c.lister.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing Services: %w", err)
	}
	var mine []*corev1.Service
	for _, s := range all {
		if c.responsible(s) {
			mine = append(mine, s)
		}
	}
	plan := assign(mine, c.opts.Addresses)
	// Before it is written: whoever finds an address on a Service finds it here as well.
	c.record(mine, plan)
	var failures []error
	for _, s := range mine {
		a := c.assignment(s, plan)
		err := c.write(ctx, s, a)
		c.recordWrite(a.Service, err)
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

func (c *Controller) assignment(s *corev1.Service, plan map[string]string) Assignment {
	key := s.Namespace + "/" + s.Name
	a := Assignment{Service: key, Address: plan[key]}
	if a.Address == "" {
		a.Error = fmt.Sprintf("no address of %v has these ports free: another Service of type LoadBalancer or the node itself holds them", c.opts.Addresses)
	}
	return a
}

// record keeps the plan. What could not be written last time stays an error until it is written.
func (c *Controller) record(services []*corev1.Service, plan map[string]string) {
	var assigned []Assignment
	unwritten := map[string]string{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range services {
		a := c.assignment(s, plan)
		assigned = append(assigned, a)
		if failure := c.unwritten[a.Service]; failure != "" {
			unwritten[a.Service] = failure
		}
	}
	slices.SortFunc(assigned, func(x, y Assignment) int { return cmp.Compare(x.Service, y.Service) })
	c.assigned, c.unwritten = assigned, unwritten
}

func (c *Controller) recordWrite(service string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.unwritten, service)
	if err != nil {
		c.unwritten[service] = err.Error()
	}
}

func (c *Controller) responsible(s *corev1.Service) bool {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil {
		return false
	}
	return s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == c.opts.Class && c.opts.Class != ""
}

// write makes the Service's status say what was assigned, and does nothing when it says so already.
func (c *Controller) write(ctx context.Context, s *corev1.Service, a Assignment) error {
	var want []corev1.LoadBalancerIngress
	if a.Address != "" {
		want = []corev1.LoadBalancerIngress{{IP: a.Address}}
	}
	have := s.Status.LoadBalancer.Ingress
	if len(have) == len(want) && (len(want) == 0 || have[0].IP == want[0].IP && have[0].Hostname == "") {
		return nil
	}
	// With its resourceVersion a Service that changed since is not written to, but looked at again.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.ResourceVersion},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": want}},
	})
	if err != nil {
		return fmt.Errorf("encoding the status of Service %s: %w", a.Service, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = c.client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: Component}, "status")
	if apierrors.IsNotFound(err) {
		return nil // deleted since
	}
	if err != nil {
		return fmt.Errorf("writing the address of Service %s: %w", a.Service, err)
	}
	c.event(ctx, s, a)
	return nil
}

// event tells whoever describes the Service where its address came from.
func (c *Controller) event(ctx context.Context, s *corev1.Service, a Assignment) {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: s.Name + ".", Namespace: s.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion},
		Type:           corev1.EventTypeNormal, Reason: "EnsuredLoadBalancer", Message: "address " + a.Address + " of a node, as a substitute for a cloud's load balancer",
		Source: corev1.EventSource{Component: Component}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	if a.Address == "" {
		event.Type, event.Reason, event.Message = corev1.EventTypeWarning, "NoFreeAddress", a.Error
	}
	if _, err := c.client.CoreV1().Events(s.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil {
		c.log.Info("load balancer substitute: event was not recorded", "service", a.Service, "error", err.Error())
	}
}

type socket struct {
	address  string
	protocol corev1.Protocol
	port     int32
}

// assign chooses an address for each Service. It depends on nothing but its arguments: who holds an address
// keeps it, the older Service first; who has none gets the first one on which its ports are free.
func assign(services []*corev1.Service, addresses []string) map[string]string {
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[socket]bool{}
	for _, a := range addresses {
		for _, p := range nodePorts {
			taken[socket{a, corev1.ProtocolTCP, p}] = true
		}
	}
	take := func(s *corev1.Service, address string) bool {
		for _, p := range s.Spec.Ports {
			if taken[socket{address, p.Protocol, p.Port}] {
				return false
			}
		}
		for _, p := range s.Spec.Ports {
			taken[socket{address, p.Protocol, p.Port}] = true
		}
		return true
	}
	plan := map[string]string{}
	for _, s := range services {
		if i := s.Status.LoadBalancer.Ingress; len(i) == 1 && slices.Contains(addresses, i[0].IP) && take(s, i[0].IP) {
			plan[s.Namespace+"/"+s.Name] = i[0].IP
		}
	}
	for _, s := range services {
		key := s.Namespace + "/" + s.Name
		if plan[key] != "" {
			continue
		}
		for _, a := range addresses {
			if take(s, a) {
				plan[key] = a
				break
			}
		}
	}
	return plan
}
