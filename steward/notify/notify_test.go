package notify

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/steward"
)

func TestNotificationIsOneMessageThatMentionsNobody(t *testing.T) {
	var got struct{ Text string }
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	hook := Webhook{URL: func(context.Context) (string, error) { return server.URL + "/secret\n", nil }}
	tell := steward.Tell{App: "omnivision-worker", Cluster: "cluster-aws", Release: fleet.Release{Tag: "0.1.0-2"}, Report: steward.Report{State: steward.StateAborted, Text: "<!channel> & more"}, URL: "https://git.example.com/pulls/7"}
	if err := hook.Notify(t.Context(), tell); err != nil {
		t.Fatal(err)
	}
	want := "[ABORTED] *omnivision-worker 0.1.0-2* in *cluster-aws*: aborted: &lt;!channel&gt; &amp; more (<https://git.example.com/pulls/7|pull request>)"
	if got.Text != want {
		t.Errorf("posted\n%s\nwant\n%s", got.Text, want)
	}
	server.Close()
	if err := hook.Notify(t.Context(), tell); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error is %v: it must be one, without the address", err)
	}
}
