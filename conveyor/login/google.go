package login

import (
	"context"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"
	"github.com/google/go-containerregistry/pkg/authn"
)

var (
	googleHost     = regexp.MustCompile(`^[a-z0-9-]+-docker\.pkg\.dev$`)
	googleProvider = regexp.MustCompile(`^projects/[0-9]+/locations/global/workloadIdentityPools/[a-z0-9-]+/providers/[a-z0-9-]+$`)
	googleAccount  = regexp.MustCompile(`^[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com$`)
)

// What Google's services are called:
// https://cloud.google.com/iam/docs/workload-identity-federation-with-deployment-pipelines.
const (
	googleSTS   = "https://sts.googleapis.com"
	googleIAM   = "https://iamcredentials.googleapis.com"
	googleScope = "https://www.googleapis.com/auth/cloud-platform"
	// googleUser is the user name that goes with an access token:
	// https://cloud.google.com/artifact-registry/docs/docker/authentication.
	googleUser = "oauth2accesstoken"
)

func isGoogle(host string) bool { return googleHost.MatchString(host) }

// newGoogle is nil where no provider is configured.
func newGoogle(o Options) (source, error) {
	switch {
	case o.GCPProvider == "" && o.GCPServiceAccount == "":
		return nil, nil
	case !googleProvider.MatchString(o.GCPProvider):
		return nil, fmt.Errorf("%q is no provider such as projects/123/locations/global/workloadIdentityPools/POOL/providers/PROVIDER", o.GCPProvider)
	case o.GCPServiceAccount != "" && !googleAccount.MatchString(o.GCPServiceAccount):
		return nil, fmt.Errorf("%q is no service account such as conveyor@PROJECT.iam.gserviceaccount.com", o.GCPServiceAccount)
	}
	options := &externalaccount.Options{
		Audience: "//iam.googleapis.com/" + o.GCPProvider, SubjectTokenType: "urn:ietf:params:oauth:token-type:jwt",
		TokenURL: orElse(o.GCPSTSAddress, googleSTS) + "/v1/token", Scopes: []string{googleScope},
		SubjectTokenProvider: subject{o}, Client: o.HTTP,
	}
	if o.GCPServiceAccount != "" {
		options.ServiceAccountImpersonationURL = orElse(o.GCPIAMAddress, googleIAM) + "/v1/projects/-/serviceAccounts/" + url.PathEscape(o.GCPServiceAccount) + ":generateAccessToken"
	}
	return &kept{now: o.Now, fetch: func(ctx context.Context) (authn.AuthConfig, time.Time, error) {
		// Made anew for each token: it keeps one itself, by its own clock.
		credentials, err := externalaccount.NewCredentials(options)
		if err != nil {
			return authn.AuthConfig{}, time.Time{}, fmt.Errorf("configuring the workload identity %s: %w", o.GCPProvider, err)
		}
		token, err := credentials.Token(ctx)
		if err != nil {
			return authn.AuthConfig{}, time.Time{}, fmt.Errorf("trading the job's identity at %s for %s: %w; the provider's condition must admit this repository, and the account grant it roles/iam.workloadIdentityUser", o.GCPProvider, orElse(o.GCPServiceAccount, "an access token"), err)
		}
		return authn.AuthConfig{Username: googleUser, Password: token.Value}, token.Expiry, nil
	}}, nil
}

// subject lends the job's token to Google's library.
type subject struct{ Options }

// SubjectToken implements externalaccount.SubjectTokenProvider. The token is for the
// provider, which by default takes its own name as the audience.
func (s subject) SubjectToken(ctx context.Context, _ *externalaccount.RequestOptions) (string, error) {
	return s.Token(ctx, "https://iam.googleapis.com/"+s.GCPProvider)
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return strings.TrimSuffix(s, "/")
}
