package advisories

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/omnivision/omnivision/conveyor/rescan"
	"github.com/omnivision/omnivision/conveyor/scan"
)

// trivy finds the engine, or skips; in CI it must be there.
func trivy(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("OMNIVISION_ENGINES")
	program := filepath.Join(dir, "trivy")
	if _, err := os.Stat(program); dir != "" && err == nil {
		return program
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("trivy is missing (OMNIVISION_ENGINES=%s)", dir)
	}
	t.Skip("trivy is missing: run 'make engines' and set OMNIVISION_ENGINES to the folder of programs")
	return ""
}

// program builds a Go program that serves HTTP/2 by golang.org/x/net at a version.
func program(t *testing.T, version string) []byte {
	t.Helper()
	dir := t.TempDir()
	for file, content := range map[string]string{
		"go.mod":  "module example.com/worker\n\ngo 1.26.0\n\nrequire golang.org/x/net " + version + "\n",
		"main.go": "package main\n\nimport (\n\t\"net/http\"\n\n\t\"golang.org/x/net/http2\"\n)\n\nfunc main() { _ = http2.ConfigureServer(&http.Server{}, nil) }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-trimpath", "-ldflags=-s -w", "-o", "worker", "."}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	content, err := os.ReadFile(filepath.Join(dir, "worker"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// bed is Trivy with our database, and a registry, and nobody else to ask.
type bed struct {
	scanner  scan.Scanner
	registry string
}

func newBed(t *testing.T) bed {
	t.Helper()
	b := bed{scanner: scan.Scanner{Program: trivy(t), CacheDir: t.TempDir(), Offline: true, Insecure: true, Timeout: 3 * time.Minute}}
	if err := Write(t.Context(), b.scanner.CacheDir, time.Now()); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	b.registry = strings.TrimPrefix(server.URL, "http://")
	return b
}

// nobodyElse sends all requests but those to the registry to a server that reports them.
func nobodyElse(t *testing.T) {
	t.Helper()
	internet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("Trivy asked for %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(internet.Close)
	for _, variable := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(variable, internet.URL)
	}
	t.Setenv("NO_PROXY", "127.0.0.1")
	t.Setenv("no_proxy", "127.0.0.1")
}

// push makes an image of files and returns it as a release has it.
func (b bed) push(t *testing.T, files map[string]string) []scan.Target {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for path, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	base, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(base, packed)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(b.registry+"/omnivision/worker:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return []scan.Target{{Platform: "linux/amd64", Reference: tag.Context().Digest(digest.String()).String()}}
}

// debianWith is the base of an image as distroless makes it, with one package.
func debianWith(source, pkg, version string) map[string]string {
	return map[string]string{
		"etc/os-release":                "PRETTY_NAME=\"Distroless\"\nNAME=\"Debian GNU/Linux\"\nID=\"debian\"\nVERSION_ID=\"12\"\nVERSION=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"etc/debian_version":            "12.12\n",
		"var/lib/dpkg/status.d/" + pkg:  fmt.Sprintf("Package: %s\nSource: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: A <a@example.com>\nDescription: a library\n", pkg, source, version),
		"usr/share/doc/libc6/copyright": "GPL\n",
	}
}

// The database, Trivy itself and what the conveyor makes of its report.
func TestTrivyFindsWhatWasPublished(t *testing.T) {
	b := newBed(t)
	old, fixed := string(program(t, "v0.16.0")), string(program(t, "v0.55.0"))
	nobodyElse(t)
	for name, tt := range map[string]struct {
		files map[string]string
		want  []string // of the findings that stop the belt
		fails string   // of an error of another kind
	}{
		"a program of a vulnerable module":        {files: map[string]string{"usr/local/bin/worker": old}, want: []string{"CVE-2023-39325 golang.org/x/net v0.16.0 0.17.0 HIGH usr/local/bin/worker"}},
		"a program of a fixed module":             {files: map[string]string{"usr/local/bin/worker": fixed}},
		"a vulnerable library of Debian":          {files: debianWith("glibc", "libc6", "2.36-9+deb12u2"), want: []string{"CVE-2023-4911 libc6 2.36-9+deb12u2 2.36-9+deb12u3 HIGH debian 12.12", "CVE-2024-2961 libc6 2.36-9+deb12u2 2.36-9+deb12u6 HIGH debian 12.12"}},
		"a fixed library of Debian":               {files: debianWith("glibc", "libc6", "2.36-9+deb12u14")},
		"nothing that Trivy recognises":           {files: map[string]string{"usr/local/bin/worker": "#!/bin/sh\n"}, fails: "no package was recognised"},
		"a system that Trivy does not scan":       {files: map[string]string{"etc/os-release": "ID=fedora\nVERSION_ID=42\n", "usr/local/bin/worker": fixed}, fails: "none of its packages"},
		"a Debian whose package list was removed": {files: map[string]string{"etc/debian_version": "12.12\n", "etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "usr/local/bin/worker": fixed}, fails: "none of its packages"},
		"a Debian that is out of support":         {files: map[string]string{"etc/debian_version": "9.13\n", "etc/os-release": "ID=debian\nVERSION_ID=\"9\"\n", "var/lib/dpkg/status.d/libc6": "Package: libc6\nSource: glibc\nVersion: 2.24-11\n"}, fails: "out of support"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			result, err := b.scanner.Scan(t.Context(), "omnivision-worker", b.push(t, tt.files), func(string) {})
			t.Logf("looked at in %s: %v", time.Since(begin).Round(time.Millisecond), err)
			var vulnerable *scan.VulnerableError
			switch {
			case tt.fails != "":
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("error is %v, want one with %q", err, tt.fails)
				}
				return
			case len(tt.want) == 0:
				if err != nil {
					t.Fatal(err)
				}
				looksWhole(t, result)
				return
			case !errors.As(err, &vulnerable):
				t.Fatalf("error is %v", err)
			}
			var found []string
			for _, f := range vulnerable.Findings {
				found = append(found, strings.Join([]string{f.ID, f.Package, f.Installed, f.Fixed, string(f.Severity), f.Where}, " "))
			}
			if !slices.Equal(found, tt.want) {
				t.Errorf("found %q, want %q", found, tt.want)
			}
		})
	}
}

// looksWhole checks the evidence of a scan that passed.
func looksWhole(t *testing.T, result scan.Result) {
	t.Helper()
	if !strings.HasPrefix(result.Scanner, "trivy 0.") || time.Since(result.Database.UpdatedAt) > time.Hour || result.Database.Version != 2 {
		t.Errorf("scanned by %s with %+v", result.Scanner, result.Database)
	}
	if len(result.Images) != 1 || result.Images[0].Packages == 0 {
		t.Fatalf("the images are %+v", result.Images)
	}
	var sbom struct {
		BOMFormat  string `json:"bomFormat"`
		Components []struct {
			Name string `json:"name"`
			PURL string `json:"purl"`
		} `json:"components"`
	}
	if err := json.Unmarshal(result.Images[0].SBOM, &sbom); err != nil || sbom.BOMFormat != "CycloneDX" || len(sbom.Components) < result.Images[0].Packages {
		t.Errorf("the SBOM is %+v, %v", sbom, err)
	}
}

// The program that was clean when it was released, a day before the advisory.
func TestRescanFindsTheVulnerableImageThatIsDeployed(t *testing.T) {
	b := newBed(t)
	_, digest, _ := strings.Cut(b.push(t, map[string]string{"usr/local/bin/worker": string(program(t, "v0.16.0"))})[0].Reference, "@")
	nobodyElse(t)
	report, err := rescan.Rescan{Scanner: b.scanner, PlainHTTP: true}.Run(t.Context(), b.tree(digest), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if d := report.Deployed[0]; d.Status != rescan.Vulnerable || d.Todo != "release it anew with newer golang.org/x/net" {
		t.Errorf("the report is %+v", report)
	}
}

func TestNothingThatLiesAboutKeepsTrivyFromFinding(t *testing.T) {
	b := newBed(t)
	targets := b.push(t, map[string]string{"usr/local/bin/worker": string(program(t, "v0.16.0"))})
	nobodyElse(t)
	home := t.TempDir()
	for file, content := range map[string]string{
		".trivyignore": "CVE-2023-39325\n", "trivy.yaml": "severity: [LOW]\n",
		".trivy/modules/evil.wasm": "no module", // Trivy fails where it tries to load it
	} {
		path := filepath.Join(home, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(home)
	t.Setenv("HOME", home)
	t.Setenv("TRIVY_SEVERITY", "LOW")
	t.Setenv("TRIVY_IGNOREFILE", filepath.Join(home, ".trivyignore"))
	var scans sync.WaitGroup
	for range 2 { // at once, with one database
		scans.Go(func() {
			_, err := b.scanner.Scan(t.Context(), "omnivision-worker", targets, func(string) {})
			if !errors.As(err, new(*scan.VulnerableError)) {
				t.Errorf("error is %v", err)
			}
		})
	}
	scans.Wait()
	entries, err := os.ReadDir(b.scanner.CacheDir)
	if err != nil || len(entries) != 1 {
		t.Errorf("besides its database Trivy keeps %v, %v", entries, err)
	}
}

func TestTrivyWithoutAFreshDatabaseIsRefused(t *testing.T) {
	b := newBed(t)
	targets := b.push(t, map[string]string{"usr/local/bin/worker": "#!/bin/sh\n"})
	nobodyElse(t)
	if err := Write(t.Context(), b.scanner.CacheDir, time.Now().Add(-72*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"stale": b.scanner.CacheDir, "none": t.TempDir()} {
		b.scanner.CacheDir = dir
		if _, err := b.scanner.Scan(t.Context(), "omnivision-worker", targets, func(string) {}); !errors.Is(err, scan.ErrStale) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}
