package goproxy

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

func TestFirstProxy(t *testing.T) {
	for list, want := range map[string]string{
		"https://proxy.golang.org,direct":        "https://proxy.golang.org",
		"off":                                    "",
		"direct":                                 "",
		"https://a.example/go|https://b.example": "https://a.example/go",
		"direct, http://c.example":               "http://c.example",
	} {
		u, err := firstProxy(list)
		if err != nil {
			t.Errorf("%s: %v", list, err)
			continue
		}
		got := ""
		if u != nil {
			got = u.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", list, got, want)
		}
	}
	for _, list := range []string{"proxy.golang.org", "file:///modules"} {
		if u, err := firstProxy(list); err == nil {
			t.Errorf("%s: taken as %v", list, u)
		}
	}
}

func TestCacheFirstThenProxy(t *testing.T) {
	var asked []string
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		_, _ = io.WriteString(w, "upstream")
	}))
	defer upstream.Close()
	cache := t.TempDir()
	dir := filepath.Join(cache, "cache", "download", "example.com", "m", "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"v1.0.0.mod", "list"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("cached"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(cache, "secret.mod"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	proxy, err := url.Parse(upstream.URL + "/base")
	if err != nil {
		t.Fatal(err)
	}
	handler := Handler(Upstream{Cache: cache, Proxy: proxy})
	get := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, w.Body.String()
	}
	for path, want := range map[string]string{
		"/example.com/m/@v/v1.0.0.mod": "cached",
		"/example.com/m/@v/v1.1.0.mod": "upstream", // not there
		"/example.com/m/@v/list":       "upstream", // may have grown
		"/sumdb/sum.golang.org/latest": "upstream",
		"/../../@v/../secret.mod":      "upstream", // never outside the cache
	} {
		if code, body := get(http.MethodGet, path); code != http.StatusOK || body != want {
			t.Errorf("%s: %d %q, want %q", path, code, body, want)
		}
	}
	for _, path := range asked {
		if path == "/base/example.com/m/@v/v1.0.0.mod" {
			t.Error("the proxy was asked for what the cache has")
		}
	}
	if code, _ := get(http.MethodPost, "/example.com/m/@v/v1.0.0.mod"); code != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", code)
	}
	w := httptest.NewRecorder()
	Handler(Upstream{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/example.com/m/@v/v1.0.0.mod", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("without cache and proxy: %d", w.Code)
	}
}
