// Package apiservertest starts a real etcd and API server for a test, on loopback.
package apiservertest

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/process"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Server is a running API server.
type Server struct {
	Config     *rest.Config
	Kubeconfig string // path
	sup        *process.Supervisor
	api        process.Spec
	addr       string
}

// Start starts both, or skips the test when their programs are not built. They end with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	etcd, apiserver := program(t, "etcd"), program(t, "kube-apiserver")
	dir := t.TempDir()
	etcdClient, etcdPeer, apiAddr := freeport.Address(t), freeport.Address(t), freeport.Address(t)
	authority, err := ca.LoadOrCreate(filepath.Join(dir, "ca"))
	check(t, err)
	crt, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	_, err = authority.IssueFiles(crt, key, ca.Request{CommonName: "kube-apiserver", DNSNames: []string{"kubernetes", "localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	check(t, err)
	adminCert, adminKey, err := authority.Issue(ca.Request{CommonName: "admin", Organizations: []string{"system:masters"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	check(t, err)

	_, port, err := net.SplitHostPort(apiAddr)
	check(t, err)
	s := &Server{sup: &process.Supervisor{Dir: filepath.Join(dir, "sup")}, addr: apiAddr}
	s.api = process.Spec{Name: "kube-apiserver", Path: apiserver, StopGrace: time.Second, Args: []string{
		"--etcd-servers=http://" + etcdClient, "--bind-address=127.0.0.1", "--secure-port=" + port, "--cert-dir=" + dir,
		"--tls-cert-file=" + crt, "--tls-private-key-file=" + key, "--client-ca-file=" + authority.CertFile(),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + crt, "--service-account-signing-key-file=" + key,
		"--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none",
	}}
	ctx := context.Background()
	t.Cleanup(func() {
		for _, name := range []string{"kube-apiserver", "etcd"} {
			if err := s.sup.Stop(ctx, name); err != nil {
				t.Error(err)
			}
		}
	})
	_, err = s.sup.Start(ctx, process.Spec{Name: "etcd", Path: etcd, StopGrace: time.Second, Args: []string{
		"--data-dir=" + filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--logger=zap", "--log-level=error",
		"--listen-client-urls=http://" + etcdClient, "--advertise-client-urls=http://" + etcdClient,
		"--listen-peer-urls=http://" + etcdPeer, "--initial-advertise-peer-urls=http://" + etcdPeer, "--initial-cluster=default=http://" + etcdPeer,
	}})
	check(t, err)
	s.Config = &rest.Config{Host: "https://" + apiAddr, TLSClientConfig: rest.TLSClientConfig{CAData: authority.CertPEM(), CertData: adminCert, KeyData: adminKey}}
	s.Kubeconfig = filepath.Join(dir, "kubeconfig")
	check(t, clientcmd.WriteToFile(clientcmdapi.Config{
		CurrentContext: "test",
		Contexts:       map[string]*clientcmdapi.Context{"test": {Cluster: "test", AuthInfo: "admin"}},
		Clusters:       map[string]*clientcmdapi.Cluster{"test": {Server: s.Config.Host, CertificateAuthorityData: authority.CertPEM()}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"admin": {ClientCertificateData: adminCert, ClientKeyData: adminKey}},
	}, s.Kubeconfig))
	s.StartAPI(t)
	return s
}

// StartAPI starts the API server, again after StopAPI, and waits until it is ready.
func (s *Server) StartAPI(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	_, err := s.sup.Start(ctx, s.api)
	check(t, err)
	client, err := rest.HTTPClientFor(s.Config)
	check(t, err)
	defer client.CloseIdleConnections()
	check(t, s.sup.Wait(ctx, s.api.Name, 2*time.Minute, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	}))
}

// StopAPI stops the API server and keeps etcd.
func (s *Server) StopAPI(t testing.TB) {
	t.Helper()
	check(t, s.sup.Stop(context.Background(), s.api.Name))
}

// program finds an engine. Where its folder is named, as `make test` does, it must be there.
func program(t testing.TB, name string) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if named {
			t.Fatalf("%s is not in OMNIVISION_ENGINES: %v", name, err)
		}
		t.Skipf("%s is not built: run 'make engines'", name)
	}
	return path
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
