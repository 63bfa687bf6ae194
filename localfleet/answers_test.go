package localfleet

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestOnlyAWorkersRefusalIsAnAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		want   string // of the error; empty is none
	}{
		"a worker that refuses nothing": {http.StatusBadRequest, ""},
		"no route yet":                  {http.StatusNotFound, "404"},
		"no worker":                     {http.StatusServiceUnavailable, "503"},
		"something else":                {http.StatusOK, "200"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.Path != "/v1/generations" {
				t.Errorf("%s: asked is %s %s", name, r.Method, r.URL.Path)
			}
			w.WriteHeader(test.status)
		}))
		err := reachesWorker(t.Context(), server.URL)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
		server.Close()
		if err := reachesWorker(t.Context(), server.URL); err == nil {
			t.Errorf("%s: nobody listens, and it answers", name)
		}
	}
}
