// Package issuer substitutes for the OIDC issuers that the public Sigstore believes: GitHub's, which tells workflows
// apart, and Sigstore's own, which tells people apart.
//
// Goal: tokens of the same shape under the same names, that nobody gets who is not what they say. A workflow's token
// goes only to a job that runs at this moment, and all it says comes from the forge. A person's token goes to
// whoever may open a socket that belongs to root: who is root on the fleet's machine may say who they are.
// Limits: plain HTTP behind the fleet's front, one key for both, which is never exchanged.
package issuer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/omnivision/omnivision/fleet"
)

// Names of production.
const (
	ActionsURL = fleet.GitHubIssuer
	PeopleURL  = "https://oauth2.sigstore.dev/auth"
)

// Lifetimes of tokens: a job's is GitHub's; a person's is lent at the beginning of a command, which
// may sign at the end of a long build.
const (
	jobLifetime    = 5 * time.Minute
	personLifetime = time.Hour
)

// Issuer signs tokens under one URL.
type Issuer struct {
	url  string
	path string // of the URL
	key  *Key
	now  func() time.Time
}

// New returns the issuer of a URL.
func New(address string, key *Key) (*Issuer, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.HasSuffix(u.Path, "/") {
		return nil, fmt.Errorf("the issuer's address %q: want an https URL without a slash at its end", address)
	}
	return &Issuer{url: address, path: u.Path, key: key, now: time.Now}, nil
}

// sign adds what every token has to the claims.
func (i *Issuer) sign(audience, subject string, lifetime time.Duration, claims any) (string, error) {
	now := i.now()
	signer, err := i.key.signer()
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		ID: newID(), Issuer: i.url, Subject: subject, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(lifetime)),
	}).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return token, nil
}

// Handler serves what anybody may know: how to verify a token.
// https://openid.net/specs/openid-connect-discovery-1_0.html.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	i.register(mux)
	return mux
}

func (i *Issuer) register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+i.path+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]any{
			"issuer": i.url, "jwks_uri": i.url + "/.well-known/jwks",
			"subject_types_supported": []string{"public"}, "response_types_supported": []string{"id_token"},
			"id_token_signing_alg_values_supported": []string{string(algorithm)}, "scopes_supported": []string{"openid"},
		})
	})
	mux.HandleFunc("GET "+i.path+"/.well-known/jwks", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.key.public()}})
	})
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // whoever asked may be gone
}

// refusal is an error with the answer that it makes.
type refusal struct {
	status int
	err    error
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Errorf(format, args...)}
}
