package target

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestValidateNamesWhatIsWrong(t *testing.T) {
	svc := func(edit func(*Service)) Target {
		s := Service{Cluster: "cluster-aws", Namespace: "argocd", Name: "argocd-server", Port: "https"}
		edit(&s)
		return Target{Service: &s}
	}
	for name, tc := range map[string]struct {
		target Target
		want   string
	}{
		"address":               {Target{Address: "127.0.0.1:3000"}, ""},
		"address in namespace":  {Target{NetNS: "ov-hub", Address: "[::1]:3000"}, ""},
		"service":               {svc(func(*Service) {}), ""},
		"nothing":               {Target{}, "either address or service"},
		"both":                  {Target{Address: "127.0.0.1:1", Service: &Service{}}, "either address or service"},
		"host name":             {Target{Address: "localhost:3000"}, "literal IP"},
		"no port":               {Target{Address: "127.0.0.1"}, "literal IP"},
		"port zero":             {Target{Address: "127.0.0.1:0"}, "port is 0"},
		"service without port":  {svc(func(s *Service) { s.Port = "" }), "port is empty"},
		"service without owner": {svc(func(s *Service) { s.Cluster = "" }), "cluster is empty"},
	} {
		err := tc.target.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

type fixed struct {
	endpoint Endpoint
	err      error
}

func (f fixed) Resolve(Service) (Endpoint, error) { return f.endpoint, f.err }

func TestDialTriesTheNextNodeWhenOneIsGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := &Dialer{Services: fixed{endpoint: Endpoint{Address: l.Addr().String(), NetNS: []string{"ov-no-such-namespace", ""}}}}
	conn, err := d.Dial(context.Background(), Target{Service: &Service{Cluster: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestDialErrorNamesTheServiceAndTheReason(t *testing.T) {
	service := &Service{Cluster: "cluster-aws", Namespace: "argocd", Name: "argocd-server", Port: "https"}
	d := &Dialer{Services: fixed{err: errors.New("the cluster does not answer yet")}}
	_, err := d.Dial(context.Background(), Target{Service: service})
	if err == nil || !strings.Contains(err.Error(), "argocd/argocd-server port https of cluster-aws: the cluster does not answer yet") {
		t.Errorf("got %v", err)
	}
	if _, err := (&Dialer{}).Dial(context.Background(), Target{Service: service}); err == nil || !strings.Contains(err.Error(), "no cluster is configured") {
		t.Errorf("got %v", err)
	}
}
