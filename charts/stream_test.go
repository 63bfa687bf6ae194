package charts

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
)

// TestStreamEndsOnTheVersionThatBeganIt has a real Traefik carry a stream of the stable
// version while its weights move to the canary and the stable version leaves them.
func TestStreamEndsOnTheVersionThatBeganIt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	finish := make(chan struct{})
	version := func(name string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, name+" begins,") // the caller is the test
			if r.URL.Path == "/stream" {
				_ = http.NewResponseController(w).Flush()
				<-finish
				_, _ = io.WriteString(w, " "+name+" ends")
			}
		}))
		t.Cleanup(s.Close)
		return s
	}
	stable, canary := version("stable"), version("canary")
	config := filepath.Join(t.TempDir(), "routes.yaml")
	route := func(weights string) {
		t.Helper()
		// The whole file at a time, or Traefik reads half of it.
		if err := os.WriteFile(config+".new", fmt.Appendf(nil, `{"http": {
			"routers": {"worker": {"rule": "PathPrefix(\u0060/\u0060)", "service": "worker"}},
			"services": {
				"worker": {"weighted": {"services": [%s]}},
				"stable": {"loadBalancer": {"servers": [{"url": %q}]}},
				"canary": {"loadBalancer": {"servers": [{"url": %q}]}}
			}}}`, weights, stable.URL, canary.URL), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(config+".new", config); err != nil {
			t.Fatal(err)
		}
	}
	route(`{"name": "stable", "weight": 100}, {"name": "canary", "weight": 0}`)
	address := startTraefik(t, config)
	answers(ctx, t, address, "stable begins,")

	stream, err := get(ctx, address+"/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	begun := make([]byte, len("stable begins,"))
	if _, err := io.ReadFull(stream.Body, begun); err != nil {
		t.Fatal(err)
	}
	route(`{"name": "canary", "weight": 100}`)
	answers(ctx, t, address, "canary begins,")
	close(finish)
	rest, err := io.ReadAll(stream.Body)
	if got := string(begun) + string(rest); err != nil || got != "stable begins, stable ends" {
		t.Errorf("the stream is %q, %v", got, err)
	}
}

// startTraefik runs Traefik by the routes in a file and returns its address.
func startTraefik(t *testing.T, routes string) string {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	program := filepath.Join(dir, "traefik")
	if _, err := os.Stat(program); err != nil {
		if named {
			t.Fatalf("Traefik is not in OMNIVISION_ENGINES: %v", err)
		}
		t.Skip("Traefik is not built: run 'make engines' and set OMNIVISION_ENGINES to the folder of programs")
	}
	address := freeport.Address(t)
	cmd := exec.Command(program, "--global.checknewversion=false", "--global.sendanonymoususage=false", "--log.level=ERROR",
		"--entrypoints.internal.address="+address, "--providers.providersthrottleduration=10ms", "--providers.file.directory="+filepath.Dir(routes))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	return "http://" + address
}

func get(ctx context.Context, url string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(request)
}

// answers asks until the answer is the wanted one.
func answers(ctx context.Context, t *testing.T, address, want string) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		response, err := get(ctx, address)
		if err == nil {
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if string(body) == want {
				return
			}
			err = fmt.Errorf("it answers %q", body)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Traefik does not answer %q: %v", want, err)
		case <-again.C:
		}
	}
}
