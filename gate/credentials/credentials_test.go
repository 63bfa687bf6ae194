package credentials

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/omnivision/omnivision/gate"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secrets are those of one namespace.
type secrets map[string]*corev1.Secret

func (s secrets) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	if name == "broken" {
		return nil, errors.New("the cache is not there yet")
	}
	if secret := s[name]; secret != nil && namespace == "omnivision" {
		return secret, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
}

func pullSecret(host, user string) *corev1.Secret {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":secret"))
	return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
		corev1.DockerConfigJsonKey: []byte(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)),
	}}
}

// A registry is read with the Secrets that the Pod names in its own namespace, and no others.
func TestPodsOwnSecretsReadARegistry(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ada" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/app:1")
	check(t, err)
	one, err := random.Image(10, 1)
	check(t, err)
	check(t, remote.Write(ref, one, remote.WithAuth(&authn.Basic{Username: "ada", Password: "secret"})))
	known := secrets{"ours": pullSecret(host, "ada"), "others": pullSecret("ghcr.io", "bob"), "no-config": {Data: map[string][]byte{"x": nil}}}
	for label, c := range map[string]struct {
		image gate.Image
		want  bool
	}{
		"the Pod's":               {gate.Image{Namespace: "omnivision", PullSecrets: []string{"others", "ours"}}, true},
		"a missing one beside it": {gate.Image{Namespace: "omnivision", PullSecrets: []string{"gone", "ours"}}, true},
		"one of another kind":     {gate.Image{Namespace: "omnivision", PullSecrets: []string{"no-config", "ours"}}, true},
		"none":                    {gate.Image{Namespace: "omnivision"}, false},
		"for another registry":    {gate.Image{Namespace: "omnivision", PullSecrets: []string{"others"}}, false},
		"of another namespace":    {gate.Image{Namespace: "elsewhere", PullSecrets: []string{"ours"}}, false},
	} {
		options, err := Registry{Secrets: known, Transport: NewTransport()}.Options(t.Context(), c.image)
		check(t, err)
		if _, err := remote.Head(ref, options...); (err == nil) != c.want {
			t.Errorf("%s: %v", label, err)
		}
	}
	if _, err := (Registry{Secrets: known}).Options(t.Context(), gate.Image{Namespace: "omnivision", PullSecrets: []string{"broken"}}); err == nil {
		t.Error("Secrets that cannot be read are no error")
	}
}

// The gate's own identity speaks for its clouds' registries alone.
func TestGooglesTokenIsForArtifactRegistryAlone(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata-Flavor") != "Google" || !strings.HasSuffix(r.URL.Path, "/instance/service-accounts/default/token") {
			http.NotFound(w, r)
			return
		}
		asked++
		fmt.Fprintf(w, `{"access_token":"t%d","expires_in":3600,"token_type":"Bearer"}`, asked)
	}))
	t.Cleanup(server.Close)
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(server.URL, "http://"))
	now := time.Now()
	g := &google{now: func() time.Time { return now }}
	password := func(host string) string {
		registry, err := name.NewRegistry(host)
		check(t, err)
		who, err := authn.Resolve(t.Context(), g, registry)
		check(t, err)
		config, err := authn.Authorization(t.Context(), who)
		check(t, err)
		return config.Username + ":" + config.Password
	}
	for range 2 {
		if got := password("europe-west1-docker.pkg.dev"); got != "oauth2accesstoken:t1" {
			t.Errorf("the credentials are %s", got)
		}
	}
	for _, host := range []string{"ghcr.io", "docker.pkg.dev.evil.com", "evil.com"} {
		if got := password(host); got != ":" {
			t.Errorf("%s gets %s", host, got)
		}
	}
	now = now.Add(59 * time.Minute)
	if got := password("europe-west1-docker.pkg.dev"); got != "oauth2accesstoken:t2" {
		t.Errorf("after an hour the credentials are %s", got)
	}
}

func TestCloudWithoutAnIdentityHasNoCredentials(t *testing.T) {
	keychain, err := Cloud{}.Keychain()
	check(t, err)
	registry, err := name.NewRegistry("123456789012.dkr.ecr.us-west-2.amazonaws.com")
	check(t, err)
	if who, err := authn.Resolve(t.Context(), keychain, registry); err != nil || who != authn.Anonymous {
		t.Errorf("it is %v: %v", who, err)
	}
	if _, err := (Cloud{AWSRole: "not an ARN"}).Keychain(); err == nil {
		t.Error("what is no role is taken")
	}
}
