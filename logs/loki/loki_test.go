package loki

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
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

func TestDeliveredAsksForStreamsAndNotForLines(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		start, _ := strconv.ParseInt(q.Get("start"), 10, 64)
		end, _ := strconv.ParseInt(q.Get("end"), 10, 64)
		if r.URL.Path != "/loki/api/v1/series" || q.Get("match[]") != `{namespace="omnivision"}` || time.Duration(end-start) != 5*time.Minute {
			t.Errorf("asked %s %v", r.URL.Path, q)
		}
		fmt.Fprint(w, `{"status":"success","data":[{"namespace":"omnivision","pod":"p","container":"c","version":"1"},{"namespace":"omnivision","pod":"p","container":"c","version":"2"}]}`)
	})
	delivered, err := c.Delivered(t.Context(), "omnivision", 5*time.Minute)
	if err != nil || !delivered[Source{"omnivision", "p", "c"}] || len(delivered) != 1 {
		t.Errorf("%v, %v", delivered, err)
	}
}

// store answers as Loki does, from lines at these nanoseconds.
func store(t *testing.T, asked *int, at ...int64) *Client {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		*asked++
		q := r.URL.Query()
		start, _ := strconv.ParseInt(q.Get("start"), 10, 64)
		end, _ := strconv.ParseInt(q.Get("end"), 10, 64)
		limit, _ := strconv.Atoi(q.Get("limit"))
		var values []string
		for i, ns := range at {
			if ns >= start && ns < end {
				values = append(values, fmt.Sprintf(`["%d","line %d"]`, ns, i))
			}
		}
		if n := len(values) - limit; n > 0 {
			if q.Get("direction") == "backward" {
				values = values[n:]
			} else {
				values = values[:limit]
			}
		}
		fmt.Fprintf(w, `{"data":{"resultType":"streams","result":[{"stream":{},"values":[%s]}]}}`, strings.Join(values, ","))
	})
}

// Lines with the same time lie across the pages' border.
func sameMoments(n int) (at []int64) {
	for i := range n {
		at = append(at, int64(1+i/3))
	}
	return at
}

func TestLatestReadsPageByPage(t *testing.T) {
	at := sameMoments(2*page + 100)
	for limit, pages := range map[int]int{7: 1, page: 1, page + 1: 2, len(at): 3, 3 * page: 3} {
		asked := 0
		got, err := store(t, &asked, at...).Latest(t.Context(), "{}", time.Unix(0, 0), time.Unix(0, 1<<40), limit)
		want := min(limit, len(at))
		if err != nil || len(got) != want || got[0].Line != fmt.Sprint("line ", len(at)-want) || got[want-1].Line != fmt.Sprint("line ", len(at)-1) {
			t.Errorf("limit %d: %d lines, want %d: %v", limit, len(got), want, err)
		}
		if asked < pages || asked > pages+1 {
			t.Errorf("limit %d: asked %d times, want %d", limit, asked, pages)
		}
	}
}

func TestFollowerReadsPageByPageAndEachLineOnce(t *testing.T) {
	asked := 0
	at := append(sameMoments(page+50), make([]int64, page+3)...)
	for i := page + 50; i < len(at); i++ {
		at[i] = 1 << 30 // more than a page of one moment
	}
	f := Follower{Client: store(t, &asked, at...), Query: "{}", Overlap: time.Hour}
	f.From(time.Unix(0, 0), []Entry{{At: time.Unix(0, 1), Line: "line 0", Labels: map[string]string{}}})
	got, err := f.Next(t.Context())
	// What of that moment does not fit into a page cannot be asked for.
	if want := len(at) - 1 - 3; err != nil || len(got) < want || got[0].Line != "line 1" {
		t.Fatalf("%d lines, want at least %d: %v", len(got), want, err)
	}
	if again, err := f.Next(t.Context()); err != nil || len(again) != 0 {
		t.Errorf("%d lines came again: %v", len(again), err)
	}
}

func TestFollowerGoesOnAfterAnError(t *testing.T) {
	asked := 0
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 2 {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, `{"data":{"resultType":"streams","result":[{"stream":{},"values":[["%d","line %d"]]}]}}`, asked, asked)
	})
	f := Follower{Client: c, Query: "{}", Overlap: time.Hour}
	f.From(time.Unix(0, 0), nil)
	var got []string
	for range 3 {
		entries, _ := f.Next(t.Context())
		for _, e := range entries {
			got = append(got, e.Line)
		}
	}
	if strings.Join(got, ",") != "line 1,line 3" {
		t.Errorf("%q", got)
	}
}

// A line from the future must not move the others out of reach.
func TestFollowerIsNotMisledByAClockThatIsAhead(t *testing.T) {
	now := time.Now()
	lines := []string{fmt.Sprintf(`["%d","ahead"]`, now.Add(50*time.Second).UnixNano())}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if start, _ := strconv.ParseInt(r.URL.Query().Get("start"), 10, 64); start > now.UnixNano() {
			t.Errorf("asked from %s on, which is ahead of now", time.Unix(0, start))
		}
		fmt.Fprintf(w, `{"data":{"resultType":"streams","result":[{"stream":{},"values":[%s]}]}}`, strings.Join(lines, ","))
	})
	f := Follower{Client: c, Query: "{}", Overlap: time.Second}
	f.From(now.Add(-time.Minute), nil)
	for range 2 {
		if _, err := f.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInClusterGoesByTheAPIServersProxy(t *testing.T) {
	var path, user string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, user = r.URL.Path, r.Header.Get("Authorization")
		fmt.Fprint(w, `{"data":[]}`)
	}))
	defer server.Close()
	c, err := InCluster(&rest.Config{Host: server.URL + "/k8s/clusters/c-1", BearerToken: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Delivered(t.Context(), "omnivision", time.Minute); err != nil {
		t.Fatal(err)
	}
	if path != "/k8s/clusters/c-1/api/v1/namespaces/logging/services/http:loki:3100/proxy/loki/api/v1/series" || user != "Bearer t" {
		t.Errorf("asked %s as %s", path, user)
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
	if got := Selector(map[string]string{"a": ""}) + Containing(""); got != Everything {
		t.Error(got)
	}
	if got := Containing(`a"b\c`); got != ` |= "a\"b\\c"` {
		t.Error(got)
	}
}

// Whatever a label's value or a text to look for is, it stays within its quotes.
func FuzzQuoting(f *testing.F) {
	for _, text := range []string{`"} or {a="`, "`", `\`, "\x00\xff\n", "é\u2028", `\" |= "`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		filter := Containing(text)
		if text == "" {
			return
		}
		literal := strings.TrimPrefix(filter, " |= ")
		back, err := strconv.Unquote(literal)
		if err != nil || back != text || literal[0] != '"' {
			t.Errorf("%q became %s: %v", text, filter, err)
		}
		if prefix, err := strconv.QuotedPrefix(literal); err != nil || prefix != literal {
			t.Errorf("%s ends before its end", literal)
		}
	})
}
