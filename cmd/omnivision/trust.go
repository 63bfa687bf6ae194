package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/internal/tooltime"
)

// trustFlags say by whom images are signed, and what their signatures are verified with.
type trustFlags struct {
	trustedRoot, signingConfig, tokenFile string
	key                                   string
}

func (f *trustFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.trustedRoot, "trusted-root", os.Getenv(trustedRootVariable), "trusted_root.json of the Sigstore that signs without a key (default: "+trustedRootVariable+", or the public Sigstore's)")
	flags.StringVar(&f.signingConfig, "signing-config", os.Getenv(signingConfigVariable), "signing_config.json: where that Sigstore's services are (default: "+signingConfigVariable+", or the public Sigstore's)")
	flags.StringVar(&f.key, "key", "", "private key to sign with where no Sigstore can be reached (PEM, PKCS #8, P-256)")
	flags.StringVar(&f.tokenFile, "identity-token", os.Getenv(identityTokenVariable), "file with the job's OIDC token (default: "+identityTokenVariable+", else the token in SIGSTORE_ID_TOKEN, else GitHub Actions)")
}

// Environment variables that a job is given in place of flags.
const (
	trustedRootVariable   = "OMNIVISION_TRUSTED_ROOT"
	signingConfigVariable = "OMNIVISION_SIGNING_CONFIG"
	identityTokenVariable = "OMNIVISION_IDENTITY_TOKEN"
)

// signer is asked for when something is to be signed.
func (f *trustFlags) signer(ctx context.Context) (*sign.Signer, error) {
	if f.key != "" {
		raw, err := os.ReadFile(f.key)
		if err != nil {
			return nil, fmt.Errorf("reading the signing key: %w", err)
		}
		return sign.WithKey(raw)
	}
	services, err := f.services(ctx)
	if err != nil {
		return nil, err
	}
	token, err := f.token(ctx)
	if err != nil {
		return nil, err
	}
	return sign.Keyless(ctx, services, token)
}

// services are those of the Sigstore that is named, or of the public one. Half of each would be neither.
func (f *trustFlags) services(ctx context.Context) (sign.Services, error) {
	if (f.trustedRoot == "") != (f.signingConfig == "") {
		return sign.Services{}, codedError{exitUsage, errors.New("a trusted root and a signing config belong together: give --trusted-root and --signing-config, or neither for the public Sigstore")}
	}
	trusted, err := trustedRoot(ctx, f.trustedRoot)
	if err != nil {
		return sign.Services{}, err
	}
	config, err := signingConfig(ctx, f.signingConfig)
	return sign.Services{Config: config, Root: trusted}, err
}

// trustedRoot reads a file, or without one asks the public Sigstore's TUF repository.
func trustedRoot(ctx context.Context, path string) (*root.TrustedRoot, error) {
	if path != "" {
		trusted, err := root.NewTrustedRootFromPath(path)
		if err != nil {
			return nil, fmt.Errorf("reading the trusted root %s: %w", path, err)
		}
		return trusted, nil
	}
	return fetchPublic(ctx, root.FetchTrustedRootWithOptions)
}

func signingConfig(ctx context.Context, path string) (*root.SigningConfig, error) {
	if path != "" {
		config, err := root.NewSigningConfigFromPath(path)
		if err != nil {
			return nil, fmt.Errorf("reading the signing config %s: %w", path, err)
		}
		return config, nil
	}
	return fetchPublic(ctx, root.FetchSigningConfigWithOptions)
}

const publicTimeout = time.Minute

// fetchPublic begins with the root of trust that is built in. What was fetched today is not fetched again.
func fetchPublic[T any](ctx context.Context, fetch func(*tuf.Options) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, publicTimeout, fmt.Errorf("no answer within %s", publicTimeout))
	defer cancel()
	fetched, err := fetch(tuf.DefaultOptions().WithContext(ctx).WithCacheValidity(1))
	if err != nil {
		return fetched, fmt.Errorf("fetching what verifies the public Sigstore from %s: %w; name another Sigstore with --trusted-root and --signing-config, or sign with --key", tuf.DefaultMirror, err)
	}
	return fetched, nil
}

// policy believes what an identity signed in an earlier run. A trusted root or key that
// cannot be read believes nothing, so that the stage runs again and says why.
func (f *trustFlags) policy(identity verify.Identity) verify.Policy {
	if f.key != "" {
		raw, err := os.ReadFile(f.key)
		if err != nil {
			return verify.Policy{}
		}
		signer, err := sign.WithKey(raw)
		if err != nil || signer.Identity() != identity {
			return verify.Policy{}
		}
		return signer.Policy()
	}
	trusted, err := trustedRoot(context.Background(), f.trustedRoot)
	if err != nil {
		return verify.Policy{}
	}
	return verify.Policy{Root: trusted, Identity: identity}
}

// token is the identity that the job was lent.
func (f *trustFlags) token(ctx context.Context) (string, error) {
	if f.tokenFile != "" {
		raw, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return "", fmt.Errorf("reading the identity token: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	}
	if token := os.Getenv("SIGSTORE_ID_TOKEN"); token != "" {
		return token, nil
	}
	return actionsToken(ctx, os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), jobCredential(), audience)
}

// jobCredential is what a job proves with which one it is. Gitea's runner lends its jobs only
// the token for the runner's own services, and where the address is set beside it, its
// issuer takes that one.
func jobCredential() string {
	return cmp.Or(os.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN"), os.Getenv("ACTIONS_RUNTIME_TOKEN"))
}

// audience is whom Fulcio wants tokens to be for.
const audience = "sigstore"

// actionsToken asks GitHub Actions for a token of the running job:
// https://docs.github.com/en/actions/security-for-github-actions/security-hardening-your-deployments/about-security-hardening-with-openid-connect.
func actionsToken(ctx context.Context, address, bearer, audience string) (string, error) {
	if address == "" || bearer == "" {
		return "", errors.New("there is no identity token: run in a GitHub Actions job with the permission id-token: write, set SIGSTORE_ID_TOKEN, name a file with --identity-token, or sign with --key")
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("ACTIONS_ID_TOKEN_REQUEST_URL: %w", err)
	}
	query := u.Query()
	query.Set("audience", audience)
	u.RawQuery = query.Encode()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", fmt.Errorf("asking for the job's identity token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := (&http.Client{Transport: tooltime.Transport("identity issuer", nil)}).Do(req)
	if err != nil {
		return "", fmt.Errorf("asking for the job's identity token: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as needed
	var answer struct{ Value string }
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // as far as it can be read
		return "", fmt.Errorf("asking for the job's identity token: the answer is %s %q; the job needs the permission id-token: write", resp.Status, said)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
		return "", fmt.Errorf("reading the job's identity token: %w", err)
	}
	if answer.Value == "" {
		return "", errors.New("asking for the job's identity token: the answer holds none")
	}
	return answer.Value, nil
}

// publicKey reads a public key in PEM.
func publicKey(path string) (crypto.PublicKey, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s is no PEM block PUBLIC KEY: make one with openssl pkey -in KEY -pubout", path)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the public key %s: %w", path, err)
	}
	return key, nil
}

// transportWithCA trusts the authorities of a file besides the system's; without a file
// it is nil, the default.
func transportWithCA(file string) (http.RoundTripper, error) {
	if file == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the forge's certificate authorities: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the system's certificate authorities: %w", err)
	}
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return transport, nil
}
