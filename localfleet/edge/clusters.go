package edge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/omnivision/omnivision/localfleet/edge/loadbalancer"
	"github.com/omnivision/omnivision/localfleet/edge/target"
	"github.com/omnivision/omnivision/localfleet/netns"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfigPoll is how often a kubeconfig is compared with what is in use: a cluster that was made anew
// has another authority, and the old credentials would fail for ever.
const kubeconfigPoll = 2 * time.Second

// clusters are the watches of all clusters; it finds Services for targets.
type clusters struct {
	log *slog.Logger
	mu  sync.Mutex
	all map[string]*clusterWatch
}

// apply starts, replaces and ends watches so that they are those of specs.
func (c *clusters) apply(specs []Cluster) {
	c.mu.Lock()
	next := map[string]*clusterWatch{}
	var ended []*clusterWatch
	for _, spec := range specs {
		if have := c.all[spec.Name]; have != nil && have.spec.equal(spec) {
			next[spec.Name] = have
		}
	}
	for name, watch := range c.all {
		if next[name] != watch {
			ended = append(ended, watch)
		}
	}
	for _, spec := range specs {
		if next[spec.Name] == nil {
			next[spec.Name] = startClusterWatch(spec, c.log)
		}
	}
	c.all = next
	c.mu.Unlock()

	var stopping sync.WaitGroup
	for _, watch := range ended {
		stopping.Go(watch.stop)
	}
	stopping.Wait()
}

func (c *clusters) close() { c.apply(nil) }

// Resolve implements target.Resolver.
func (c *clusters) Resolve(s target.Service) (target.Endpoint, error) {
	c.mu.Lock()
	watch := c.all[s.Cluster]
	c.mu.Unlock()
	if watch == nil {
		return target.Endpoint{}, fmt.Errorf("the edge's configuration has no cluster %q", s.Cluster)
	}
	return watch.resolve(s)
}

func (c *clusters) status() []ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []ClusterStatus
	for _, watch := range c.all {
		out = append(out, watch.status())
	}
	return out
}

// clusterWatch follows the Services of one cluster, for as long as it takes until the cluster is up, and
// through every restart of its API server.
type clusterWatch struct {
	spec   Cluster
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex
	services   listers.ServiceLister // nil until the first list has arrived
	controller *loadbalancer.Controller
	err        error
}

func startClusterWatch(spec Cluster, log *slog.Logger) *clusterWatch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &clusterWatch{spec: spec, log: log.With("cluster", spec.Name), cancel: cancel, done: make(chan struct{}), err: errors.New("not asked yet")}
	go w.run(ctx)
	return w
}

func (w *clusterWatch) stop() {
	w.cancel()
	<-w.done
}

func (w *clusterWatch) run(ctx context.Context) {
	defer close(w.done)
	for ctx.Err() == nil {
		if err := w.follow(ctx); err != nil && ctx.Err() == nil {
			w.failed(err)
		}
		// A missing kubeconfig is looked for again soon: nothing is gained by waiting longer.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// follow watches with one kubeconfig until that changes.
func (w *clusterWatch) follow(ctx context.Context) error {
	data, err := os.ReadFile(w.spec.Kubeconfig)
	if err != nil {
		return fmt.Errorf("the cluster is not up yet: %w", err)
	}
	client, err := w.client(data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(stripManagedFields))
	defer factory.Shutdown()
	defer cancel() // before Shutdown, which waits for the informers

	services := factory.Core().V1().Services()
	informer := services.Informer()
	if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { w.failed(err) }); err != nil {
		return fmt.Errorf("watching Services: %w", err)
	}
	var controller *loadbalancer.Controller
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if w.spec.LoadBalancer != nil {
		if controller, err = loadbalancer.New(client, informer, *w.spec.LoadBalancer, w.log); err != nil {
			return err
		}
		running.Go(func() { controller.Run(ctx) })
	}
	factory.Start(ctx.Done())
	running.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			w.connected(services.Lister(), controller)
			w.log.Info("the cluster's Services are known")
		}
	})
	return w.untilChanged(ctx, data, client)
}

// stripManagedFields keeps out of memory what nobody here reads.
func stripManagedFields(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

func (w *clusterWatch) client(kubeconfig []byte) (kubernetes.Interface, error) {
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", w.spec.Kubeconfig, err)
	}
	config.UserAgent = "omnivision-edge"
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	// The environment may name a proxy for the internet; the fleet's addresses are not there.
	config.Proxy = noProxy
	if w.spec.APINetNS != "" {
		config.Dial = netns.Dialer(w.spec.APINetNS)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", w.spec.Name, err)
	}
	return client, nil
}

// untilChanged returns when the kubeconfig is another one. Meanwhile it keeps the status true: an informer
// resumes a broken watch by itself and tells nobody, neither that it broke nor that it goes on.
func (w *clusterWatch) untilChanged(ctx context.Context, data []byte, client kubernetes.Interface) error {
	have := sha256.Sum256(data)
	tick := time.NewTicker(kubeconfigPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// A file that is gone or half written says nothing about the cluster.
		now, err := os.ReadFile(w.spec.Kubeconfig)
		if err == nil && len(now) > 0 && sha256.Sum256(now) != have {
			w.log.Info("the kubeconfig changed: watching anew")
			return nil
		}
		w.probe(ctx, client)
	}
}

func (w *clusterWatch) probe(ctx context.Context, client kubernetes.Interface) {
	probe, cancel := context.WithTimeout(ctx, kubeconfigPoll)
	defer cancel()
	err := client.Discovery().RESTClient().Get().AbsPath("/livez/ping").Do(probe).Error()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.failed(fmt.Errorf("the API server does not answer: %w", err))
	default:
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.services != nil {
			w.err = nil
		}
	}
}

func (w *clusterWatch) connected(l listers.ServiceLister, c *loadbalancer.Controller) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.services, w.controller, w.err = l, c, nil
}

func (w *clusterWatch) failed(err error) {
	// The ordinary end of a watch is no failure.
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	w.mu.Lock()
	repeated := w.err != nil && w.err.Error() == err.Error()
	w.err = err
	w.mu.Unlock()
	if !repeated {
		w.log.Warn("the cluster does not answer", "error", err.Error())
	}
}

func (w *clusterWatch) resolve(s target.Service) (target.Endpoint, error) {
	w.mu.Lock()
	services, lastErr := w.services, w.err
	w.mu.Unlock()
	if services == nil {
		return target.Endpoint{}, fmt.Errorf("the API server of %s has not answered yet: %w", s.Cluster, lastErr)
	}
	svc, err := services.Services(s.Namespace).Get(s.Name)
	if apierrors.IsNotFound(err) {
		return target.Endpoint{}, errors.New("there is no such Service yet")
	}
	if err != nil {
		return target.Endpoint{}, err
	}
	port, err := servicePort(svc, s.Port)
	if err != nil {
		return target.Endpoint{}, err
	}
	ip := svc.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone {
		return target.Endpoint{}, errors.New("the Service has no cluster IP (it is headless, or of type ExternalName)")
	}
	return target.Endpoint{Address: net.JoinHostPort(ip, strconv.Itoa(int(port))), NetNS: w.spec.NodeNetNS}, nil
}

func servicePort(svc *corev1.Service, want string) (int32, error) {
	var have []string
	for _, p := range svc.Spec.Ports {
		if p.Name == want && want != "" || strconv.Itoa(int(p.Port)) == want {
			return p.Port, nil
		}
		have = append(have, fmt.Sprintf("%s (%d)", p.Name, p.Port))
	}
	return 0, fmt.Errorf("the Service has no port %q, it has %s", want, strings.Join(have, ", "))
}

func (w *clusterWatch) status() ClusterStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := ClusterStatus{Name: w.spec.Name, Connected: w.services != nil && w.err == nil}
	if w.err != nil {
		s.Error = w.err.Error()
	}
	if w.controller != nil {
		s.LoadBalancers = w.controller.Assignments()
	}
	return s
}
