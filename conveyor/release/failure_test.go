package release

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
)

// The registry goes away after the build.
func TestUnreachableRegistryStopsTheBelt(t *testing.T) {
	s := newSite(t)
	cut := s.release()
	cut.Registry = []remote.Option{remote.WithTransport(away{}), remote.WithRetryPredicate(func(error) bool { return false })}
	_, outcomes, err := s.run(cut, "")
	var stage *conveyor.StageError
	if !errors.As(err, &stage) || stage.Stage != Sign || !strings.Contains(err.Error(), "/omnivision/omnivision-worker@") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error is %v", err)
	}
	if len(outcomes) != 2 || len(s.proposer.requests) > 0 {
		t.Errorf("outcomes are %+v, and proposed was %v", outcomes, s.proposer.requests)
	}
	_, _, err = s.run(s.release(), "")
	check(t, err)
	if s.builder.builds != 1 || s.scanner.scans != 1 || len(s.proposer.requests) != 1 {
		t.Errorf("built %d, scanned %d, proposed %d", s.builder.builds, s.scanner.scans, len(s.proposer.requests))
	}
}

// stopper ends a run when a stage has begun or ended, as Ctrl-C does.
type stopper struct {
	watcher
	at   string
	stop context.CancelFunc
}

func (w *stopper) Started(stage string) { w.here("begin " + stage) }
func (w *stopper) Ended(stage string, _ time.Duration, _ error) {
	w.here("end " + stage)
}

func (w *stopper) here(point string) {
	if point == w.at {
		w.stop()
	}
}

// Whatever is done is done once, and nothing is proposed before all of it is.
func TestReleaseThatEndsBetweenAnyTwoStagesIsFinishedByTheNext(t *testing.T) {
	for _, at := range []string{"end build", "begin scan", "end scan", "begin sign", "end sign", "begin propose"} {
		t.Run(at, func(t *testing.T) {
			s := newSite(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			belt, err := s.release().Belt(s.store, &stopper{at: at, stop: cancel})
			check(t, err)
			if _, err := belt.Run(ctx, ""); err == nil && at != "begin scan" && at != "begin propose" {
				t.Error("the run did not end")
			}
			_, outcomes, err := s.run(s.release(), "")
			check(t, err)
			if len(outcomes) != 4 || s.builder.builds != 1 || s.scanner.scans != 1 || s.signed > 2 {
				t.Errorf("built %d, scanned %d, signed %d: %+v", s.builder.builds, s.scanner.scans, s.signed, outcomes)
			}
			believed, refused, err := s.signer.Policy().Image(t.Context(), s.repos[1].Digest(s.proposer.requests[0].Release.Digest))
			if err != nil || len(believed) != 2 || len(refused) != 0 {
				t.Errorf("proposed is what has %d statements, refused %v, %v", len(believed), refused, err)
			}
		})
	}
}

func TestTwoReleasesOfOneCommitAtOnceDoEachStageOnce(t *testing.T) {
	s := newSite(t)
	var group sync.WaitGroup
	for range 2 {
		r := s.release()
		belt, err := r.Belt(s.store, &watcher{})
		check(t, err)
		group.Go(func() {
			if _, err := belt.Run(t.Context(), ""); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if s.builder.builds != 1 || s.scanner.scans != 1 || s.signed != 1 || len(s.proposer.requests) != 2 {
		t.Errorf("built %d, scanned %d, signed %d, proposed %d", s.builder.builds, s.scanner.scans, s.signed, len(s.proposer.requests))
	}
	if a, b := s.proposer.requests[0].Release, s.proposer.requests[1].Release; a != b {
		t.Errorf("proposed are %+v and %+v", a, b)
	}
}
