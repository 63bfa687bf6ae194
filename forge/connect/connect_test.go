package connect

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/gitea"
	"github.com/omnivision/omnivision/forge/github"
)

func TestRepositoryConnectsTheDriverOfTheForgesSoftware(t *testing.T) {
	tests := []struct {
		name    string
		status  int
		version string
		want    string
	}{
		{"gitea", http.StatusOK, `{"version":"1.26.0"}`, "*gitea.Repository"},
		{"github answers that there is no such page", http.StatusNotFound, `{"message":"Not Found"}`, "*github.Repository"},
		{"github answers with a page", http.StatusOK, `<html>a user called api</html>`, "*github.Repository"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					t.Error("the token was sent before the forge was known")
				}
				if r.URL.Path != "/git/api/v1/version" {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.version)
			}))
			defer server.Close()
			repo, err := Repository(t.Context(), server.URL+"/git/omnivision/omnivision-gitops.git", Options{Token: forge.StaticToken("secret")})
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%T", repo); got != tt.want {
				t.Errorf("connected a %s, want a %s", got, tt.want)
			}
			if repo.Name().String() != "omnivision/omnivision-gitops" {
				t.Errorf("repository is %s", repo.Name())
			}
		})
	}
}

func TestForgeThatIsDownIsUnavailable(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"fails":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(handler)
			defer server.Close()
			if _, err := Repository(t.Context(), server.URL+"/omnivision/gitops", Options{}); !errors.Is(err, forge.Unavailable) {
				t.Errorf("error is %v, want one that is %q: a guess would send the token to the wrong API", err, string(forge.Unavailable))
			}
		})
	}
}

func TestGitHubsAPIIsWhereItsSoftwareHasIt(t *testing.T) {
	for root, want := range map[string]string{
		"https://github.com/":        "https://api.github.com/",
		"https://github.example.com": "https://github.example.com/api/v3/",
	} {
		u, err := url.Parse(root)
		if err != nil {
			t.Fatal(err)
		}
		if got := githubAPI(u); got != want {
			t.Errorf("API of %s is %s, want %s", root, got, want)
		}
	}
}

var (
	_ forge.Repository = (*gitea.Repository)(nil)
	_ forge.Repository = (*github.Repository)(nil)
)
