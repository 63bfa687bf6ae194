// Package controlplane runs a cluster's control plane on this machine: etcd,
// API server, controller manager and scheduler, in the cluster's network
// namespace, with an authority of the cluster's own.
package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/netns"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ControlPlane is one cluster's control plane.
type ControlPlane struct {
	Cluster    topology.Cluster
	Supervisor *process.Supervisor
	// Binary returns the path of an engine's program.
	Binary func(name string) (string, error)

	authority *ca.Authority
}

// Open loads the cluster's authority, or makes it.
func Open(cluster topology.Cluster, sup *process.Supervisor, binary func(string) (string, error)) (*ControlPlane, error) {
	authority, err := ca.LoadOrCreate(filepath.Join(cluster.Dir, "pki", "ca"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cluster.Name, err)
	}
	return &ControlPlane{Cluster: cluster, Supervisor: sup, Binary: binary, authority: authority}, nil
}

// CA returns the authority's certificate as PEM.
func (c *ControlPlane) CA() []byte { return c.authority.CertPEM() }

func (c *ControlPlane) pki(name string) string { return filepath.Join(c.Cluster.Dir, "pki", name) }

// Server returns the API server's URL inside the cluster's segment.
func (c *ControlPlane) Server() string {
	return "https://" + net.JoinHostPort(c.Cluster.Address.String(), "6443")
}

// Daemons lists the names of the control plane's daemons in the order in which
// they end.
func Daemons(c topology.Cluster) []string {
	var names []string
	for _, what := range []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"} {
		names = append(names, c.Name+"/"+what)
	}
	return names
}

// Start starts what does not run of the control plane and waits until the API
// server is ready.
func (c *ControlPlane) Start(ctx context.Context) error {
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"certificates", c.writeCertificates},
		{"etcd", c.startEtcd},
		{"API server", c.startAPIServer},
		{"controllers", c.startControllers},
		{"readiness", c.waitReady},
	}
	for _, step := range steps {
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: control plane: %s: %w", c.Cluster.Name, step.name, err)
		}
	}
	return nil
}

func (c *ControlPlane) writeCertificates(context.Context) error {
	requests := map[string]ca.Request{
		"apiserver": {
			CommonName: "kube-apiserver",
			DNSNames: []string{
				"kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc.cluster.local", "localhost",
			},
			IPs: []net.IP{c.Cluster.Address, c.Cluster.ServiceIP, net.IPv4(127, 0, 0, 1)},
		},
		"apiserver-kubelet": {CommonName: "kube-apiserver-kubelet", Organizations: []string{"system:masters"}},
		"front-proxy":       {CommonName: "front-proxy"},
	}
	for name, request := range requests {
		if _, err := c.authority.IssueFiles(c.pki(name+".crt"), c.pki(name+".key"), request); err != nil {
			return err
		}
	}
	if err := ensureServiceAccountKey(c.pki("sa.key")); err != nil {
		return err
	}
	for name, user := range map[string]string{
		"controller-manager": "system:kube-controller-manager",
		"scheduler":          "system:kube-scheduler",
	} {
		config, err := c.Kubeconfig(name, user)
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.pki(name+".kubeconfig"), config, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// ensureServiceAccountKey makes the key that service account tokens are signed
// with.
func ensureServiceAccountKey(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make service account key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// memoryLimits are soft: the collector works harder near them. They are well above
// what each keeps alive, and bound what it takes for a moment while CRDs are installed.
// Below them it collects a quarter as often as by default: with nearly nothing alive yet, a
// start is a fifth collecting garbage otherwise.
var memoryLimits = map[string]string{
	"etcd": "192MiB", "kube-apiserver": "900MiB", "kube-controller-manager": "256MiB", "kube-scheduler": "160MiB",
}

func (c *ControlPlane) start(ctx context.Context, what string, grace time.Duration, args ...string) error {
	path, err := c.Binary(what)
	if err != nil {
		return err
	}
	_, err = c.Supervisor.Start(ctx, process.Spec{
		Name: c.Cluster.Name + "/" + what, Path: path, Args: args, Env: []string{"GOGC=400", "GOMEMLIMIT=" + memoryLimits[what]},
		NetNS: c.Cluster.NetNS, Subgroup: filepath.Join(c.Cluster.Name, "control-plane"), StopGrace: grace,
	})
	return err
}

func (c *ControlPlane) startEtcd(ctx context.Context) error {
	data := filepath.Join(c.Cluster.Dir, "etcd")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	// A rehearsal survives the end of any process, for which the page cache is
	// enough; it need not survive the machine's.
	err := c.start(ctx, "etcd", 5*time.Second,
		"--name=etcd", "--data-dir="+data, "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=etcd=http://127.0.0.1:2380",
	)
	if err != nil {
		return err
	}
	return c.Supervisor.Wait(ctx, c.Cluster.Name+"/etcd", 30*time.Second, func(ctx context.Context) error {
		conn, err := netns.Dialer(c.Cluster.NetNS)(ctx, "tcp", "127.0.0.1:2379")
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (c *ControlPlane) startAPIServer(ctx context.Context) error {
	ip := c.Cluster.Address.String()
	return c.start(ctx, "kube-apiserver", 5*time.Second,
		"--advertise-address="+ip, "--bind-address=0.0.0.0", "--secure-port=6443",
		"--etcd-servers=http://127.0.0.1:2379",
		"--client-ca-file="+c.authority.CertFile(),
		"--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
		"--kubelet-certificate-authority="+c.authority.CertFile(),
		"--kubelet-client-certificate="+c.pki("apiserver-kubelet.crt"),
		"--kubelet-client-key="+c.pki("apiserver-kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--proxy-client-cert-file="+c.pki("front-proxy.crt"), "--proxy-client-key-file="+c.pki("front-proxy.key"),
		"--requestheader-client-ca-file="+c.authority.CertFile(), "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		// No kube-proxy runs beside the API server: it reaches webhooks by their Pods.
		"--enable-aggregator-routing=true",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.pki("sa.key"), "--service-account-signing-key-file="+c.pki("sa.key"),
		"--service-cluster-ip-range="+c.Cluster.ServiceCIDR,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", "--profiling=false",
	)
}

func (c *ControlPlane) startControllers(ctx context.Context) error {
	err := c.start(ctx, "kube-controller-manager", 3*time.Second,
		"--kubeconfig="+c.pki("controller-manager.kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1",
		"--service-account-private-key-file="+c.pki("sa.key"), "--root-ca-file="+c.authority.CertFile(),
		"--cluster-signing-cert-file="+c.authority.CertFile(), "--cluster-signing-key-file="+c.authority.KeyFile(),
		"--use-service-account-credentials=true", "--allocate-node-cidrs=false", "--profiling=false",
		"--concurrent-deployment-syncs=5", "--kube-api-qps=100", "--kube-api-burst=200",
	)
	if err != nil {
		return err
	}
	return c.start(ctx, "kube-scheduler", 3*time.Second,
		"--kubeconfig="+c.pki("scheduler.kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1",
		"--profiling=false",
	)
}

func (c *ControlPlane) waitReady(ctx context.Context) error {
	config, err := c.RESTConfig()
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	return c.Supervisor.Wait(ctx, c.Cluster.Name+"/kube-apiserver", 90*time.Second, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close() //nolint:errcheck // nothing was written
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answered %s", response.Status)
		}
		return nil
	})
}

// ServerCertificate returns a certificate of the cluster's authority, kept in
// the cluster's folder as name, so that a second call returns the same.
func (c *ControlPlane) ServerCertificate(name string, request ca.Request) (cert, key []byte, err error) {
	return c.certificate(name, request)
}

// Kubeconfig returns a kubeconfig, for use inside the cluster's segment, of the
// given user. The client certificate is kept in the cluster's folder as name,
// so that a second call returns the same.
func (c *ControlPlane) Kubeconfig(name, user string, groups ...string) ([]byte, error) {
	return c.kubeconfig(c.Server(), name, user, groups...)
}

// AdminKubeconfig returns an administrator's kubeconfig for use on this
// machine, by way of the loopback port, with one context called as the cluster.
func (c *ControlPlane) AdminKubeconfig() ([]byte, error) {
	server := fmt.Sprintf("https://127.0.0.1:%d", c.Cluster.APIPort)
	return c.kubeconfig(server, "admin", "omnivision-admin", "system:masters")
}

func (c *ControlPlane) kubeconfig(server, name, user string, groups ...string) ([]byte, error) {
	cert, key, err := c.clientCertificate(name, user, groups...)
	if err != nil {
		return nil, err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters[c.Cluster.Name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: c.CA()}
	userName := c.Cluster.Name + "-" + name
	config.AuthInfos[userName] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config.Contexts[c.Cluster.Name] = &clientcmdapi.Context{Cluster: c.Cluster.Name, AuthInfo: userName}
	config.CurrentContext = c.Cluster.Name
	return clientcmd.Write(*config)
}

func (c *ControlPlane) clientCertificate(name, user string, groups ...string) (cert, key []byte, err error) {
	return c.certificate("client-"+name, ca.Request{CommonName: user, Organizations: groups})
}

func (c *ControlPlane) certificate(name string, request ca.Request) (cert, key []byte, err error) {
	certFile, keyFile := c.pki(name+".crt"), c.pki(name+".key")
	if _, err := c.authority.IssueFiles(certFile, keyFile, request); err != nil {
		return nil, nil, err
	}
	if cert, err = os.ReadFile(certFile); err != nil {
		return nil, nil, err
	}
	key, err = os.ReadFile(keyFile)
	return cert, key, err
}

// RESTConfig returns an administrator's client configuration that connects
// inside the cluster's namespace: it works before, and without, the loopback
// port.
func (c *ControlPlane) RESTConfig() (*rest.Config, error) {
	cert, key, err := c.clientCertificate("admin", "omnivision-admin", "system:masters")
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            c.Server(),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.CA(), CertData: cert, KeyData: key},
		Dial:            netns.Dialer(c.Cluster.NetNS),
		QPS:             100,
		Burst:           200,
	}, nil
}
