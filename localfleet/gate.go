package localfleet

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/localfleet/argocd"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// What a cluster's gate trusts beside the public Sigstore and the public authorities. It is
// not in Git: whoever owns a cluster with a registry or Sigstore of their own brings it.
const (
	gateNamespace = "omnivision-system"
	gateTrust     = "omnivision-gate-trust"
)

// trustOfGates tells each cluster's gate the fleet's Sigstore and certificate authority,
// before the gate first starts.
func (f *Fleet) trustOfGates(ctx context.Context, _ func(string)) error {
	witnesses, err := f.sigstore()
	if err != nil {
		return err
	}
	trusted, err := os.ReadFile(witnesses.TrustedRootFile())
	if err != nil {
		return fmt.Errorf("read the trusted root of the fleet's Sigstore: %w", err)
	}
	authority, err := f.edgeAuthority()
	if err != nil {
		return err
	}
	return f.eachCluster(ctx, func(ctx context.Context, c topology.Cluster) error {
		api, err := f.client(c.Name, argocd.DataManager)
		if err != nil {
			return err
		}
		return api.Apply(ctx, time.Minute,
			&unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": gateNamespace},
			}},
			&unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": gateTrust, "namespace": gateNamespace},
				"data": map[string]any{"trusted_root.json": string(trusted), "ca.crt": string(authority.CertPEM())},
			}},
		)
	})
}
