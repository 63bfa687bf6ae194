package login

import (
	"context"
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-containerregistry/pkg/authn"
)

// amazonAudience is whom AWS wants tokens to be for:
// https://docs.github.com/en/actions/how-tos/secure-your-work/security-harden-deployments/oidc-in-aws.
const amazonAudience = "sts.amazonaws.com"

var (
	amazonHost = regexp.MustCompile(`^[0-9]{12}\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?$`)
	amazonRole = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+$`)
	// notInSession is what the name of a session cannot hold.
	notInSession = regexp.MustCompile(`[^\w+=,.@-]+`)
)

// amazonRegion is the region of a registry's host, if it is one of ECR.
func amazonRegion(host string) (string, bool) {
	m := amazonHost.FindStringSubmatch(host)
	if m == nil {
		return "", false
	}
	return m[1], true
}

func checkRole(arn string) error {
	if arn == "" || amazonRole.MatchString(arn) {
		return nil
	}
	return fmt.Errorf("%q is no ARN of an IAM role such as arn:aws:iam::123456789012:role/conveyor", arn)
}

// amazon is ECR in one region.
type amazon struct {
	Options
	region string
}

// password takes the role, and asks ECR for a password as the role.
func (a amazon) password(ctx context.Context) (authn.AuthConfig, time.Time, error) {
	fail := func(err error) (authn.AuthConfig, time.Time, error) {
		return authn.AuthConfig{}, time.Time{}, err
	}
	credentials, err := a.take(ctx)
	if err != nil {
		return fail(err)
	}
	registry := ecr.New(ecr.Options{Region: a.region, HTTPClient: a.HTTP, BaseEndpoint: a.address(), Credentials: aws.CredentialsProviderFunc(
		func(context.Context) (aws.Credentials, error) { return credentials, nil })})
	answer, err := registry.GetAuthorizationToken(ctx, &ecr.GetAuthorizationTokenInput{})
	if err != nil {
		return fail(fmt.Errorf("asking ECR in %s for a password as %s: %w; the role needs ecr:GetAuthorizationToken", a.region, a.AWSRole, err))
	}
	if len(answer.AuthorizationData) == 0 {
		return fail(fmt.Errorf("asking ECR in %s for a password: the answer holds none", a.region))
	}
	data := answer.AuthorizationData[0]
	plain, err := base64.StdEncoding.DecodeString(aws.ToString(data.AuthorizationToken))
	user, password, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok { // the error would show the password
		return fail(fmt.Errorf("asking ECR in %s for a password: the answer is not USER:PASSWORD in base64", a.region))
	}
	return authn.AuthConfig{Username: user, Password: password}, aws.ToTime(data.ExpiresAt), nil
}

// take trades the job's token for the role's credentials.
func (a amazon) take(ctx context.Context) (aws.Credentials, error) {
	token, err := a.Token(ctx, amazonAudience)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("taking the role %s: %w", a.AWSRole, err)
	}
	client := sts.New(sts.Options{Region: a.region, HTTPClient: a.HTTP, BaseEndpoint: a.address(), Credentials: aws.AnonymousCredentials{}})
	answer, err := client.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &a.AWSRole, RoleSessionName: aws.String(sessionName(a.Session)), WebIdentityToken: &token,
	})
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("taking the role %s with the job's identity: %w; its trust policy must name this workflow's repository and branch", a.AWSRole, err)
	}
	if answer.Credentials == nil {
		return aws.Credentials{}, fmt.Errorf("taking the role %s: the answer holds no credentials", a.AWSRole)
	}
	return aws.Credentials{
		AccessKeyID: aws.ToString(answer.Credentials.AccessKeyId), SecretAccessKey: aws.ToString(answer.Credentials.SecretAccessKey),
		SessionToken: aws.ToString(answer.Credentials.SessionToken), CanExpire: true, Expires: aws.ToTime(answer.Credentials.Expiration),
	}, nil
}

func (a amazon) address() *string {
	if a.AWSAddress == "" {
		return nil
	}
	return &a.AWSAddress
}

// sessionName is a name that AWS takes: 2 to 64 characters of its own choice.
func sessionName(session string) string {
	name := "omnivision"
	if session = notInSession.ReplaceAllString(session, "-"); session != "" {
		name += "-" + session
	}
	return name[:min(len(name), 64)]
}
