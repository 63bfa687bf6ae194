package credentials

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/compute/metadata"
	"github.com/google/go-containerregistry/pkg/authn"
)

// google takes tokens of the metadata server for Artifact Registry:
// https://cloud.google.com/kubernetes-engine/docs/concepts/workload-identity#metadata_server.
type google struct {
	now func() time.Time

	mu    sync.Mutex
	token string
	ends  time.Time
}

// early is how long before its end a token is replaced.
const early = 2 * time.Minute

// Resolve implements authn.Keychain.
func (g *google) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return g.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain.
func (g *google) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	if !strings.HasSuffix(r.RegistryStr(), "-docker.pkg.dev") {
		return authn.Anonymous, nil
	}
	token, err := g.get(ctx)
	if err != nil {
		return nil, err
	}
	return authn.FromConfig(authn.AuthConfig{Username: "oauth2accesstoken", Password: token}), nil
}

func (g *google) get(ctx context.Context) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.token != "" && g.now().Before(g.ends.Add(-early)) {
		return g.token, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	text, err := metadata.GetWithContext(ctx, "instance/service-accounts/default/token")
	if err != nil {
		return "", fmt.Errorf("asking the metadata server for the gate's identity: %w", err)
	}
	var answer struct {
		Token   string `json:"access_token"`
		Seconds int    `json:"expires_in"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Token == "" {
		return "", fmt.Errorf("asking the metadata server for the gate's identity: the answer holds no token")
	}
	g.token, g.ends = answer.Token, g.now().Add(time.Duration(answer.Seconds)*time.Second)
	return g.token, nil
}
