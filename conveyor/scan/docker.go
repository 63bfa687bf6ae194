package scan

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Credentials has the password of a registry's host; false leaves it to Docker's own
// configuration.
type Credentials func(ctx context.Context, host string) (authn.AuthConfig, bool, error)

// dockerFolder is where Trivy finds a password, below the folder that it runs in.
const dockerFolder = "docker"

// lend writes the password of the image's registry for Trivy. It is for this host
// alone: Trivy would send what TRIVY_PASSWORD holds to its database's registry too.
func (s Scanner) lend(ctx context.Context, dir, reference string) error {
	if s.Credentials == nil {
		return nil
	}
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	host := ref.Context().RegistryStr()
	config, ok, err := s.Credentials(ctx, host)
	if err != nil || !ok {
		return err
	}
	raw, err := json.Marshal(map[string]any{"auths": map[string]any{host: config}})
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, dockerFolder), 0o700); err != nil {
		return fmt.Errorf("lending Trivy the password of %s: %w", host, err)
	}
	if err := os.WriteFile(filepath.Join(dir, dockerFolder, "config.json"), raw, 0o600); err != nil {
		return fmt.Errorf("lending Trivy the password of %s: %w", host, err)
	}
	return nil
}

// lent is the variable that names the password, if one was lent.
func lent(dir string) []string {
	folder := filepath.Join(dir, dockerFolder)
	if _, err := os.Stat(folder); err != nil {
		return nil
	}
	return []string{"DOCKER_CONFIG=" + folder}
}
