package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	inprocess "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
	"github.com/omnivision/omnivision/localfleet/edge/forward"
	"github.com/omnivision/omnivision/localfleet/edge/loadbalancer"
	"github.com/omnivision/omnivision/localfleet/edge/target"
	"github.com/omnivision/omnivision/localfleet/netns"
)

// namespaces makes a hub and a node joined by a cable, as the fleet does, under names of their own.
func namespaces(t *testing.T) (hub, node string, make func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces and a veth pair")
	}
	hub, node = fmt.Sprintf("ovt%d-hub", os.Getpid()), fmt.Sprintf("ovt%d-node", os.Getpid())
	t.Cleanup(func() {
		for _, ns := range []string{node, hub} {
			if err := netns.Delete(ns); err != nil {
				t.Error(err)
			}
		}
	})
	if err := netns.Ensure(node); err != nil {
		t.Skipf("this machine makes no network namespaces: %v", err)
	}
	return hub, node, func() {
		t.Helper()
		for _, step := range []func() error{
			func() error { return netns.Ensure(hub) },
			func() error { return netns.EnsureBridge(hub, "br0", "10.231.0.1/24") },
			func() error {
				return netns.EnsureCable(netns.Cable{HubNS: hub, Bridge: "br0", Port: "port0", NodeNS: node, Device: "eth0", Address: "10.231.0.2/24", Gateway: net.IPv4(10, 231, 0, 1)})
			},
		} {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func serveIn(t *testing.T, ns, address string, h http.Handler) {
	t.Helper()
	l, err := netns.Listen(context.Background(), ns, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
}

func TestFleetOfNamespaces(t *testing.T) {
	hub, node, build := namespaces(t)
	c := baseConfig(t)
	c.Hub = Hub{NetNS: hub, Address: netip.MustParseAddr("10.231.0.1")}
	c.Routes = productionRoutes(target.Target{NetNS: hub, Address: "127.0.0.1:3000"}, target.Target{NetNS: hub, Address: "127.0.0.1:5000"})
	page := loopback(freeport.Port(t))
	c.Forwards = []forward.Spec{
		{Name: "page", Kind: forward.HTTP, Listen: page, Host: "ui.example", Target: target.Target{NetNS: node, Address: "10.231.0.2:8080"}},
		{Name: "hook", Kind: forward.TCP, Listen: "10.231.0.1:8443", ListenNetNS: hub, Target: target.Target{NetNS: node, Address: "127.0.0.1:8081"}},
	}
	// The edge is first: the hub's namespace does not exist yet.
	startEdge(t, c)
	eventually(t, "the edge says what it waits for", func() error {
		err := Ready(context.Background(), c.StateDir)
		if err == nil || !strings.Contains(err.Error(), hub) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	build()
	waitReady(t, c)

	serveIn(t, hub, "127.0.0.1:3000", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "forge ", r.Host) }))
	serveIn(t, hub, "127.0.0.1:5000", inprocess.New(inprocess.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	serveIn(t, node, "10.231.0.2:8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "page ", r.Host) }))
	serveIn(t, node, "127.0.0.1:8081", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hook") }))

	authority, err := ca.LoadOrCreate(c.CADir)
	if err != nil {
		t.Fatal(err)
	}
	fromHub := Transport(c.Hub, authority.Pool())
	defer fromHub.CloseIdleConnections()
	fromNode := Transport(Hub{NetNS: node, Address: c.Hub.Address}, authority.Pool())
	defer fromNode.CloseIdleConnections()

	// The pipeline, at the hub, pushes; a node pulls and may not push.
	image, err := name.ParseReference("123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:v1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(image, img, remote.WithTransport(fromHub)); err != nil {
		t.Fatalf("push from the hub: %v", err)
	}
	if _, err := remote.Head(image, remote.WithTransport(fromNode)); err != nil {
		t.Errorf("pull from a node: %v", err)
	}
	other, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(image, other, remote.WithTransport(fromNode)); err == nil || !strings.Contains(err.Error(), "DENIED") {
		t.Errorf("push from a node: %v", err)
	}
	get := func(transport *http.Transport, url string) (string, error) {
		resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get(url)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if body, err := get(fromNode, "https://github.com/omnivision/omnivision-gitops.git"); err != nil || body != "forge github.com" {
		t.Errorf("forge from a node: %q %v", body, err)
	}
	// From the machine: the page by loopback, and the hub not at all.
	if body, err := get(&http.Transport{}, "http://"+page+"/"); err != nil || body != "page ui.example" {
		t.Errorf("page from the machine: %q %v", body, err)
	}
	// Something else may answer for any address there, so it is the front's certificate that must be missing.
	outside := Transport(Hub{Address: c.Hub.Address}, authority.Pool())
	if body, err := get(outside, "https://github.com/"); err == nil {
		t.Errorf("the front is reachable from the machine's network: %q", body)
	}
	// From the hub to the cluster.
	hook := &http.Transport{DialContext: netns.Dialer(hub), DisableKeepAlives: true}
	if body, err := get(hook, "http://10.231.0.1:8443/"); err != nil || body != "hook" {
		t.Errorf("hook from the hub: %q %v", body, err)
	}
}

// A cluster comes up after the edge, its Service is found by name and reached by its cluster IP from a
// node's namespace, and followed when it is made anew with another address.
func TestServiceOfARealClusterIsFollowed(t *testing.T) {
	_, node, _ := namespaces(t)
	server := apiservertest.Start(t)
	client, err := kubernetes.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	c := baseConfig(t)
	kubeconfig := filepath.Join(filepath.Dir(c.StateDir), "kubeconfig")
	listen := loopback(freeport.Port(t))
	c.Clusters = []Cluster{{Name: "cluster-aws", Kubeconfig: kubeconfig, NodeNetNS: []string{"ov-no-such-node", node}, LoadBalancer: &loadbalancer.Options{Addresses: []string{"10.111.1.11"}}}}
	c.Forwards = []forward.Spec{{Name: "argocd", Kind: forward.HTTP, Listen: listen, Target: target.Target{Service: &target.Service{Cluster: "cluster-aws", Namespace: "default", Name: "argocd-server", Port: "http"}}}}
	startEdge(t, c)
	waitReady(t, c)
	get := func() (string, error) {
		resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + listen + "/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if body, err := get(); err != nil || !strings.Contains(body, "not up yet") {
		t.Errorf("before the cluster is up: %q %v", body, err)
	}
	data, err := os.ReadFile(server.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kubeconfig, data, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is known", func() error {
		if st := status(t, c); !st.Clusters[0].Connected {
			return errors.New(st.Clusters[0].Error)
		}
		return nil
	})
	ctx := context.Background()
	for _, round := range []string{"first", "second"} {
		svc, err := client.CoreV1().Services("default").Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "argocd-server"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "https", Port: 443}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// kube-proxy's part: the cluster IP answers inside the node's namespace.
		if err := netns.EnsureAddress(node, "lo", svc.Spec.ClusterIP+"/32"); err != nil {
			t.Fatal(err)
		}
		serveIn(t, node, svc.Spec.ClusterIP+":80", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, round) }))
		eventually(t, "the "+round+" Service answers", func() error {
			body, err := get()
			if err == nil && body != round {
				err = errors.New(body)
			}
			return err
		})
		eventually(t, "it has an address", func() error {
			s, err := client.CoreV1().Services("default").Get(ctx, "argocd-server", metav1.GetOptions{})
			if err == nil && (len(s.Status.LoadBalancer.Ingress) != 1 || s.Status.LoadBalancer.Ingress[0].IP != "10.111.1.11") {
				err = fmt.Errorf("%+v", s.Status.LoadBalancer)
			}
			return err
		})
		if err := client.CoreV1().Services("default").Delete(ctx, "argocd-server", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its absence is noticed", func() error {
			body, err := get()
			if err == nil && !strings.Contains(body, "no such Service") {
				err = errors.New(body)
			}
			return err
		})
	}
	// The API server goes and comes back: the edge says so, and recovers without a hand.
	server.StopAPI(t)
	eventually(t, "the loss is shown", func() error {
		if st := status(t, c); st.Clusters[0].Connected {
			return errors.New("still connected")
		}
		return nil
	})
	if err := Ready(ctx, c.StateDir); err != nil {
		t.Errorf("a cluster's trouble is not the edge's: %v", err)
	}
	server.StartAPI(t)
	eventually(t, "it is connected again", func() error {
		if st := status(t, c); !st.Clusters[0].Connected {
			return errors.New(st.Clusters[0].Error)
		}
		return nil
	})
}
