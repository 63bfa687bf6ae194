package loki

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func serve(t *testing.T, handler http.HandlerFunc) *Client {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &Client{URL: server.URL}
}

func TestLinesComeInOrderWithTheirLabels(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Get("query") != `{app="x"}` || q.Get("direction") != "backward" || q.Get("limit") != "7" || q.Get("start") != "1" || q.Get("end") != "9" {
			t.Errorf("asked %v", q)
		}
		fmt.Fprint(w, `{"data":{"resultType":"streams","result":[{"stream":{"pod":"a"},"values":[["5","e"],["3","c"]]},{"stream":{"pod":"b"},"values":[["4","d"]]}]}}`)
	})
	entries, err := c.Query(t.Context(), `{app="x"}`, time.Unix(0, 1), time.Unix(0, 9), 7, true)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	if entries[0].Line+entries[1].Line+entries[2].Line != "cde" || entries[1].Labels["pod"] != "b" {
		t.Errorf("entries %v", entries)
	}
}

func TestDeliveredCountsByContainer(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query().Get("query"); q != `sum by (namespace, pod, container) (count_over_time({namespace="omnivision"}[300s]))` {
			t.Errorf("asked %s", q)
		}
		fmt.Fprint(w, `{"data":{"resultType":"vector","result":[{"metric":{"namespace":"omnivision","pod":"p","container":"c"},"value":[1,"42"]}]}}`)
	})
	counts, err := c.Delivered(t.Context(), "omnivision", 5*time.Minute)
	if err != nil || counts[Source{"omnivision", "p", "c"}] != 42 || len(counts) != 1 {
		t.Errorf("%v, %v", counts, err)
	}
}

func TestFollowHandsOverEachLineOnce(t *testing.T) {
	var asked atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		values := []string{`["100","one"]`}
		if n > 1 {
			values = append(values, `["99","late"]`, `["200","two"]`)
		}
		fmt.Fprintf(w, `{"data":{"resultType":"streams","result":[{"stream":{},"values":[%s]}]}}`, strings.Join(values, ","))
	})
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := c.Follow(ctx, "{}", time.Unix(0, 0), time.Millisecond, time.Second, func(e Entry) error {
		if got = append(got, e.Line); len(got) == 3 {
			cancel()
		}
		return nil
	})
	if err != nil || strings.Join(got, " ") != "one late two" {
		t.Errorf("%q, %v", got, err)
	}
	stop := errors.New("enough")
	if err := c.Follow(t.Context(), "{}", time.Unix(0, 0), time.Hour, 0, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
}

func TestRefusalsNameTheServerAndTheQuestion(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"an error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "parse error", http.StatusBadRequest) },
		"no JSON":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"a metric": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"data":{"resultType":"matrix"}}`) },
		"a strange time": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"data":{"resultType":"streams","result":[{"values":[["soon","x"]]}]}}`)
		},
	} {
		c := serve(t, handler)
		if _, err := c.Query(t.Context(), "{q}", time.Time{}, time.Time{}, 1, false); err == nil || !strings.Contains(err.Error(), c.URL) && !strings.Contains(err.Error(), "{q}") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSelectorQuotes(t *testing.T) {
	if got := Selector(map[string]string{"b": `x"} or {a="`, "a": "1", "c": ""}); got != `{a="1",b="x\"} or {a=\""}` {
		t.Error(got)
	}
}
