package github

import (
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
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
)

func TestAppTokenIsSignedLimitedAndReused(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issued := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// https://docs.github.com/rest/apps/apps#create-an-installation-access-token-for-an-app
		if r.Method != http.MethodPost || r.URL.Path != "/app/installations/7/access_tokens" {
			notFound(w)
			return
		}
		if err := verify(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), &key.PublicKey); err != nil {
			answer(w, http.StatusUnauthorized, map[string]any{"message": err.Error()})
			return
		}
		if got := fmt.Sprint(body(r)["repositories"]); got != "[omnivision-gitops]" {
			answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "repositories are " + got})
			return
		}
		issued++
		life := time.Hour
		if issued == 1 {
			life = 4 * time.Minute // about to expire
		}
		answer(w, http.StatusCreated, map[string]any{"token": fmt.Sprintf("ghs_%d", issued), "expires_at": time.Now().Add(life).UTC().Format(time.RFC3339)})
	}))
	defer server.Close()

	source, err := AppToken(App{
		URL: server.URL, ClientID: "Iv1.app", InstallationID: 7, Repositories: []string{"omnivision-gitops"},
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ghs_1", "ghs_2", "ghs_2"} {
		if got, err := source(t.Context()); err != nil || got != want {
			t.Errorf("token %d is %q, %v; want %q", i, got, err, want)
		}
	}
}

func verify(token string, key *rsa.PublicKey) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("A JSON web token could not be decoded")
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature); err != nil {
		return err
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err
	}
	var claims struct {
		Iat, Exp int64
		Iss      string
	}
	if err := json.Unmarshal(data, &claims); err != nil {
		return err
	}
	if claims.Iss != "Iv1.app" || claims.Iat > time.Now().Unix() || claims.Exp > time.Now().Add(10*time.Minute).Unix() {
		return fmt.Errorf("claims are %+v", claims)
	}
	return nil
}

func TestAppKeyThatIsNoneIsRefused(t *testing.T) {
	if _, err := AppToken(App{ClientID: "Iv1.app", PrivateKey: []byte("secret")}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error is %v, want one that does not show the key", err)
	}
}

func TestAppThatIsNotInstalledSaysSo(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { notFound(w) }))
	defer server.Close()
	source, err := AppToken(App{URL: server.URL, ClientID: "Iv1.app", InstallationID: 7, PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source(t.Context()); !errors.Is(err, forge.NotFound) {
		t.Errorf("error is %v, want one that is %q", err, string(forge.NotFound))
	}
}
