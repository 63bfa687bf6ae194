package github

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	sdk "github.com/google/go-github/v88/github"

	"github.com/omnivision/omnivision/forge"
)

// App is a GitHub App installed in an organisation. Pull requests that an app's
// token opens trigger checks, which those of a workflow's default token do not
// (P41).
type App struct {
	URL            string // of the API; empty is DefaultURL
	ClientID       string // or the app's numeric id
	InstallationID int64
	PrivateKey     []byte // PEM, as GitHub hands it out
	// Repositories limits the tokens to these of the installation.
	Repositories []string
	Transport    http.RoundTripper
}

// AppToken issues the app's tokens: each lives for an hour and is replaced five
// minutes before its end.
func AppToken(a App) (forge.TokenSource, error) {
	key, err := parseKey(a.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("github app %s: %w", a.ClientID, err)
	}
	client, err := New(Options{URL: a.URL, Transport: a.Transport, Token: func(context.Context) (string, error) {
		return signedClaims(a.ClientID, key, time.Now())
	}})
	if err != nil {
		return nil, err
	}
	var (
		mu      sync.Mutex
		token   string
		expires time.Time
	)
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Until(expires) > 5*time.Minute {
			return token, nil
		}
		made, _, err := client.api.Apps.CreateInstallationToken(ctx, a.InstallationID, &sdk.InstallationTokenOptions{Repositories: a.Repositories})
		if err != nil {
			return "", classify(fmt.Sprintf("get a token for installation %d of github app %s", a.InstallationID, a.ClientID), err)
		}
		token, expires = made.GetToken(), made.GetExpiresAt().Time
		return token, nil
	}, nil
}

func parseKey(data []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("the private key is no PEM: give the file that GitHub handed out")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	rsaKey, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("the private key is no RSA key: give the file that GitHub handed out")
	}
	return rsaKey, nil
}

// signedClaims is what
// https://docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app
// asks for: issued a minute ago, against clocks that differ, and for less than
// ten minutes.
func signedClaims(issuer string, key *rsa.PrivateKey, now time.Time) (string, error) {
	claims, err := json.Marshal(map[string]any{"iat": now.Add(-time.Minute).Unix(), "exp": now.Add(9 * time.Minute).Unix(), "iss": issuer})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign claims: %w", err)
	}
	return signed + "." + encode(signature), nil
}
