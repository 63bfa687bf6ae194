package tooltime

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// hand is a clock that stands still until it is moved.
type hand struct{ at time.Time }

func (h *hand) now() time.Time        { return h.at }
func (h *hand) move(by time.Duration) { h.at = h.at.Add(by) }
func begin() *hand                    { return &hand{at: time.Unix(1_793_000_000, 0)} }
func seconds(n int) time.Duration     { return time.Duration(n) * time.Second }
func want(t *testing.T, got Spent, tools int, by map[string]int) {
	t.Helper()
	if got.Tools != seconds(tools) || len(got.ByTool) != len(by) {
		t.Errorf("spent is %+v, want %d s by %v", got, tools, by)
	}
	for tool, n := range by {
		if got.ByTool[tool] != seconds(n) {
			t.Errorf("%s took %s, want %d s", tool, got.ByTool[tool], n)
		}
	}
}

func TestWaitsAtTheSameTimeCountOnce(t *testing.T) {
	h := begin()
	ctx, clock := with(t.Context(), h.now)
	h.move(seconds(1)) // our own
	git := Begin(ctx, "git")
	h.move(seconds(2))
	registry, again := Begin(ctx, "registry"), Begin(ctx, "registry")
	h.move(seconds(3))
	git()
	git() // no second end
	h.move(seconds(4))
	want(t, clock.Spent(), 9, map[string]int{"git": 5, "registry": 7})
	registry()
	again()
	h.move(seconds(5)) // our own
	want(t, clock.Spent(), 9, map[string]int{"git": 5, "registry": 7})
}

func TestAStagesClockCountsForTheWholeAsWell(t *testing.T) {
	h := begin()
	ctx, whole := with(t.Context(), h.now)
	for i, tool := range []string{"BuildKit", "Trivy"} {
		stage, clock := with(ctx, h.now)
		end := Begin(stage, tool)
		h.move(seconds(i + 1))
		end()
		want(t, clock.Spent(), i+1, map[string]int{tool: i + 1})
	}
	want(t, whole.Spent(), 3, map[string]int{"BuildKit": 1, "Trivy": 2})
	Begin(t.Context(), "nobody asks")()
}

func TestARequestIsWaitedForUntilItsAnswerIsRead(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "answer") }))
	defer server.Close()
	h := begin()
	ctx, clock := with(t.Context(), h.now)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := Transport("registry", nil).RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	h.move(seconds(2))
	if said, err := io.ReadAll(response.Body); err != nil || string(said) != "answer" {
		t.Errorf("the answer is %q, %v", said, err)
	}
	h.move(seconds(3)) // what is done with it is our own
	if err := response.Body.Close(); err != nil {
		t.Error(err)
	}
	server.Close()
	if _, err := Transport("registry", nil).RoundTrip(request.Clone(ctx)); err == nil {
		t.Error("a server that is gone answered")
	}
	h.move(seconds(4))
	want(t, clock.Spent(), 2, map[string]int{"registry": 2})
}
