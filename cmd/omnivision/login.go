package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/login"
	"github.com/omnivision/omnivision/internal/tooltime"
)

// What a job may become in the clouds, so that it can push to their registries.
const (
	awsRoleVariable     = "OMNIVISION_AWS_ROLE"
	gcpProviderVariable = "OMNIVISION_GCP_WORKLOAD_IDENTITY_PROVIDER"
	gcpAccountVariable  = "OMNIVISION_GCP_SERVICE_ACCOUNT"
	// packagesTokenVariable holds a token that may push to GitHub's registry, such as a
	// job's with the permission packages: write.
	packagesTokenVariable = "OMNIVISION_PACKAGES_TOKEN"
)

// registryOptions are how registries are spoken to: with these credentials, and on the clock.
func registryOptions(keychain authn.Keychain) []remote.Option {
	return []remote.Option{remote.WithAuthFromKeychain(keychain), remote.WithTransport(tooltime.Transport("registry", remote.DefaultTransport))}
}

// registryKeychain has the credentials of every registry: those of Docker, and in a job
// that may take a cloud's role those of the cloud.
func registryKeychain() (*login.Keychain, error) {
	keychain, err := login.New(login.Options{
		AWSRole: os.Getenv(awsRoleVariable), GCPProvider: os.Getenv(gcpProviderVariable), GCPServiceAccount: os.Getenv(gcpAccountVariable),
		Session: os.Getenv("GITHUB_RUN_ID"), GitHubToken: os.Getenv(packagesTokenVariable),
		HTTP: &http.Client{Timeout: time.Minute, Transport: tooltime.Transport("cloud", nil)},
		Token: func(ctx context.Context, audience string) (string, error) {
			return actionsToken(ctx, os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), jobCredential(), audience)
		},
	})
	if err != nil {
		return nil, codedError{exitUsage, fmt.Errorf("%w: correct %s, %s or %s", err, awsRoleVariable, gcpProviderVariable, gcpAccountVariable)}
	}
	return keychain, nil
}
