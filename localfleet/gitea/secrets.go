package gitea

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
)

// ensureSecret returns the secret kept at path, and makes one if there is none:
// 32 random bytes, in the base64 that Gitea's own secrets have.
func ensureSecret(path string) (string, error) {
	have, err := readSecret(path)
	if err != nil || have != "" {
		return have, err
	}
	random := make([]byte, 32)
	rand.Read(random) //nolint:errcheck // never fails, as its documentation says
	secret := base64.RawURLEncoding.EncodeToString(random)
	return secret, writeFile(path, []byte(secret), 0o600)
}

// readSecret returns the secret kept at path, or nothing if there is none.
func readSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// writeFile replaces the file at once, so that a kill leaves the old or the new.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return err
	}
	if err := os.Chmod(temporary, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func splitAddress(address string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("address %q: give IP:PORT: %w", address, err)
	}
	return host, port, nil
}
