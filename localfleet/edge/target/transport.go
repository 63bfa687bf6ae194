package target

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// Scheme is that of a URL for t.
func (t Target) Scheme() string {
	if t.TLS != nil {
		return "https"
	}
	return "http"
}

// Transport returns an HTTP transport whose every connection leads to t, whatever host the URL names.
func (d *Dialer) Transport(t Target) (*http.Transport, error) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return d.Dial(ctx, t)
		},
		// What the server sends is passed on as it is: a blob that was unpacked on the way would no longer
		// have its digest.
		DisableCompression: true,
		// A Service is asked anew by each request: a connection kept open would stay with the Pod, or the
		// Service, that was there when it was opened.
		DisableKeepAlives:     t.Service != nil,
		MaxIdleConnsPerHost:   32,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
	if t.TLS == nil {
		return transport, nil
	}
	transport.TLSClientConfig = &tls.Config{ServerName: t.TLS.ServerName, InsecureSkipVerify: t.TLS.SkipVerify} //nolint:gosec // see TLS.SkipVerify
	if t.TLS.CAFile != "" {
		pemData, err := os.ReadFile(t.TLS.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the authority of %s: %w", t, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pemData) {
			return nil, fmt.Errorf("reading the authority of %s: %s holds no certificate", t, t.TLS.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return transport, nil
}
