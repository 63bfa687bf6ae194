package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/omnivision/omnivision/internal/freeport"
)

// region is a server that answers as the parts of a region may.
func region(t *testing.T) (url string, followed *atomic.Int32) {
	t.Helper()
	followed = new(atomic.Int32)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /empty", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /draining", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "draining", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("GET /moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/login", http.StatusFound)
	})
	mux.HandleFunc("GET /login", func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL, followed
}

// nobody is an address that refuses connections.
func nobody(t *testing.T) string {
	t.Helper()
	return "http://" + freeport.Address(t) + "/readyz"
}

func TestCheckSaysWhichAddressFailedAndWhy(t *testing.T) {
	url, followed := region(t)
	refused := nobody(t)
	cases := map[string]struct {
		checks []string
		exit   int
		want   []string // in its errors
	}{
		"all answer":         {[]string{url + "/ready", url + "/empty"}, exitOK, nil},
		"one is not ready":   {[]string{url + "/ready", url + "/draining"}, exitFailed, []string{"/draining: answered 503 Service Unavailable", `"draining"`, "log of the Pods"}},
		"nobody listens":     {[]string{refused}, exitFailed, []string{refused, "connection refused", "NetworkPolicy"}},
		"each one is named":  {[]string{url + "/draining", refused, url + "/none"}, exitFailed, []string{"/draining", refused, "/none: answered 404"}},
		"a redirect is none": {[]string{url + "/moved"}, exitFailed, []string{"/moved: answered 302", `"/login"`, "not followed"}},
		"no host":            {[]string{"http://:8080/readyz"}, exitUsage, []string{"check", "whole URL"}},
		"no URL":             {[]string{"omnivision-platform-ui:8080"}, exitUsage, []string{"check", "whole URL"}},
		"another scheme":     {[]string{"file:///etc/passwd"}, exitUsage, []string{"check", "whole URL"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var args []string
			for _, address := range c.checks {
				args = append(args, "--check="+address)
			}
			var stdout, stderr bytes.Buffer
			if exit := run(t.Context(), args, env(nil), &stdout, &stderr); exit != c.exit {
				t.Errorf("exit %d, want %d: %s", exit, c.exit, stderr.String())
			}
			for _, want := range c.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("%q is not in the errors:\n%s", want, stderr.String())
				}
			}
			if strings.Contains(stderr.String(), "/ready:") || c.exit == exitOK && stderr.Len() > 0 {
				t.Errorf("an address that answered is among the errors:\n%s", stderr.String())
			}
		})
	}
	if n := followed.Load(); n > 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

func TestCheckNeverStartsTheServer(t *testing.T) {
	url, _ := region(t)
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	for _, address := range []string{url + "/ready", url + "/draining"} {
		var stdout, stderr bytes.Buffer
		// A server could not open this address, and without an end of its context it would go on.
		args := []string{"--check=" + address, "--listen=" + holder.Addr().String(), "--metrics-listen=127.0.0.1:0"}
		run(t.Context(), args, env(map[string]string{"OMNIVISION_WORKER_URL": "http://worker:8080"}), &stdout, &stderr)
		if out := stdout.String() + stderr.String(); strings.Contains(out, "starting") || strings.Contains(out, "listen") {
			t.Errorf("%s: a server was started: %s", address, out)
		}
	}
}

func TestCheckDoesNotWaitForWhoNeverAnswers(t *testing.T) {
	done := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-done:
		case <-r.Context().Done():
		}
	}))
	defer silent.Close()
	defer close(done)
	err := checkAll(t.Context(), addresses{silent.URL + "/readyz"}, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), silent.URL) || !strings.Contains(err.Error(), "exceeded") {
		t.Errorf("err = %v, want the address and that it took too long", err)
	}
}
