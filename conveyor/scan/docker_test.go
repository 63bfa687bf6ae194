package scan

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

func TestTrivyIsLentThePasswordOfOneRegistry(t *testing.T) {
	const host = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := Scanner{Credentials: func(_ context.Context, asked string) (authn.AuthConfig, bool, error) {
		return authn.AuthConfig{Username: "AWS", Password: "secret"}, asked == host, nil
	}}
	dir := t.TempDir()
	if err := s.lend(t.Context(), dir, host+"/omnivision/worker@sha256:"+strings.Repeat("1", 64)); err != nil {
		t.Fatal(err)
	}
	variables := lent(dir)
	if len(variables) != 1 {
		t.Fatalf("Trivy is told %v", variables)
	}
	info, err := os.Stat(filepath.Join(dir, dockerFolder, "config.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the password's file is %v, %v", info.Mode(), err)
	}
	// Trivy reads it by this keychain.
	t.Setenv("DOCKER_CONFIG", strings.TrimPrefix(variables[0], "DOCKER_CONFIG="))
	for asked, want := range map[string]string{host: "secret", "ghcr.io": ""} {
		registry, err := name.NewRegistry(asked)
		if err != nil {
			t.Fatal(err)
		}
		found, err := authn.DefaultKeychain.Resolve(registry)
		if err != nil {
			t.Fatal(err)
		}
		config, err := found.Authorization()
		if err != nil || config.Password != want {
			t.Errorf("the password of %s is %q, %v", asked, config.Password, err)
		}
	}
}

func TestDockersConfigurationStaysWhereNothingIsLent(t *testing.T) {
	refused := errors.New("no token")
	for what, tt := range map[string]struct {
		credentials Credentials
		want        error
	}{
		"no credentials":   {nil, nil},
		"another registry": {func(context.Context, string) (authn.AuthConfig, bool, error) { return authn.AuthConfig{}, false, nil }, nil},
		"a refusal": {func(context.Context, string) (authn.AuthConfig, bool, error) {
			return authn.AuthConfig{}, true, refused
		}, refused},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			err := Scanner{Credentials: tt.credentials}.lend(t.Context(), dir, "ghcr.io/a@sha256:"+strings.Repeat("1", 64))
			if !errors.Is(err, tt.want) || len(lent(dir)) > 0 {
				t.Errorf("lent is %v, %v", lent(dir), err)
			}
		})
	}
}
