package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	inprocess "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/stream"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/edge/target"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/registry"
)

// fleet is a front on a loopback port, and a transport that finds every production name there.
type fleet struct {
	front     *Front
	authority *ca.Authority
	addr      string
	transport *http.Transport
	log       *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newFleet(t *testing.T, routes []Route, writers ...netip.Prefix) *fleet {
	t.Helper()
	var hosts []string
	for _, r := range routes {
		hosts = append(hosts, r.Hosts...)
	}
	authority, err := ca.LoadOrCreate(t.TempDir(), hosts...)
	if err != nil {
		t.Fatal(err)
	}
	log := &syncBuffer{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	f, err := New(routes, Options{
		CA: authority, Address: net.IPv4(127, 0, 0, 1), Dialer: &target.Dialer{},
		Writers: writers, Access: logger, Log: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
	srv.Listener.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener = tls.NewListener(l, &tls.Config{GetCertificate: f.GetCertificate, NextProtos: []string{"http/1.1"}})
	srv.Start()
	t.Cleanup(srv.Close)
	addr := l.Addr().String()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
		TLSClientConfig: &tls.Config{RootCAs: authority.Pool()},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &fleet{front: f, authority: authority, addr: addr, transport: transport, log: log}
}

func (f *fleet) get(t *testing.T, url string, edit ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(req)
	}
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// eachRegistry runs a test against the registry in this process and, where its program is there, against
// the real one.
func eachRegistry(t *testing.T, test func(t *testing.T, server string, real bool)) {
	t.Run("in process", func(t *testing.T) {
		srv := httptest.NewServer(inprocess.New(inprocess.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
		defer srv.Close()
		test(t, strings.TrimPrefix(srv.URL, "http://"), false)
	})
	t.Run("distribution", func(t *testing.T) {
		test(t, startDistribution(t), true)
	})
}

func startDistribution(t *testing.T) string {
	t.Helper()
	binary := registryProgram(t)
	addr := freeport.Address(t)
	dir := t.TempDir()
	sup := &process.Supervisor{Dir: filepath.Join(dir, "sup")}
	s := registry.Server{Binary: binary, Dir: filepath.Join(dir, "registry"), Address: addr}
	t.Cleanup(func() {
		if err := sup.Stop(context.Background(), registry.Name); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(context.Background(), sup); err != nil {
		t.Fatal(err)
	}
	return addr
}

// registryProgram finds the engine. Where its folder is named, as `make test` does, it must be there.
func registryProgram(t *testing.T) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	path := filepath.Join(dir, "registry")
	if _, err := os.Stat(path); err != nil {
		if named {
			t.Fatalf("the registry is not in OMNIVISION_ENGINES: %v", err)
		}
		t.Skip("the registry is not built: run 'make engines'")
	}
	return path
}

func registryRoutes(server string) []Route {
	return productionRoutes(target.Target{Address: "127.0.0.1:1"}, target.Target{Address: server})
}

func ref(t *testing.T, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestImagesArePushedAndPulledByTheirProductionNames(t *testing.T) {
	eachRegistry(t, func(t *testing.T, server string, _ bool) {
		f := newFleet(t, registryRoutes(server), loopback)
		opts := []remote.Option{remote.WithTransport(f.transport)}
		for _, image := range []string{
			"quay.io/argoproj/argocd:v3.6.1",
			"docker.io/library/traefik:v3.6.12",
			"registry.k8s.io/pause:3.10.1",
			"123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:v1",
			"europe-west1-docker.pkg.dev/omnivision/images/omnivision-ui:v1",
			"ghcr.io/omnivision/charts/omnivision-platform:0.1.0",
		} {
			img, err := random.Image(2000, 2)
			if err != nil {
				t.Fatal(err)
			}
			want, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Write(ref(t, image), img, opts...); err != nil {
				t.Fatalf("push %s: %v", image, err)
			}
			head, err := remote.Head(ref(t, image), opts...)
			if err != nil {
				t.Fatalf("head %s: %v", image, err)
			}
			if head.Digest != want {
				t.Errorf("%s: digest %s, want %s", image, head.Digest, want)
			}
			byDigest := ref(t, image).Context().Digest(want.String())
			if _, err := remote.Head(byDigest, opts...); err != nil {
				t.Errorf("head by digest %s: %v", byDigest, err)
			}
			pulled, err := remote.Image(byDigest, opts...)
			if err != nil {
				t.Fatalf("pull %s: %v", image, err)
			}
			layers, err := pulled.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				rc, err := l.Compressed()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, rc); err != nil { // go-containerregistry verifies the digest
					t.Errorf("layer of %s: %v", image, err)
				}
				rc.Close()
			}
		}
		// One host's repository is not another's.
		if _, err := remote.Head(ref(t, "quay.io/library/traefik:v3.6.12"), opts...); err == nil {
			t.Error("an image of docker.io was served under quay.io")
		}
		// What one of Docker's names holds, the other names hold too.
		resp, _ := f.get(t, "https://registry-1.docker.io/v2/library/traefik/manifests/v3.6.12", func(r *http.Request) { r.Header.Set("Accept", "*/*") })
		if resp.StatusCode != http.StatusOK {
			t.Errorf("registry-1.docker.io: %s", resp.Status)
		}
	})
}

func TestLayerIsMountedFromAnotherRepositoryOfTheSameHost(t *testing.T) {
	eachRegistry(t, func(t *testing.T, server string, real bool) {
		f := newFleet(t, registryRoutes(server), loopback)
		layer, err := random.Layer(5000, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		from := ref(t, "ghcr.io/omnivision/base:1").Context()
		opts := []remote.Option{remote.WithTransport(f.transport)}
		if err := remote.WriteLayer(from, layer, opts...); err != nil {
			t.Fatal(err)
		}
		digest, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		mount := func(host, source string) (int, string) {
			req, err := http.NewRequest(http.MethodPost, "https://"+host+"/v2/omnivision/worker/blobs/uploads/?mount="+digest.String()+"&from="+source, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := f.transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode, resp.Header.Get("Location")
		}
		status, location := mount("ghcr.io", "omnivision/base")
		if !real {
			return // the one in process mounts nothing and does not tell repositories apart
		}
		if status != http.StatusCreated || location != "/v2/omnivision/worker/blobs/"+digest.String() {
			t.Errorf("mount: %d, Location %q", status, location)
		}
		// The same name at another host is another repository: the upload begins from nothing.
		status, location = mount("quay.io", "omnivision/base")
		if status != http.StatusAccepted || !strings.HasPrefix(location, "/v2/omnivision/worker/blobs/uploads/") {
			t.Errorf("mount from another host: %d, Location %q", status, location)
		}
	})
}

func TestUploadInChunksFollowsTheMappedLocation(t *testing.T) {
	eachRegistry(t, func(t *testing.T, server string, real bool) {
		f := newFleet(t, registryRoutes(server), loopback)
		// A streamed layer has no digest beforehand: POST, PATCH, PUT with each Location of the one before.
		content := bytes.Repeat([]byte("omnivision "), 100_000)
		layer := stream.NewLayer(io.NopCloser(bytes.NewReader(content)))
		repo := ref(t, "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:1").Context()
		opts := []remote.Option{remote.WithTransport(f.transport)}
		if err := remote.WriteLayer(repo, layer, opts...); err != nil {
			t.Fatal(err)
		}
		digest, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		pulled, err := remote.Layer(repo.Digest(digest.String()), opts...)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := pulled.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		got, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("got %d bytes, want %d: %v", len(got), len(content), err)
		}

		// Several chunks with ranges, as containerd and Docker resume them.
		location := f.do(t, http.MethodPost, "https://quay.io/v2/a/b/blobs/uploads/", nil, http.StatusAccepted, "")
		for i, chunk := range [][]byte{content[:1000], content[1000:3000]} {
			location = f.do(t, http.MethodPatch, "https://quay.io"+location, chunk, http.StatusAccepted, fmt.Sprintf("%d-%d", i*1000, i*1000+len(chunk)-1))
		}
		hash, _, err := v1.SHA256(bytes.NewReader(content[:3000]))
		if err != nil {
			t.Fatal(err)
		}
		sep := "?"
		if strings.Contains(location, "?") {
			sep = "&"
		}
		location = f.do(t, http.MethodPut, "https://quay.io"+location+sep+"digest="+hash.String(), nil, http.StatusCreated, "")
		want := "/v2/a/b/blobs/" + hash.String()
		if real && location != want { // the one in process answers without a Location
			t.Errorf("the finished blob is at %q, want %q", location, want)
		}
		_, body := f.get(t, "https://quay.io"+want)
		if body != string(content[:3000]) {
			t.Errorf("the blob has %d bytes", len(body))
		}
	})
}

func (f *fleet) do(t *testing.T, method, url string, body []byte, want int, contentRange string) (location string) {
	t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentRange != "" {
		req.Header.Set("Content-Range", contentRange)
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s, want %d: %s", method, url, resp.Status, want, b)
	}
	return resp.Header.Get("Location")
}

// The distribution registry has no referrers API: the client must see its 404 and fall back to the tag
// sha256-DIGEST (P38).
func TestReferrersFallBackToTheTag(t *testing.T) {
	f := newFleet(t, registryRoutes(startDistribution(t)), loopback)
	opts := []remote.Option{remote.WithTransport(f.transport)}
	subject, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	tag := ref(t, "ghcr.io/omnivision/worker:1")
	if err := remote.Write(tag, subject, opts...); err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(tag, opts...)
	if err != nil {
		t.Fatal(err)
	}
	resp, _ := f.get(t, "https://ghcr.io/v2/omnivision/worker/referrers/"+desc.Digest.String())
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("referrers: %s, want 404", resp.Status)
	}
	signature, err := random.Image(50, 1)
	if err != nil {
		t.Fatal(err)
	}
	attached := mutate.Subject(mutate.ConfigMediaType(mutate.MediaType(signature, types.OCIManifestSchema1), "application/vnd.example.signature"), *desc).(v1.Image)
	attachedDigest, err := attached.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag.Context().Digest(attachedDigest.String()), attached, opts...); err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(tag.Context().Digest(desc.Digest.String()), opts...)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest != attachedDigest {
		t.Errorf("referrers: %+v, want %s", manifest.Manifests, attachedDigest)
	}
}

func TestListsShowOnlyTheHostsOwnNamesPageByPage(t *testing.T) {
	f := newFleet(t, registryRoutes(startDistribution(t)), loopback)
	opts := []remote.Option{remote.WithTransport(f.transport)}
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{
		"ghcr.io/a/one:1", "quay.io/a/one:1", "quay.io/a/two:1", "quay.io/a/two:2", "quay.io/a/two:3",
		"quay.io/a-b:1", "quay.io/z:1", "registry.k8s.io/pause:1",
	} {
		if err := remote.Write(ref(t, image), img, opts...); err != nil {
			t.Fatal(err)
		}
	}
	repo := ref(t, "quay.io/a/two:1").Context()
	for _, page := range []int{1, 2, 1000} {
		// go-containerregistry follows the Link headers.
		repos, err := remote.Catalog(context.Background(), repo.Registry, append(opts, remote.WithPageSize(page))...)
		if err != nil {
			t.Fatalf("catalog by %d: %v", page, err)
		}
		slices.Sort(repos)
		if want := []string{"a-b", "a/one", "a/two", "z"}; !slices.Equal(repos, want) {
			t.Errorf("catalog by %d: %q, want %q", page, repos, want)
		}
		tags, err := remote.List(repo, append(opts, remote.WithPageSize(page))...)
		if err != nil {
			t.Fatalf("tags by %d: %v", page, err)
		}
		if want := []string{"1", "2", "3"}; !slices.Equal(tags, want) {
			t.Errorf("tags by %d: %q, want %q", page, tags, want)
		}
	}
	_, body := f.get(t, "https://quay.io/v2/a/two/tags/list")
	if !strings.Contains(body, `"name":"a/two"`) {
		t.Errorf("the tag list names the repository as the server does: %s", body)
	}
	_, body = f.get(t, "https://quay.io/v2/no/such/tags/list")
	if strings.Contains(body, "quay.io") || !strings.Contains(body, "no/such") {
		t.Errorf("the error names the repository as the server does: %s", body)
	}
	empty, body := f.get(t, "https://public.ecr.aws/v2/_catalog")
	if empty.StatusCode != http.StatusOK || strings.TrimSpace(body) != `{"repositories":[]}` {
		t.Errorf("an empty host's catalog: %s %s", empty.Status, body)
	}
}

func TestMirrorRequestNamesItsRegistryInTheQuery(t *testing.T) {
	eachRegistry(t, func(t *testing.T, server string, _ bool) {
		f := newFleet(t, registryRoutes(server), loopback)
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref(t, "docker.io/library/traefik:v3"), img, remote.WithTransport(f.transport)); err != nil {
			t.Fatal(err)
		}
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		base := "https://127.0.0.1" // no SNI: the certificate is the address's
		for path, want := range map[string]int{
			"/v2/": http.StatusOK,
			"/v2/library/traefik/manifests/v3?ns=docker.io":            http.StatusOK,
			"/v2/library/traefik/manifests/v3?ns=registry-1.docker.io": http.StatusOK,
			"/v2/library/traefik/manifests/v3?ns=quay.io":              http.StatusNotFound,
			"/v2/library/traefik/manifests/v3":                         http.StatusNotFound,
			"/v2/library/traefik/manifests/v3?ns=example.com":          http.StatusNotFound,
			"/v2/library/traefik/manifests/v3?ns=github.com":           http.StatusNotFound,
		} {
			resp, body := f.get(t, base+path, func(r *http.Request) { r.Header.Set("Accept", string(types.DockerManifestSchema2)) })
			if resp.StatusCode != want {
				t.Errorf("%s: %s, want %d: %s", path, resp.Status, want, body)
			}
			if want == http.StatusOK && path != "/v2/" && resp.Header.Get("Docker-Content-Digest") != digest.String() {
				t.Errorf("%s: digest %q, want %s", path, resp.Header.Get("Docker-Content-Digest"), digest)
			}
		}
		if location := f.do(t, http.MethodPost, base+"/v2/x/blobs/uploads/?ns=quay.io", nil, http.StatusAccepted, ""); !strings.Contains(location, "ns=quay.io") {
			t.Errorf("the upload's Location forgets the registry: %q", location)
		}
	})
}

func TestClustersMayPullAndNotPush(t *testing.T) {
	f := newFleet(t, registryRoutes("127.0.0.1:1"), netip.MustParsePrefix("10.111.0.1/32"))
	req, err := http.NewRequest(http.MethodPut, "https://ghcr.io/v2/omnivision/worker/manifests/latest", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), "DENIED") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func TestForgeSeesTheProductionNameAndStreams(t *testing.T) {
	received := make(chan *http.Request, 4)
	release := make(chan struct{})
	forge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		received <- r
		fmt.Fprint(w, "first")
		w.(http.Flusher).Flush()
		<-release
		fmt.Fprint(w, " last")
	}))
	defer forge.Close()
	f := newFleet(t, productionRoutes(target.Target{Address: strings.TrimPrefix(forge.URL, "http://")}, target.Target{Address: "127.0.0.1:1"}))

	const path = "/argoproj/argo-cd.git/git-upload-pack"
	req, err := http.NewRequest(http.MethodPost, "https://github.com"+path+"?a=%2F", strings.NewReader("0000"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "203.0.113.9") // a client's own claim
	req.Header.Set("Authorization", "Basic dTpw")
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 5)
	done := make(chan error, 1)
	go func() { _, err := io.ReadFull(resp.Body, first); done <- err }()
	select {
	case err := <-done:
		if err != nil || string(first) != "first" {
			t.Fatalf("%q %v", first, err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the first bytes wait for the last: the answer is not streamed")
	}
	close(release)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != " last" {
		t.Errorf("%q %v", rest, err)
	}
	got := <-received
	if got.Host != "github.com" || got.RequestURI != path+"?a=%2F" || got.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("the forge saw %s %s, proto %q", got.Host, got.RequestURI, got.Header.Get("X-Forwarded-Proto"))
	}
	if got.Header.Get("X-Forwarded-For") != "127.0.0.1" || got.Header.Get("X-Real-IP") != "127.0.0.1" {
		t.Errorf("the client's address is forged: %q, %q", got.Header.Get("X-Forwarded-For"), got.Header.Get("X-Real-IP"))
	}
	if user, _, _ := got.BasicAuth(); user != "u" {
		t.Error("the forge did not get the credentials")
	}
}

// A server may answer before the last byte of a request has passed here. Unless told otherwise, an HTTP/1
// server of Go's library then closes the request's body, and with it the answer under way.
func TestAnswerThatIsFasterThanItsRequestIsWhole(t *testing.T) {
	forge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		_, _ = io.ReadFull(r.Body, make([]byte, 4))
		fmt.Fprint(w, "first")
		w.(http.Flusher).Flush()
		rest, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, " %s %v", rest, err)
	}))
	defer forge.Close()
	f := newFleet(t, productionRoutes(target.Target{Address: strings.TrimPrefix(forge.URL, "http://")}, target.Target{Address: "127.0.0.1:1"}))
	body, more := io.Pipe()
	defer more.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://github.com/a.git/git-receive-pack", body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 8
	go more.Write([]byte("0000"))
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go more.Write([]byte("1111"))
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != "first 1111 <nil>" {
		t.Errorf("%q %v", got, err)
	}
}

func TestUnknownHostIsNamedInTheAnswer(t *testing.T) {
	f := newFleet(t, registryRoutes("127.0.0.1:1"))
	anything := f.transport.Clone()
	anything.TLSClientConfig.InsecureSkipVerify = true
	defer anything.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, "https://mcr.microsoft.com/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := anything.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusMisdirectedRequest || len(body.Errors) != 1 || !strings.Contains(body.Errors[0].Message, `"mcr.microsoft.com"`) {
		t.Errorf("%s %+v", resp.Status, body)
	}
	if names := resp.TLS.PeerCertificates[0].DNSNames; len(names) != 0 {
		t.Errorf("a certificate was issued for %v", names)
	}
	// A client that verifies refuses the connection.
	if _, err := f.transport.RoundTrip(req.Clone(context.Background())); err == nil || !strings.Contains(err.Error(), "mcr.microsoft.com") {
		t.Errorf("got %v", err)
	}
}

func TestConnectionForOneNameServesNoOther(t *testing.T) {
	f := newFleet(t, registryRoutes("127.0.0.1:1"))
	resp, body := f.get(t, "https://ghcr.io/v2/", func(r *http.Request) { r.Host = "quay.io" })
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func TestEachNameHasItsOwnCertificate(t *testing.T) {
	f := newFleet(t, registryRoutes("127.0.0.1:1"))
	for _, r := range registryRoutes("127.0.0.1:1") {
		for _, host := range r.Hosts {
			conn, err := tls.Dial("tcp", f.addr, &tls.Config{RootCAs: f.authority.Pool(), ServerName: host})
			if err != nil {
				t.Errorf("%s: %v", host, err)
				continue
			}
			if names := conn.ConnectionState().PeerCertificates[0].DNSNames; !slices.Equal(names, []string{host}) {
				t.Errorf("%s: certificate for %v", host, names)
			}
			conn.Close()
		}
	}
}

func TestTargetThatIsDownIsNamedWithTheNextStep(t *testing.T) {
	f := newFleet(t, registryRoutes(freeport.Address(t)))
	resp, body := f.get(t, "https://github.com/omnivision/omnivision")
	if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "127.0.0.1:1") || !strings.Contains(body, "omnivision status") {
		t.Errorf("%s %s", resp.Status, body)
	}
}

func TestPlainRequestsAreSentToHTTPS(t *testing.T) {
	f := newFleet(t, registryRoutes("127.0.0.1:1"))
	for host, want := range map[string]string{"github.com": "https://github.com/a/b?c=d", "GITHUB.com:80": "https://github.com/a/b?c=d", "127.0.0.1": "https://127.0.0.1/a/b?c=d", "evil.example": ""} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/a/b?c=d", nil)
		r.Host = host
		f.front.Redirect(w, r)
		if got := w.Header().Get("Location"); got != want {
			t.Errorf("%s: sent to %q, want %q", host, got, want)
		}
	}
}

func TestAccessLogIsBoundedAndHoldsNoQuery(t *testing.T) {
	f := newFleet(t, registryRoutes("127.0.0.1:1"))
	f.get(t, "https://ghcr.io/"+strings.Repeat("x", 5000)+"?token=secret", func(r *http.Request) { r.Header.Set("User-Agent", strings.Repeat("y", 5000)) })
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(f.log.String(), `"msg":"request"`) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(strings.SplitN(f.log.String(), "\n", 2)[0]), &line); err != nil {
		t.Fatal(err)
	}
	if line["host"] != "ghcr.io" || line["status"] != float64(404) || line["route"] != "ghcr.io" {
		t.Errorf("record: %v", line)
	}
	if len(f.log.String()) > 1500 || strings.Contains(f.log.String(), "secret") {
		t.Errorf("%d bytes: %.200s", len(f.log.String()), f.log.String())
	}
}

// productionRoutes are those of a fleet with a registry in each cloud.
func productionRoutes(forge, registry target.Target) []Route {
	registries := append([]string{"123456789012.dkr.ecr.us-west-2.amazonaws.com", "europe-west1-docker.pkg.dev"}, Upstreams...)
	return Routes([]string{"github.com"}, registries, forge, registry)
}
