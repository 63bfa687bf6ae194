package loki

import (
	"fmt"
	"net/http"

	"k8s.io/client-go/rest"
)

// The Service of each cluster's Loki (components/loki).
const (
	Namespace = "logging"
	Service   = "loki"
	Port      = "3100"
)

// InCluster asks a cluster's own Loki from outside of it, by the API server's proxy to Services: whoever may use that
// (get on services/proxy of the Service loki in namespace logging) needs no way into the cluster's network.
func InCluster(config *rest.Config) (*Client, error) {
	address, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("reach Loki by the API server: %w", err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("reach Loki by the API server: %w", err)
	}
	url := address.JoinPath("api", "v1", "namespaces", Namespace, "services", "http:"+Service+":"+Port, "proxy")
	return &Client{URL: url.String(), HTTP: &http.Client{Transport: transport}}, nil
}
