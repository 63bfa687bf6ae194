package judge

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/process"
)

// realRegistry starts CNCF's registry, which has no referrers API: what lies beside an image
// is found by the fallback tag (P38).
func realRegistry(t *testing.T) *url.URL {
	t.Helper()
	dir, named := os.LookupEnv("OMNIVISION_ENGINES")
	if !named {
		dir = "/var/cache/omnivision/engines/bin"
	}
	program := filepath.Join(dir, "registry")
	if _, err := os.Stat(program); err != nil {
		if named {
			t.Fatalf("the registry is not in OMNIVISION_ENGINES: %v", err)
		}
		t.Skip("the registry is not built: run 'make engines' and set OMNIVISION_ENGINES to the folder of programs")
	}
	address := freeport.Address(t)
	config := filepath.Join(t.TempDir(), "config.yml")
	check(t, os.WriteFile(config, []byte(fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", t.TempDir(), address)), 0o600))
	supervisor := &process.Supervisor{Dir: filepath.Join(t.TempDir(), "sup")}
	_, err := supervisor.Start(t.Context(), process.Spec{Name: "registry", Path: program, Args: []string{"serve", config}, StopGrace: time.Second})
	check(t, err)
	t.Cleanup(func() {
		if err := supervisor.Stop(context.Background(), "registry"); err != nil {
			t.Error(err)
		}
	})
	at := &url.URL{Scheme: "http", Host: address}
	check(t, supervisor.Wait(t.Context(), "registry", time.Minute, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String()+"/v2/", nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	}))
	return at
}

// The same story against the real registry, with its fallback tags.
func TestGateReadsARegistryWithoutReferrers(t *testing.T) {
	at := realRegistry(t)
	s := newSite(t)
	s.registry.Handler = httputil.NewSingleHostReverseProxy(at)
	signed, unsigned := s.release("omnivision-worker", "1.4.0"), s.push("omnivision-worker", "1.5.0")
	s.want(signed.repository.Tag("1.4.0").String(), "+verified")
	s.want(signed.at(), "+cache")
	s.want(signed.repository.Digest(signed.platforms[0]).String(), "+verified")
	s.want(unsigned.at(), "Unsigned")
	s.want(s.copy(signed, "omnivision-ui").at(), "OtherRepository")
	s.want(s.repository("omnivision-worker").Tag("gone").String(), "Unresolvable")
}
