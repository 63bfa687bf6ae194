// Package login gets a job into the clouds' registries without a long-lived key: the
// job's OIDC token is traded for a role in AWS, or for an identity in Google Cloud,
// whose password for the registry lives for hours at most.
//
// It speaks for registries that are named so by their hosts (ECR, Artifact Registry and
// GitHub's), and only where a role or a token is configured. All others have the
// credentials that Docker and Helm keep.
package login

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Token is an OIDC token of the running job for one audience.
type Token func(ctx context.Context, audience string) (string, error)

// Options say which identities a job may take. The zero value takes none.
type Options struct {
	// AWSRole is the ARN of the role that may push to ECR.
	AWSRole string
	// GCPProvider is the full name of the provider of a workload identity pool:
	// projects/123/locations/global/workloadIdentityPools/POOL/providers/PROVIDER.
	GCPProvider string
	// GCPServiceAccount is the account to speak for; empty speaks for the pool's
	// identity itself.
	GCPServiceAccount string
	// GitHubToken is the job's own, which may push to GitHub's registry.
	GitHubToken string
	// Session names the job in the cloud's audit log, such as a run's number.
	Session string
	Token   Token
	// Fallback has the credentials of all other registries; nil is Docker's.
	Fallback authn.Keychain

	// The clouds' addresses and the way there; nil and empty are the real ones.
	HTTP                                     *http.Client
	AWSAddress, GCPSTSAddress, GCPIAMAddress string
	Now                                      func() time.Time
}

// early is how long before its end a password is replaced: an upload that begins with
// it has this long to be accepted.
const early = 5 * time.Minute

// wait is how long a password may take: keychains are also asked without a context.
const wait = time.Minute

// Keychain has the credentials of every registry. It is safe for concurrent use.
type Keychain struct {
	options Options
	google  source

	mu     sync.Mutex
	amazon map[string]source // by region
}

var _ authn.ContextKeychain = (*Keychain)(nil)

// New checks the options.
func New(o Options) (*Keychain, error) {
	if o.Fallback == nil {
		o.Fallback = authn.DefaultKeychain
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Timeout: wait}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if (o.AWSRole != "" || o.GCPProvider != "") && o.Token == nil {
		return nil, errors.New("a role without a token to take it with")
	}
	k := &Keychain{options: o, amazon: map[string]source{}}
	if err := checkRole(o.AWSRole); err != nil {
		return nil, err
	}
	google, err := newGoogle(o)
	if err != nil {
		return nil, err
	}
	k.google = google
	return k, nil
}

// Resolve implements authn.Keychain.
func (k *Keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain. Nothing is asked before the
// credentials are used.
func (k *Keychain) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	if from := k.of(r.RegistryStr()); from != nil {
		return lazy{from}, nil
	}
	return authn.Resolve(ctx, k.options.Fallback, r)
}

// Password is that of a cloud's registry; false leaves a host to the fallback.
func (k *Keychain) Password(ctx context.Context, host string) (authn.AuthConfig, bool, error) {
	from := k.of(host)
	if from == nil {
		return authn.AuthConfig{}, false, nil
	}
	config, err := lazy{from}.AuthorizationContext(ctx)
	return *config, true, err
}

// of is where the password of a host comes from, if it is a cloud's.
func (k *Keychain) of(host string) source {
	if region, ok := amazonRegion(host); ok && k.options.AWSRole != "" {
		return k.amazonIn(region)
	}
	switch {
	case isGoogle(host):
		return k.google
	case host == gitHubRegistry && k.options.GitHubToken != "":
		return gitHub(k.options.GitHubToken)
	}
	return nil
}

// gitHubRegistry takes the job's own token, with any user's name:
// https://docs.github.com/en/packages/working-with-a-github-packages-registry/working-with-the-container-registry.
const gitHubRegistry = "ghcr.io"

type gitHub string

func (g gitHub) get(context.Context) (authn.AuthConfig, error) {
	return authn.AuthConfig{Username: "x-access-token", Password: string(g)}, nil
}

func (k *Keychain) amazonIn(region string) source {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.amazon[region] == nil {
		k.amazon[region] = &kept{now: k.options.Now, fetch: amazon{Options: k.options, region: region}.password}
	}
	return k.amazon[region]
}

// source is where a password comes from.
type source interface {
	get(ctx context.Context) (authn.AuthConfig, error)
}

// kept is a password that is asked for once until shortly before its end.
type kept struct {
	now   func() time.Time
	fetch func(ctx context.Context) (authn.AuthConfig, time.Time, error)

	mu   sync.Mutex
	have authn.AuthConfig
	ends time.Time
}

func (k *kept) get(ctx context.Context) (authn.AuthConfig, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now().Add(early).Before(k.ends) {
		return k.have, nil
	}
	have, ends, err := k.fetch(ctx)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	k.have, k.ends = have, ends
	return have, nil
}

// lazy asks each time that credentials are needed: a build may outlive a password.
type lazy struct{ source source }

// Authorization implements authn.Authenticator.
func (l lazy) Authorization() (*authn.AuthConfig, error) {
	return l.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator.
func (l lazy) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errors.New("the cloud took longer than a minute"))
	defer cancel()
	config, err := l.source.get(ctx)
	return &config, err
}
