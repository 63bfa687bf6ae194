// Package credentials lets the gate read what the kubelet may pull: with the Pod's
// imagePullSecrets, and where those say nothing of a registry, with the gate's own cloud
// identity for ECR and Artifact Registry, or without any.
//
// The node's own identity, by which a kubelet pulls from its cloud, is not for Pods to take. The
// gate's service account needs one of its own that may read the same repositories: IRSA in
// AWS, workload identity in Google Cloud (docs/gate.md).
package credentials

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/authn/kubernetes"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/omnivision/omnivision/conveyor/login"
	"github.com/omnivision/omnivision/gate"
)

// Secrets has the Secrets of application namespaces. It is asked when something is
// verified, not for each Pod, so it may ask the API server by name, which needs no right
// to list them.
type Secrets interface {
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// FromAPI asks the API server.
type FromAPI struct{ Client client.CoreV1Interface }

// Secret implements Secrets.
func (f FromAPI) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return f.Client.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

// Registry implements judge.Registry.
type Registry struct {
	// Secrets may be nil: no Secret is looked at.
	Secrets Secrets
	// Cloud has the credentials of what no Secret speaks for; nil has none.
	Cloud authn.Keychain
	// Transport carries the requests; nil is NewTransport's.
	Transport http.RoundTripper
}

// NewTransport gives up on a registry that does not answer early enough to say so within
// a webhook's time. Proxies of the environment are used.
func NewTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.TLSHandshakeTimeout, t.ResponseHeaderTimeout = 3*time.Second, 5*time.Second
	t.MaxIdleConnsPerHost, t.MaxConnsPerHost = 16, 32
	return t
}

// once does not try again: the next Pod does, and somebody waits.
var once = remote.Backoff{Steps: 1}

// Options implements judge.Registry. A Secret that is missing or not for pulling is passed
// over, as the kubelet does.
func (r Registry) Options(ctx context.Context, image gate.Image) ([]remote.Option, error) {
	options := []remote.Option{remote.WithRetryBackoff(once), remote.WithUserAgent("omnivision-gate")}
	if r.Transport != nil {
		options = append(options, remote.WithTransport(r.Transport))
	}
	keychain, err := r.keychain(ctx, image)
	if err != nil {
		return nil, err
	}
	return append(options, remote.WithAuthFromKeychain(keychain)), nil
}

func (r Registry) keychain(ctx context.Context, image gate.Image) (authn.Keychain, error) {
	cloud := r.Cloud
	if cloud == nil {
		cloud = nobody{}
	}
	if r.Secrets == nil || len(image.PullSecrets) == 0 {
		return cloud, nil
	}
	var secrets []corev1.Secret
	for _, name := range image.PullSecrets {
		secret, err := r.Secrets.Secret(ctx, image.Namespace, name)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the Secret %s of %s: %w", name, image.Namespace, err)
		}
		secrets = append(secrets, *secret)
	}
	pull, err := kubernetes.NewFromPullSecrets(ctx, secrets)
	if err != nil {
		return nil, fmt.Errorf("reading the imagePullSecrets of %s: one of them is no Docker configuration", image.Namespace)
	}
	return authn.NewMultiKeychain(pull, cloud), nil
}

// nobody has no credentials.
type nobody struct{}

// Resolve implements authn.Keychain.
func (nobody) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// Cloud is the identity that the gate's service account has in a cloud.
type Cloud struct {
	// AWSRole and AWSTokenFile are what EKS gives a Pod of an annotated service account as
	// AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE.
	AWSRole, AWSTokenFile string
	// Google asks the metadata server, which GKE answers for the service account.
	Google bool
}

// Keychain returns the credentials of the clouds' registries.
func (c Cloud) Keychain() (authn.Keychain, error) {
	var chain []authn.Keychain
	if c.AWSRole != "" {
		amazon, err := login.New(login.Options{
			AWSRole: c.AWSRole, Session: "gate", Fallback: nobody{},
			// The kubelet replaces the token in the file before it ends.
			Token: func(context.Context, string) (string, error) {
				token, err := os.ReadFile(c.AWSTokenFile)
				if err != nil {
					return "", fmt.Errorf("reading the service account's token for AWS: %w", err)
				}
				return string(token), nil
			},
		})
		if err != nil {
			return nil, fmt.Errorf("using the gate's identity in AWS: %w", err)
		}
		chain = append(chain, amazon)
	}
	if c.Google {
		chain = append(chain, &google{now: time.Now})
	}
	if len(chain) == 0 {
		return nobody{}, nil
	}
	return authn.NewMultiKeychain(chain...), nil
}
