package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/engine"
)

const checkout = "../.."

// realBuilder works on this machine's store of engines and images, as `up` does.
func realBuilder(t *testing.T) *Builder {
	t.Helper()
	cache := os.Getenv("OMNIVISION_CACHE")
	if cache == "" {
		cache = "/var/cache/omnivision"
	}
	store := &engine.Store{Dir: cache, Source: checkout}
	return &Builder{Cache: cache, Source: checkout, Binary: store.Path, Asset: store.Asset, Offline: true, Version: "0.1.0", Commit: "0123456789", Report: func(s string) { t.Log(s) }}
}

// buildReal assembles an image, or skips where its engine is not built.
func buildReal(t *testing.T, reference string) *Image {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	img, err := realBuilder(t).Build(ctx, reference)
	if err != nil {
		if notBuilt := new(engine.NotBuiltError); os.Getenv("CI") == "" && (errors.As(err, &notBuilt) || strings.Contains(err.Error(), "getting Debian packages")) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s: %.1f MB", reference, digest, float64(img.Bytes)/1e6)
	return img
}

// unpacked writes an image's layers below a directory, as a runtime would.
func unpacked(t *testing.T, img v1.Image) string {
	t.Helper()
	root := t.TempDir()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !h.ModTime.Equal(epoch) {
				t.Errorf("%s has the time %v", h.Name, h.ModTime)
			}
			path := filepath.Join(root, h.Name)
			switch h.Typeflag {
			case tar.TypeDir:
				err = os.MkdirAll(path, 0o755)
			case tar.TypeSymlink:
				_ = os.Remove(path)
				err = os.Symlink(h.Linkname, path)
			case tar.TypeReg:
				var f *os.File
				if f, err = os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, os.FileMode(h.Mode)); err == nil {
					_, err = io.Copy(f, tr)
					err = errors.Join(err, f.Close())
				}
			default:
				t.Errorf("%s is of type %q", h.Name, h.Typeflag)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
	}
	return root
}

// inside runs a command in an unpacked image.
func inside(t *testing.T, root string, args ...string) (string, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	// A container has a /dev; git and ssh open /dev/null before anything else.
	null := filepath.Join(root, "dev", "null")
	if _, err := os.Stat(null); err != nil {
		if err := errors.Join(os.MkdirAll(filepath.Dir(null), 0o755), syscall.Mknod(null, syscall.S_IFCHR|0o666, 1<<8|3)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "chroot", append([]string{root}, args...)...)
	cmd.Env = []string{defaultPath, "HOME=/tmp"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestRedisImageRunsAsArgoCDStartsIt(t *testing.T) {
	img := buildReal(t, redisReference)
	root := unpacked(t, img)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	// The arguments of Argo CD's Deployment, the last with its password filled
	// in, and a port and address for the test.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	args := append([]string{"--userspec=999:1000", root}, config.Config.Entrypoint...)
	args = append(args, "--save", "", "--appendonly", "no", "--requirepass s3cret-", "--port", "26379", "--bind", "127.0.0.1")
	server := exec.CommandContext(ctx, "chroot", args...)
	server.Env = config.Config.Env
	var log strings.Builder
	server.Stdout, server.Stderr = &log, &log
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	cli := []string{"redis-cli", "-p", "26379", "--no-auth-warning"}
	var out string
	for range 100 {
		if out, err = inside(t, root, append(cli, "-a", "s3cret-", "ping")...); err == nil && strings.Contains(out, "PONG") {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !strings.Contains(out, "PONG") {
		t.Fatalf("ping: %v %s\n%s", err, out, log.String())
	}
	if out, _ := inside(t, root, append(cli, "ping")...); !strings.Contains(out, "NOAUTH") {
		t.Errorf("without the password: %s", out)
	}
}

func TestArgoCDImageHasItsTools(t *testing.T) {
	root := unpacked(t, buildReal(t, mustReference(t, "quay.io/argoproj/argocd")))
	for _, c := range []struct{ command, want string }{
		{"git --version", "git version 2."},
		{"gpg --version", "gpg (GnuPG) 2."},
		{"tini --version", "tini version"},
		{"ssh -V", "OpenSSH"},
		{"helm version --short", "v4."},
		{"kustomize version", "v5."},
		{"argocd-server --help", "argocd-server"},
		{"argocd-repo-server --help", "argocd-repo-server"},
		{"argocd-application-controller --help", "argocd-application-controller"},
		{"argocd-applicationset-controller --help", "argocd-applicationset-controller"},
		{"argocd admin redis-initial-password --help", "Redis password"},
		{"sh -c /bin/cp&&true", "missing file operand"},
		{"sh -c command -v gpg-wrapper.sh git-verify-wrapper.sh entrypoint.sh awk; true", "/usr/local/bin/gpg-wrapper.sh"},
		{"head -1 /etc/ssl/certs/ca-certificates.crt", "BEGIN CERTIFICATE"},
		{"id -un 999", "argocd"},
	} {
		args := strings.Fields(c.command)
		if args[0] == "sh" {
			args = []string{"sh", "-c", strings.TrimPrefix(c.command, "sh -c ")}
		}
		if out, err := inside(t, root, args...); !strings.Contains(out, c.want) {
			t.Errorf("%s: %v %s", c.command, err, out)
		}
	}
	// git over https loads its helper and that one's libraries.
	if out, _ := inside(t, root, "git", "ls-remote", "https://127.0.0.1:1/x.git"); !strings.Contains(out, "Failed to connect") {
		t.Errorf("git over https: %s", out)
	}
}

// mustReference finds the catalogue's reference of a repository.
func mustReference(t *testing.T, repository string) string {
	t.Helper()
	recipes, err := Catalogue(checkout)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recipes {
		if strings.HasPrefix(r.Reference, repository+":") {
			return r.Reference
		}
	}
	t.Fatalf("no recipe for %s", repository)
	return ""
}

func TestStaticImagesHoldTheirPrograms(t *testing.T) {
	for repository, c := range map[string]struct{ args, want string }{
		"quay.io/argoproj/argo-rollouts":  {"/bin/rollouts-controller --version", "v1."},
		"docker.io/library/traefik":       {"/usr/local/bin/traefik version", "Version:"},
		"registry.k8s.io/coredns/coredns": {"/coredns -version", "CoreDNS-1."},
		"quay.io/prometheus/prometheus":   {"/bin/prometheus --version", "version 3."},
	} {
		t.Run(repository, func(t *testing.T) {
			root := unpacked(t, buildReal(t, mustReference(t, repository)))
			if out, err := inside(t, root, strings.Fields(c.args)...); err != nil || !strings.Contains(out, c.want) {
				t.Errorf("%v %s", err, out)
			}
		})
	}
}

// TestRedisReferenceIsThatOfArgoCDsManifests reads upstream's manifests, where
// the engines' module cache still is or Go's own has them.
func TestRedisReferenceIsThatOfArgoCDsManifests(t *testing.T) {
	version := strings.TrimPrefix(mustReference(t, "quay.io/argoproj/argocd"), "quay.io/argoproj/argocd:")
	var raw []byte
	for _, dir := range []string{filepath.Join(realBuilder(t).Cache, "build", "gomod"), filepath.Join(os.Getenv("HOME"), "go", "pkg", "mod")} {
		content, err := os.ReadFile(filepath.Join(dir, "github.com/argoproj/argo-cd/v3@"+version, "manifests", "install.yaml"))
		if err == nil {
			raw = content
		}
	}
	if raw == nil {
		t.Skip("Argo CD's module is not in a module cache of this machine")
	}
	if !strings.Contains(string(raw), "image: "+redisReference+"\n") {
		t.Errorf("Argo CD %s does not run %s", version, redisReference)
	}
}

// TestPushToTheRealRegistry uses the CNCF distribution, which is stricter than
// the registry in process.
func TestPushToTheRealRegistry(t *testing.T) {
	program, err := realBuilder(t).Binary("registry")
	if err != nil {
		if os.Getenv("CI") == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	dir := t.TempDir()
	address := freeport.Address(t)
	config := filepath.Join(dir, "config.yml")
	content := "version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: " + filepath.Join(dir, "data") + "}}\nhttp: {addr: " + address + "}\n"
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), program, "serve", config)
	var log strings.Builder
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for the registry: %v\n%s", err, log.String())
		}
	}
	checkPush(t, "http://"+address)
}
