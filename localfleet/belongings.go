package localfleet

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/omnivision/omnivision/localfleet/argocd"
	"github.com/omnivision/omnivision/localfleet/gitea"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// What gate and steward of a cluster need and Git does not hold: whoever owns a cluster
// brings it. The trust is for a forge, registry or Sigstore of one's own.
const (
	systemNamespace = "omnivision-system"
	trustName       = "omnivision-trust"
	stewardToken    = "omnivision-steward-forge"
)

// stewardUser opens the stewards' pull requests and reports to the forge.
const stewardUser = "omnivision-steward"

// belongings tells each cluster the fleet's Sigstore and certificate authority, and brings
// its steward the token for the forge, before either first starts.
func (f *Fleet) belongings(ctx context.Context, _ func(string)) error {
	token, err := f.stewardAccount(ctx)
	if err != nil {
		return err
	}
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
				"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": systemNamespace},
			}},
			&unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": trustName, "namespace": systemNamespace},
				"data": map[string]any{"trusted_root.json": string(trusted), "ca.crt": string(authority.CertPEM())},
			}},
			&unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": stewardToken, "namespace": systemNamespace},
				"stringData": map[string]any{"token": token},
			}},
		)
	})
}

// stewardAccount makes who the stewards are at the forge, and returns their token: it may
// write branches, pull requests and statuses, and main takes none of its pushes.
func (f *Fleet) stewardAccount(ctx context.Context) (string, error) {
	if err := f.forge.EnsureUser(ctx, stewardUser); err != nil {
		return "", err
	}
	for _, repo := range f.ownRepositories() {
		if err := f.forge.EnsureWriter(ctx, repo, stewardUser); err != nil {
			return "", err
		}
	}
	return f.forge.EnsureToken(ctx, gitea.Token{Name: "steward", User: stewardUser, Scopes: []string{"read:user", "write:issue", "write:repository"}})
}
