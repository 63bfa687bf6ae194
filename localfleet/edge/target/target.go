// Package target says where a connection of the edge leads and opens it: to a literal address inside a
// network namespace, or to a Service of a cluster, by its cluster IP, from inside one of its nodes.
//
// Goal: forwards and the front name a destination that may not exist yet, may move, or may lose the node
// it was reached through. Limits: TCP only, and a Service needs a cluster IP (a headless one has no
// address that kube-proxy balances).
package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
)

// attemptTimeout bounds one attempt through one node: a node that was killed swallows packets, and the
// next one must still get its turn before the client gives up.
const attemptTimeout = 2 * time.Second

// Target is a destination: either Address or Service is set.
type Target struct {
	// NetNS is the network namespace that Address is dialled in; empty is the machine's own.
	NetNS string `json:"netns,omitempty"`
	// Address is a literal IP and port.
	Address string `json:"address,omitempty"`
	// Service is resolved by its cluster's API, and followed when it changes.
	Service *Service `json:"service,omitempty"`
	// TLS, when set, makes an HTTP client of this target speak TLS to it.
	TLS *TLS `json:"tls,omitempty"`
}

// TLS is how a server that speaks TLS is verified.
type TLS struct {
	// ServerName is the name sent and verified.
	ServerName string `json:"serverName,omitempty"`
	// CAFile holds the authority; empty means those of the machine.
	CAFile string `json:"caFile,omitempty"`
	// SkipVerify is for a server with a certificate that it signed itself (Argo CD's own): the path to it
	// is a veth pair of this machine, and only root can stand between.
	SkipVerify bool `json:"skipVerify,omitempty"`
}

// Service names a port of a Kubernetes Service.
type Service struct {
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Port is the port's name or number.
	Port string `json:"port"`
}

func (s Service) String() string {
	return fmt.Sprintf("Service %s/%s port %s of %s", s.Namespace, s.Name, s.Port, s.Cluster)
}

func (t Target) String() string {
	switch {
	case t.Service != nil:
		return t.Service.String()
	case t.NetNS != "":
		return t.Address + " in network namespace " + t.NetNS
	default:
		return t.Address
	}
}

// Equal says whether two targets are the same destination.
func (t Target) Equal(o Target) bool {
	if (t.Service == nil) != (o.Service == nil) {
		return false
	}
	if (t.TLS == nil) != (o.TLS == nil) || t.TLS != nil && *t.TLS != *o.TLS {
		return false
	}
	return t.NetNS == o.NetNS && t.Address == o.Address && (t.Service == nil || *t.Service == *o.Service)
}

// Validate checks the form of the target; whether it exists is seen when it is dialled.
func (t Target) Validate() error {
	if (t.Address == "") == (t.Service == nil) {
		return errors.New("a target needs either address or service")
	}
	if t.TLS != nil && !t.TLS.SkipVerify && t.TLS.ServerName == "" {
		return fmt.Errorf("target %s: tls needs serverName, the name to verify the certificate for", t)
	}
	if t.Service == nil {
		ap, err := netip.ParseAddrPort(t.Address)
		if err != nil {
			return fmt.Errorf("target address %q: want a literal IP and port such as 127.0.0.1:3000 (a name would be looked up outside the namespace)", t.Address)
		}
		if ap.Port() == 0 {
			return fmt.Errorf("target address %q: the port is 0", t.Address)
		}
		return nil
	}
	if t.NetNS != "" {
		return fmt.Errorf("target %s: netns goes with address; the namespaces of a Service are its cluster's nodes", t.Service)
	}
	for _, field := range [][2]string{{"cluster", t.Service.Cluster}, {"namespace", t.Service.Namespace}, {"name", t.Service.Name}, {"port", t.Service.Port}} {
		if field[1] == "" {
			return fmt.Errorf("target service: %s is empty", field[0])
		}
	}
	return nil
}

// Endpoint is what a Service resolves to: a cluster IP and port, and the network namespaces of the nodes
// that it can be reached from, in the order to try.
type Endpoint struct {
	Address string
	NetNS   []string
}

// Resolver finds a Service's Endpoint as its cluster shows it now.
type Resolver interface {
	Resolve(Service) (Endpoint, error)
}

// Dialer opens connections to targets.
type Dialer struct {
	// Services resolves targets that are Services. Without one they fail.
	Services Resolver
}

// Dial connects to t.
func (d *Dialer) Dial(ctx context.Context, t Target) (net.Conn, error) {
	endpoint, err := d.resolve(t)
	if err != nil {
		return nil, err
	}
	var failures []string
	for i, ns := range endpoint.NetNS {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(endpoint.NetNS)-1 {
			attempt, cancel = context.WithTimeout(ctx, attemptTimeout)
		}
		conn, err := netns.Dialer(ns)(attempt, "tcp", endpoint.Address)
		cancel()
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err.Error())
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connecting to %s: %s", t, strings.Join(failures, "; then "))
}

func (d *Dialer) resolve(t Target) (Endpoint, error) {
	if t.Service == nil {
		return Endpoint{Address: t.Address, NetNS: []string{t.NetNS}}, nil
	}
	if d.Services == nil {
		return Endpoint{}, fmt.Errorf("connecting to %s: no cluster is configured", t)
	}
	endpoint, err := d.Services.Resolve(*t.Service)
	if err != nil {
		return Endpoint{}, fmt.Errorf("connecting to %s: %w", t, err)
	}
	if len(endpoint.NetNS) == 0 {
		return Endpoint{}, fmt.Errorf("connecting to %s: none of the cluster's nodes has a network namespace in the edge's configuration", t)
	}
	return endpoint, nil
}
