package policy

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// samples are the policy-controller's own test files, in the module cache.
func samples(t *testing.T, pattern string) map[string][]byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/sigstore/policy-controller").Output()
	if err != nil {
		t.Fatalf("finding the policy-controller's module: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files at %s: %v", pattern, err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range bytes.Split(raw, []byte("\n---\n")) {
			if bytes.Contains(document, []byte("kind: ClusterImagePolicy")) {
				all[filepath.Base(file)] = document
			}
		}
	}
	return all
}

// verdict is what loading says: nil, the fields that are not supported, or an error.
func verdict(raw []byte) (unsupported []string, err error) {
	decoded, err := DecodeClusterImagePolicy(raw)
	if err != nil {
		return nil, err
	}
	_, err = decoded.Check()
	for _, one := range flatten(err) {
		var u *UnsupportedError
		if !errors.As(one, &u) {
			return nil, one
		}
		unsupported = append(unsupported, u.Field)
	}
	return unsupported, nil
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// What the policy-controller takes is taken, or refused because a field is not supported.
func TestPublishedValidPoliciesLoadWhereSupportIsClaimed(t *testing.T) {
	whole := 0
	for _, pattern := range []string{"test/testdata/policy-controller/valid/*.yaml", "test/testdata/policy-controller/e2e/cip-*.yaml", "examples/policies/*.yaml"} {
		for name, raw := range samples(t, pattern) {
			if bytes.Contains(raw, []byte("<<")) { // a form to fill in, no policy yet
				continue
			}
			unsupported, err := verdict(raw)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if len(unsupported) == 0 {
				whole++
			}
			for _, field := range unsupported {
				if !slices.ContainsFunc([]string{".kms", ".ca-cert", ".policy", ".source", "trustRootRef", "spec.match", "spec.policy"}, func(s string) bool { return strings.Contains(field, s) }) {
					t.Errorf("%s: %s is not among what is documented as unsupported", name, field)
				}
			}
		}
	}
	if whole < 10 {
		t.Errorf("only %d of the files are supported in full", whole)
	}
}

// What the policy-controller refuses, by its schema or its validation, is refused, and not
// only because of a field that is not supported.
func TestPublishedInvalidPoliciesAreRefused(t *testing.T) {
	count := 0
	for name, raw := range samples(t, "test/testdata/policy-controller/invalid/*.yaml") {
		count++
		if unsupported, err := verdict(raw); err == nil {
			t.Errorf("%s is taken but for %v", name, unsupported)
		}
	}
	if count < 30 {
		t.Errorf("there are only %d files", count)
	}
}
