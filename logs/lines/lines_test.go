package lines

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/omnivision/omnivision/logs/loki"
)

// server answers as a cluster's Loki does.
type server struct {
	mu    sync.Mutex
	down  bool
	query string
	lines map[int64]string // by nanosecond
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		http.Error(w, "no endpoints available", http.StatusServiceUnavailable)
		return
	}
	q := r.URL.Query()
	s.query = q.Get("query")
	start, _ := strconv.ParseInt(q.Get("start"), 10, 64)
	end, _ := strconv.ParseInt(q.Get("end"), 10, 64)
	limit, _ := strconv.Atoi(q.Get("limit"))
	var times []int64
	for at := range s.lines {
		if at >= start && at < end {
			times = append(times, at)
		}
	}
	slices.Sort(times)
	if n := len(times) - limit; n > 0 && q.Get("direction") == "backward" {
		times = times[n:]
	} else if n > 0 {
		times = times[:limit]
	}
	var values []string
	for _, at := range times {
		values = append(values, fmt.Sprintf(`["%d",%q]`, at, s.lines[at]))
	}
	fmt.Fprintf(w, `{"data":{"resultType":"streams","result":[{"stream":{"namespace":"omnivision","pod":"p","container":"c"},"values":[%s]}]}}`, strings.Join(values, ","))
}

func (s *server) write(at time.Time, line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines[at.UnixNano()] = line
}

func (s *server) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// fleet is two clusters, and a reader of both that notes problems.
func fleet(t *testing.T) (aws, gcp *server, r *Reader, problems *[]Problem) {
	t.Helper()
	r, problems = &Reader{Patience: time.Minute}, &[]Problem{}
	source := func(cluster string) *server {
		s := &server{lines: map[int64]string{}}
		listening := httptest.NewServer(s)
		t.Cleanup(listening.Close)
		r.Sources = append(r.Sources, Source{cluster, &loki.Client{URL: listening.URL}})
		return s
	}
	aws, gcp = source("cluster-aws"), source("cluster-gcp")
	r.Report = func(p Problem) { *problems = append(*problems, p) }
	return aws, gcp, r, problems
}

func texts(lines []Line) string {
	var all []string
	for _, l := range lines {
		all = append(all, l.Cluster+":"+l.Line)
	}
	return strings.Join(all, " ")
}

func TestLinesOfSeveralClustersAreMergedByTime(t *testing.T) {
	aws, gcp, r, problems := fleet(t)
	begin := time.Now().Add(-time.Minute)
	for i := range 4 {
		aws.write(begin.Add(time.Duration(2*i)*time.Second), fmt.Sprint(2*i))
		gcp.write(begin.Add(time.Duration(2*i+1)*time.Second), fmt.Sprint(2*i+1))
	}
	r.Selection = Selection{App: "omnivision-worker", Grep: `a "b"`}
	lines, failed := r.Latest(t.Context(), begin.Add(time.Second), 3)
	if got := texts(lines); got != "cluster-gcp:5 cluster-aws:6 cluster-gcp:7" || failed != 0 || len(*problems) != 0 {
		t.Errorf("%s; %d failed, %v", got, failed, *problems)
	}
	if aws.query != `{workload="omnivision-worker"} |= "a \"b\""` {
		t.Errorf("asked %s", aws.query)
	}
}

func TestADeadClusterIsToldAndTheOthersGoOn(t *testing.T) {
	aws, gcp, r, problems := fleet(t)
	aws.write(time.Now().Add(-time.Second), "alive")
	gcp.set(true)
	lines, failed := r.Latest(t.Context(), time.Now().Add(-time.Minute), 10)
	if got := texts(lines); got != "cluster-aws:alive" || failed != 1 {
		t.Errorf("%s, %d failed", got, failed)
	}
	if len(*problems) != 1 || (*problems)[0].Cluster != "cluster-gcp" || !strings.Contains((*problems)[0].Err.Error(), "no endpoints available") {
		t.Errorf("told %v", *problems)
	}
}

var quick = Pace{Every: time.Millisecond, Overlap: 30 * time.Second}

// follow reads until done says so, which is asked with all that was shown each time that something was.
func follow(t *testing.T, r *Reader, since time.Time, limit int, done func(shown string) bool) (shown string, failing int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all []Line
	failing, err := r.Follow(ctx, since, limit, quick, func(lines []Line) error {
		if all = append(all, lines...); done(texts(all)) {
			cancel()
		}
		return nil
	})
	if err != nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatalf("after %q: %v, %v", texts(all), err, ctx.Err())
	}
	return texts(all), failing
}

func TestFollowingShowsEachLineOnceAndNoneBeforeTheLimit(t *testing.T) {
	aws, gcp, r, _ := fleet(t)
	begin := time.Now().Add(-10 * time.Second)
	for i := range 5 {
		aws.write(begin.Add(time.Duration(i)*time.Second), fmt.Sprint("old", i))
	}
	step := 0
	shown, failing := follow(t, r, begin.Add(-time.Minute), 2, func(string) bool {
		switch step++; step {
		case 1: // late, but newer than what was shown
			aws.write(begin.Add(3500*time.Millisecond), "late")
		case 2:
			gcp.write(time.Now(), "new")
		}
		return step == 3
	})
	if shown != "cluster-aws:old3 cluster-aws:old4 cluster-aws:late cluster-gcp:new" || failing != 0 {
		t.Errorf("%s, %d failing", shown, failing)
	}
}

func TestFollowingGoesOnWhenAClusterGoesAndComes(t *testing.T) {
	aws, gcp, r, problems := fleet(t)
	gcp.set(true)
	begin := time.Now().Add(-time.Minute)
	gcp.write(begin.Add(time.Second), "missed")
	aws.write(begin.Add(2*time.Second), "first")
	r.Report = func(p Problem) {
		*problems = append(*problems, p)
		switch len(*problems) {
		case 2: // gcp is back
			aws.set(true)
		case 3:
			gcp.write(time.Now(), "last")
		}
	}
	shown, failing := follow(t, r, begin, 10, func(shown string) bool {
		if shown == "cluster-aws:first" {
			gcp.set(false)
		}
		return strings.HasSuffix(shown, "last")
	})
	if shown != "cluster-aws:first cluster-gcp:missed cluster-gcp:last" || failing != 1 {
		t.Errorf("%s, %d failing", shown, failing)
	}
	var told []string
	for _, p := range *problems {
		told = append(told, fmt.Sprint(p.Cluster, " ", p.Err == nil))
	}
	if got := strings.Join(told, ", "); got != "cluster-gcp false, cluster-gcp true, cluster-aws false" {
		t.Errorf("told %s", got)
	}
}

func TestFollowingEndsWhenNobodyListens(t *testing.T) {
	aws, _, r, _ := fleet(t)
	aws.write(time.Now().Add(-time.Second), "x")
	closed := errors.New("closed pipe")
	if _, err := r.Follow(t.Context(), time.Now().Add(-time.Minute), 10, quick, func([]Line) error { return closed }); !errors.Is(err, closed) {
		t.Errorf("error %v", err)
	}
}

func line(text string) Line {
	return Line{"cluster-aws", loki.Entry{At: time.Date(2026, 11, 27, 3, 0, 0, 5e6, time.UTC), Line: text, Labels: map[string]string{"namespace": "omnivision", "pod": "p", "container": "c", "workload": "w"}}}
}

func TestWrittenLinesAreNobodysButTheirContainers(t *testing.T) {
	const head = "2026-11-27T03:00:00.005Z cluster-aws omnivision/p c  "
	for text, want := range map[string]string{
		"plain \tü\r\n":                 head + "plain \tü\n",
		"panic: x\n\tat y\n":            head + "panic: x\n    \tat y\n",
		"\x1b[2J\x07\u202e\x00 cleared": head + `\x1b[2J\a\u202e\x00 cleared` + "\n",
		"over\rwritten":                 head + `over\rwritten` + "\n",
		"":                              head + "\n",
	} {
		var out strings.Builder
		if err := WriteText(&out, line(text)); err != nil || out.String() != want {
			t.Errorf("%q became %q, want %q: %v", text, out.String(), want, err)
		}
	}
	var out strings.Builder
	if err := WriteColours(&out, line("\x1b[31mred")); err != nil || strings.Count(out.String(), "\033[") != 4 {
		t.Errorf("%q: %v", out.String(), err)
	}
}

func TestJSONKeepsALineToTheLetter(t *testing.T) {
	var out strings.Builder
	const want = `{"time":"2026-11-27T03:00:00.005Z","cluster":"cluster-aws","namespace":"omnivision","pod":"p","container":"c","line":"<\u001b\n>","labels":{"workload":"w"}}` + "\n"
	l := line("<\x1b\n>")
	if err := WriteJSON(&out, l); err != nil || out.String() != want || l.Labels["pod"] != "p" {
		t.Errorf("%s: %v", out.String(), err)
	}
}
