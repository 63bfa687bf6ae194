package login

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

const (
	amazonRegistry = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
	googleRegistry = "europe-west1-docker.pkg.dev"
	role           = "arn:aws:iam::123456789012:role/conveyor"
	provider       = "projects/123/locations/global/workloadIdentityPools/forge/providers/github"
	account        = "conveyor@omnivision.iam.gserviceaccount.com"
)

// clouds answers as STS, ECR, Google's STS and IAM Credentials are documented to.
type clouds struct {
	*httptest.Server
	t    *testing.T
	now  time.Time
	life time.Duration

	mu     sync.Mutex
	asked  map[string]int
	refuse bool
}

func newClouds(t *testing.T) *clouds {
	c := &clouds{t: t, now: time.Now(), life: 12 * time.Hour, asked: map[string]int{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *clouds) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.URL.Path == "/v1/token":
		c.googleSTS(w, body)
	case strings.HasPrefix(r.URL.Path, "/v1/projects/-/serviceAccounts/"):
		c.googleIAM(w, r, body)
	case strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".GetAuthorizationToken"):
		c.ecr(w, r)
	case strings.Contains(string(body), "Action=AssumeRoleWithWebIdentity"):
		c.amazonSTS(w, r, string(body))
	default:
		c.t.Errorf("asked for %s %s: %s", r.Method, r.URL, body)
		w.WriteHeader(http.StatusNotFound)
	}
}

// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
func (c *clouds) amazonSTS(w http.ResponseWriter, r *http.Request, body string) {
	c.asked["sts"]++
	w.Header().Set("Content-Type", "text/xml")
	if c.refuse {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error><RequestId>1</RequestId></ErrorResponse>`)
		return
	}
	for _, want := range []string{"WebIdentityToken=job-for-sts.amazonaws.com", "RoleSessionName=omnivision-42-1", "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fconveyor"} {
		if !strings.Contains(body, want) {
			c.t.Errorf("the role is asked for with %s, which lacks %s", body, want)
		}
	}
	if r.Header.Get("Authorization") != "" {
		c.t.Error("the role is asked for with a signature, and nobody has a key")
	}
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
  <SubjectFromWebIdentityToken>repo:omnivision/omnivision:ref:refs/heads/main</SubjectFromWebIdentityToken><Audience>sts.amazonaws.com</Audience>
  <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/conveyor/omnivision</Arn><AssumedRoleId>A:omnivision</AssumedRoleId></AssumedRoleUser>
  <Credentials><SessionToken>session</SessionToken><SecretAccessKey>secret</SecretAccessKey><Expiration>%s</Expiration><AccessKeyId>ASIAEXAMPLE</AccessKeyId></Credentials>
</AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>`, c.now.Add(time.Hour).UTC().Format(time.RFC3339))
}

// https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html
func (c *clouds) ecr(w http.ResponseWriter, r *http.Request) {
	c.asked["ecr"]++
	if sent := r.Header.Get("Authorization"); !strings.Contains(sent, "Credential=ASIAEXAMPLE/") || !strings.Contains(sent, "/us-west-2/ecr/") || r.Header.Get("X-Amz-Security-Token") != "session" {
		c.t.Errorf("ECR is asked with %q", sent)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	fmt.Fprintf(w, `{"authorizationData":[{"authorizationToken":%q,"expiresAt":%d,"proxyEndpoint":"https://%s"}]}`,
		base64.StdEncoding.EncodeToString([]byte("AWS:password")), c.now.Add(c.life).Unix(), amazonRegistry)
}

// https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token
func (c *clouds) googleSTS(w http.ResponseWriter, body []byte) {
	c.asked["gcp-sts"]++
	w.Header().Set("Content-Type", "application/json")
	if c.refuse {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"unauthorized_client","error_description":"The given credential is rejected by the attribute condition."}`)
		return
	}
	for _, want := range []string{"subject_token=job-for-https%3A%2F%2Fiam.googleapis.com%2Fprojects%2F123", "audience=%2F%2Fiam.googleapis.com%2Fprojects%2F123%2Flocations%2Fglobal", "subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt"} {
		if !strings.Contains(string(body), want) {
			c.t.Errorf("the token is traded with %s, which lacks %s", body, want)
		}
	}
	_, _ = io.WriteString(w, `{"access_token":"federated","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":3600}`)
}

// https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken
func (c *clouds) googleIAM(w http.ResponseWriter, r *http.Request, body []byte) {
	c.asked["gcp-iam"]++
	if r.URL.Path != "/v1/projects/-/serviceAccounts/"+account+":generateAccessToken" || r.Header.Get("Authorization") != "Bearer federated" || !strings.Contains(string(body), googleScope) {
		c.t.Errorf("%s is asked with %q: %s", r.URL.Path, r.Header.Get("Authorization"), body)
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"accessToken": "impersonated", "expireTime": c.now.Add(time.Hour).UTC().Format(time.RFC3339)})
}

func (c *clouds) options() Options {
	return Options{
		AWSRole: role, GCPProvider: provider, GCPServiceAccount: account, Session: "42/1", Fallback: others{},
		AWSAddress: c.URL, GCPSTSAddress: c.URL, GCPIAMAddress: c.URL, HTTP: c.Client(), Now: func() time.Time { return c.now },
		Token: func(_ context.Context, audience string) (string, error) { return "job-for-" + audience, nil },
	}
}

// others are the credentials of registries that are no cloud's.
type others struct{}

func (others) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{Username: "docker"}), nil
}

func credentials(t *testing.T, o Options, host string) (authn.AuthConfig, error) {
	t.Helper()
	k, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return ask(t, k, host)
}

func ask(t *testing.T, k *Keychain, host string) (authn.AuthConfig, error) {
	t.Helper()
	registry, err := name.NewRegistry(host)
	if err != nil {
		t.Fatal(err)
	}
	authenticator, err := k.Resolve(registry)
	if err != nil {
		t.Fatal(err)
	}
	config, err := authenticator.Authorization()
	if err != nil {
		return authn.AuthConfig{}, err
	}
	plain, isCloud, err := k.Password(t.Context(), host)
	if err != nil || isCloud && plain != *config || !isCloud && config.Username != "docker" {
		t.Errorf("the password is %+v, %t, %v, and the keychain has %+v", plain, isCloud, err, *config)
	}
	return *config, nil
}

func TestEachRegistryHasTheCredentialsOfItsCloud(t *testing.T) {
	poolItself := func(o *Options) { o.GCPServiceAccount = "" }
	nothing := func(o *Options) { *o = Options{Fallback: others{}} }
	for what, tt := range map[string]struct {
		change         func(*Options)
		host           string
		user, password string
	}{
		"ECR":                                 {nil, amazonRegistry, "AWS", "password"},
		"Artifact Registry, as an account":    {nil, googleRegistry, googleUser, "impersonated"},
		"Artifact Registry, as the pool's":    {poolItself, googleRegistry, googleUser, "federated"},
		"another registry":                    {nil, "ghcr.io", "docker", ""},
		"ECR, not configured":                 {nothing, amazonRegistry, "docker", ""},
		"Artifact Registry, not configured":   {nothing, googleRegistry, "docker", ""},
		"a host that begins like ECR":         {nil, amazonRegistry + ".example", "docker", ""},
		"a host that ends like Google's":      {nil, "evil.example-docker.pkg.dev", "docker", ""},
		"ECR's public registry is no account": {nil, "public.ecr.aws", "docker", ""},
	} {
		t.Run(what, func(t *testing.T) {
			o := newClouds(t).options()
			if tt.change != nil {
				tt.change(&o)
			}
			got, err := credentials(t, o, tt.host)
			if err != nil || got.Username != tt.user || got.Password != tt.password {
				t.Errorf("credentials are %q, %q, %v", got.Username, got.Password, err)
			}
		})
	}
}

func TestPasswordIsAskedForAgainShortlyBeforeItsEnd(t *testing.T) {
	for _, host := range []string{amazonRegistry, googleRegistry} {
		t.Run(host, func(t *testing.T) {
			c := newClouds(t)
			c.life = time.Hour
			k, err := New(c.options())
			if err != nil {
				t.Fatal(err)
			}
			last := map[string]string{amazonRegistry: "ecr", googleRegistry: "gcp-iam"}[host]
			for _, step := range []struct {
				after time.Duration
				want  int
			}{{0, 1}, {50 * time.Minute, 1}, {6 * time.Minute, 2}, {0, 2}} {
				c.now = c.now.Add(step.after)
				if _, err := ask(t, k, host); err != nil {
					t.Fatal(err)
				}
				if c.asked[last] != step.want {
					t.Errorf("after %s more it was asked %d times, want %d", step.after, c.asked[last], step.want)
				}
			}
		})
	}
}

func TestPasswordIsAskedForOnceByManyAtATime(t *testing.T) {
	c := newClouds(t)
	k, err := New(c.options())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := ask(t, k, amazonRegistry); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if c.asked["sts"] != 1 || c.asked["ecr"] != 1 {
		t.Errorf("asked was %v", c.asked)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	noToken := func(_ *clouds, o *Options) {
		o.Token = func(context.Context, string) (string, error) { return "", errors.New("the job needs id-token: write") }
	}
	refused := func(c *clouds, _ *Options) { c.refuse = true }
	for what, tt := range map[string]struct {
		change func(*clouds, *Options)
		host   string
		want   string
	}{
		"AWS has another trust policy":      {refused, amazonRegistry, "its trust policy must name this workflow"},
		"Google's condition does not admit": {refused, googleRegistry, "the provider's condition must admit this repository"},
		"no token for AWS":                  {noToken, amazonRegistry, "id-token: write"},
		"no token for Google":               {noToken, googleRegistry, "id-token: write"},
	} {
		t.Run(what, func(t *testing.T) {
			c := newClouds(t)
			o := c.options()
			tt.change(c, &o)
			_, err := credentials(t, o, tt.host)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "job-for-") {
				t.Errorf("the error shows the job's token: %v", err)
			}
		})
	}
}

func TestWrongNamesAreRefused(t *testing.T) {
	for what, o := range map[string]Options{
		"a role without its ARN":      {AWSRole: "conveyor"},
		"a user":                      {AWSRole: "arn:aws:iam::123456789012:user/conveyor"},
		"a pool without its provider": {GCPProvider: "projects/1/locations/global/workloadIdentityPools/forge"},
		"an account without provider": {GCPServiceAccount: account},
		"an account of another kind":  {GCPProvider: provider, GCPServiceAccount: "me@example.com"},
	} {
		o.Token = func(context.Context, string) (string, error) { return "", nil }
		if _, err := New(o); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	if _, err := New(Options{AWSRole: role}); err == nil {
		t.Error("a role that nothing can take is taken")
	}
}

func TestSessionNamesAreWhatAWSTakes(t *testing.T) {
	for given, want := range map[string]string{"": "omnivision", "42/1": "omnivision-42-1", strings.Repeat("x", 99): "omnivision-" + strings.Repeat("x", 53)} {
		if got := sessionName(given); got != want {
			t.Errorf("%q becomes %q, want %q", given, got, want)
		}
	}
}

func TestGitHubsRegistryGetsTheJobsTokenAndNobodyElseDoes(t *testing.T) {
	for _, token := range []string{"", "secret"} {
		k, err := New(Options{GitHubToken: token, Fallback: authn.NewMultiKeychain()})
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"ghcr.io", "ghcr.io.example.com", "docker.pkg.github.com", "example.com"} {
			config, ours, err := k.Password(t.Context(), host)
			if want := token != "" && host == "ghcr.io"; err != nil || ours != want || (config.Password == "secret") != want {
				t.Errorf("%s gets %+v, %t, %v", host, config, ours, err)
			}
		}
	}
}
