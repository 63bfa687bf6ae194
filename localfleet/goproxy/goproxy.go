// Package goproxy lets what runs inside the fleet download Go modules: what the machine's
// module cache has comes from there, the rest from the proxy that the machine itself uses.
//
// Goal: a build inside the fleet gets the modules that a build outside gets. Limits: it
// verifies nothing, since the go command does, by go.sum and the checksum database, which
// is reached by way of it too.
package goproxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/omnivision/omnivision/localfleet/topology"
)

// Address is where the proxy listens, inside the hub's network namespace.
const Address = topology.HubAddress + ":8088"

// URL is the GOPROXY of what runs inside the fleet.
const URL = "http://" + Address

// Upstream is where modules come from.
type Upstream struct {
	Cache string   // GOMODCACHE; empty for none
	Proxy *url.URL // nil for none
}

// OfMachine asks the go command which proxy this machine uses, and where it keeps what it
// downloaded.
func OfMachine(ctx context.Context) (Upstream, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "-json", "GOPROXY", "GOMODCACHE").Output()
	if err != nil {
		return Upstream{}, fmt.Errorf("asking go for its module proxy: %w; install Go (https://go.dev/dl)", err)
	}
	var env struct{ GOPROXY, GOMODCACHE string }
	if err := json.Unmarshal(out, &env); err != nil {
		return Upstream{}, fmt.Errorf("asking go for its module proxy: %w", err)
	}
	proxy, err := firstProxy(env.GOPROXY)
	return Upstream{Cache: env.GOMODCACHE, Proxy: proxy}, err
}

// firstProxy is the first server of a GOPROXY list; "direct" and "off" are none.
func firstProxy(list string) (*url.URL, error) {
	for entry := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == '|' }) {
		entry = strings.TrimSpace(entry)
		if entry == "" || entry == "direct" || entry == "off" {
			continue
		}
		u, err := url.Parse(entry)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("GOPROXY names %q: want the address of a server, such as https://proxy.golang.org", entry)
		}
		return u, nil
	}
	return nil, nil
}

// Handler serves the protocol of https://go.dev/ref/mod#goproxy-protocol.
func Handler(up Upstream) http.Handler {
	cached := http.Dir(filepath.Join(up.Cache, "cache", "download"))
	files := http.FileServer(cached)
	var proxy http.Handler = http.NotFoundHandler()
	if up.Proxy != nil {
		proxy = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(up.Proxy)
			r.Out.Host = ""
		}}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "modules are read, not written", http.StatusMethodNotAllowed)
			return
		}
		if up.Cache != "" && immutable(r.URL.Path) {
			if file, err := cached.Open(r.URL.Path); err == nil {
				_ = file.Close()
				files.ServeHTTP(w, r)
				return
			}
		}
		proxy.ServeHTTP(w, r)
	})
}

// immutable says that a path is of one version, for good. Lists of versions are asked for
// each time.
func immutable(path string) bool {
	if !strings.Contains(path, "/@v/") {
		return false
	}
	for _, suffix := range []string{".info", ".mod", ".zip"} {
		if strings.HasSuffix(path, suffix) {
			return true
		}
	}
	return false
}
