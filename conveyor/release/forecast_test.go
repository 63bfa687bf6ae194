package release

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/internal/tooltime"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/revision"
)

// asking is a source of charts that counts, and tells when it is asked first.
type asking struct {
	chart.Source
	times atomic.Int64
	begun chan struct{}
	first error  // what the first answer is instead
	warn  string // what the first answer says besides
}

func (a *asking) Chart(ctx context.Context, ref chart.Reference) (*chart.Loaded, error) {
	first := a.times.Add(1) == 1
	if first {
		defer close(a.begun)
		if a.first != nil {
			return nil, a.first
		}
	}
	loaded, err := a.Source.Chart(ctx, ref)
	if err != nil || !first || a.warn == "" {
		return loaded, err
	}
	said := *loaded
	said.Warning = a.warn
	return &said, nil
}

// The plan of two clusters asks for the one chart that both pin, once: how often it was asked
// for is how often was planned.
func TestPlanIsRenderedWhileTheScannerWorks(t *testing.T) {
	for name, tt := range map[string]struct {
		foreseen func(g gitops)       // what becomes of the repository after it was looked at
		charts   func(charts *asking) // what they do
		away     bool                 // so that nothing is foreseen
		plans    int64
		told     bool // that the registry was away
	}{
		"and is what was foreseen":                      {plans: 1},
		"and a commit since then changed nothing":       {plans: 1, foreseen: func(g gitops) { g.git("commit", "--quiet", "--allow-empty", "-m", "nothing") }},
		"and is made again for a base that moved":       {plans: 2, foreseen: func(g gitops) { g.edit("fleet.yaml", "displayName: Oregon", "displayName: Portland"); g.commit() }},
		"and is made again where a chart was not there": {plans: 2, charts: func(c *asking) { c.first = errors.New("the registry is away") }},
		"and what is to be told of it is told":          {plans: 1, told: true, charts: func(c *asking) { c.warn = "the registry was away" }},
		"or later, where the forge was away":            {plans: 1, away: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, g := newSite(t), newGitops(t)
			release := fleet.Release{Tag: "0.1.0-9", Digest: "sha256:" + strings.Repeat("2", 64)}
			charts := &asking{Source: chart.NewCheckout("../../charts/omnivision-platform"), begun: make(chan struct{})}
			base, head := g.trees(release)
			if !tt.away {
				foreseenBase, foreseenHead := base, head
				s.proposer.preview = func() (*revision.Tree, *revision.Tree) { return foreseenBase, foreseenHead }
				s.scanner.during = func(ctx context.Context) {
					select {
					case <-charts.begun:
					case <-ctx.Done():
						t.Error("nothing was planned while the scanner worked")
					}
				}
			}
			if tt.foreseen != nil {
				g.git("checkout", "--quiet", ".")
				tt.foreseen(g)
				base, head = g.trees(release)
			}
			if tt.charts != nil {
				tt.charts(charts)
			}
			s.proposer.trees = func(fleet.Release) (*revision.Tree, *revision.Tree) { return base, head }
			want, err := Release{Charts: charts.Source}.plan(t.Context(), propose.Change{Base: base, Head: head}, func(string) {})
			check(t, err)
			r, w := s.release(), &watcher{}
			r.Charts = charts
			belt, err := r.Belt(s.store, w)
			check(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err = belt.Run(ctx, "")
			check(t, err)
			if got := charts.times.Load(); got != tt.plans {
				t.Errorf("planned %d times, want %d", got, tt.plans)
			}
			if s.proposer.text.Plan != want {
				t.Errorf("the plan is\n%s\nwant\n%s", s.proposer.text.Plan, want)
			}
			if told := strings.Join(w.told, "\n"); strings.Contains(told, "the registry was away") != tt.told {
				t.Errorf("told is, want the warning: %t\n%s", tt.told, told)
			}
		})
	}
}

func TestForecastIsNotBegunOnceItIsTooLate(t *testing.T) {
	base, head := newGitops(t).trees(fleet.Release{Tag: "0.1.0-9", Digest: "sha256:" + strings.Repeat("2", 64)})
	f, change, tell := &forecast{}, propose.Change{Base: base, Head: head}, func(string) {}
	if f.of(change, tell) != nil || f.begin(t.Context(), change, nil) != nil || f.of(change, tell) != nil {
		t.Error("a plan is made twice at the same time")
	}
}

// BenchmarkProposing measures how much of a proposal is our own, up to where its text is
// known: with the plan rendered there, and with the plan that was made ahead.
func BenchmarkProposing(b *testing.B) {
	g := newGitops(b)
	proposer := &propose.Proposer{Forge: noPullRequests{}, Base: "main", Remote: propose.Remote{URL: g.dir}}
	r := Release{Charts: chart.NewCheckout("../../charts/omnivision-platform"), Proposer: proposer}
	described := errors.New("that is all")
	request := propose.Request{App: "omnivision-worker", Wave: 1, Release: fleet.Release{Tag: "1.0.0-9", Digest: "sha256:" + strings.Repeat("2", 64)}, Time: time.Unix(1_793_000_000, 0)}
	for _, ahead := range []bool{false, true} {
		b.Run(fmt.Sprintf("ahead=%t", ahead), func(b *testing.B) {
			var own time.Duration
			for b.Loop() {
				b.StopTimer()
				r.forecast = &forecast{}
				if ahead {
					change, err := proposer.Preview(b.Context(), request)
					check(b, err)
					_, err = r.forecast.begin(b.Context(), change, r.Charts)()
					check(b, err)
				}
				request.Describe = func(ctx context.Context, change propose.Change) (propose.Text, error) {
					_, err := r.plan(ctx, change, func(string) {})
					check(b, err)
					return propose.Text{}, described
				}
				b.StartTimer()
				ctx, _ := tooltime.With(b.Context())
				begin := time.Now()
				if _, err := proposer.Propose(ctx, request); !errors.Is(err, described) {
					b.Fatal(err)
				}
				own += conveyor.SpentSince(ctx, begin).Own()
			}
			b.ReportMetric(float64(own.Milliseconds())/float64(b.N), "own-ms/op")
		})
	}
}

type noPullRequests struct{ propose.Forge }

func (noPullRequests) FindPullRequests(context.Context, forge.Query) ([]forge.PullRequest, error) {
	return nil, nil
}
