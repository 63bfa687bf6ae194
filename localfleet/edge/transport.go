package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
)

// Transport is how a program outside the fleet's namespaces speaks to the production names as the fleet
// knows them: every https request goes to the hub, whatever host its URL names, and is verified against the
// fleet's authority. For pushing images (go-containerregistry's remote.WithTransport) and Git over HTTP.
func Transport(hub Hub, pool *x509.CertPool) *http.Transport {
	dial := netns.Dialer(hub.NetNS)
	port := hub.HTTPSPort
	if port == 0 {
		port = 443
	}
	address := net.JoinHostPort(hub.Address.String(), strconv.Itoa(int(port)))
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial(ctx, network, address)
		},
		TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

// DefaultHub is the hub of the fleet's address plan.
func DefaultHub() Hub {
	return Hub{NetNS: "ov-hub", Address: netip.MustParseAddr("10.111.0.1"), HTTPSPort: 443, HTTPPort: 80}
}
