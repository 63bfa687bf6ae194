package steward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/omnivision/omnivision/forge"
)

// Repository is the GitOps repository with its forge, and the forge of the source.
type Repository interface {
	// Look reads what Git says, for the steward of a cluster.
	Look(ctx context.Context, cluster string) (Git, error)
	// Do makes one of Propose, Withdraw, Merge, Comment, Tell and TellDone so.
	Do(ctx context.Context, a Action) error
}

// Cluster is the steward's own cluster.
type Cluster interface {
	// Look reads the Rollouts of the fleet's apps, by the app's name.
	Look(ctx context.Context, g Git) (map[string]Rollout, error)
	// Do makes one of Isolate and Resume so.
	Do(ctx context.Context, a Action) error
}

// Notifier tells people at once.
type Notifier interface {
	Notify(ctx context.Context, a Action) error
}

// Steward is the steward of one cluster.
type Steward struct {
	Name       string // of the cluster
	Repository Repository
	Cluster    Cluster
	Notifier   Notifier         // nil notifies nobody
	Clock      func() time.Time // nil is the machine's
	Drain      bool             // allows to cordon and drain nodes
	Log        *slog.Logger     // nil is the default

	decide func(View) []Action // a test's; nil is Decide
}

// Result is what a step did.
type Result struct {
	Done int // actions that succeeded
	// Again asks for the next step at once: Git moved while this one was deciding.
	Again bool
}

// Step looks, decides and acts, once. Actions that fail do not stop the others; what is left
// of them the next step sees.
func (s *Steward) Step(ctx context.Context) (Result, error) {
	view, err := s.look(ctx)
	if err != nil {
		return Result{}, err
	}
	var result Result
	var failed []error
	for _, action := range s.decisions(view) {
		err := s.do(ctx, action)
		switch {
		case err == nil:
			if _, repeated := action.(Comment); !repeated { // the forge knows whether it is there already
				result.Done++
			}
			s.log().InfoContext(ctx, "done", "action", action.String())
		case errors.Is(err, forge.Conflict):
			result.Again = true
			s.log().InfoContext(ctx, "looking again", "action", action.String(), "why", err)
		case errors.Is(err, forge.NotReady):
			s.log().InfoContext(ctx, "not yet", "action", action.String(), "why", err)
		case ctx.Err() != nil:
			return result, fmt.Errorf("%s: %w", action, err)
		default:
			failed = append(failed, fmt.Errorf("%s: %w", action, err))
		}
		if errors.Is(err, forge.RateLimited) || errors.Is(err, forge.Unavailable) {
			break // the others would fare no better
		}
	}
	return result, errors.Join(failed...)
}

func (s *Steward) look(ctx context.Context) (View, error) {
	git, err := s.Repository.Look(ctx, s.Name)
	if err != nil {
		return View{}, fmt.Errorf("reading the GitOps repository: %w", err)
	}
	here, err := s.Cluster.Look(ctx, git)
	if err != nil {
		return View{}, fmt.Errorf("reading the cluster: %w", err)
	}
	return View{Now: s.now(), Cluster: s.Name, Git: git, Here: here, Drain: s.Drain}, nil
}

func (s *Steward) decisions(v View) []Action {
	if s.decide != nil {
		return s.decide(v)
	}
	return Decide(v)
}

func (s *Steward) do(ctx context.Context, action Action) error {
	switch a := action.(type) {
	case Isolate, Resume:
		s.notify(ctx, a)
		return s.Cluster.Do(ctx, a)
	case Tell:
		if a.Notify {
			s.notify(ctx, a)
		}
	case TellDone:
		s.notify(ctx, a)
	}
	return s.Repository.Do(ctx, action)
}

// notify is before the report that is its mark: a restart between the two tells twice, and
// not never. A chat that is down holds nothing up.
func (s *Steward) notify(ctx context.Context, a Action) {
	if s.Notifier == nil {
		return
	}
	if err := s.Notifier.Notify(ctx, a); err != nil {
		s.log().WarnContext(ctx, "nobody was notified", "of", a.String(), "why", err)
	}
}

func (s *Steward) now() time.Time {
	if s.Clock != nil {
		return s.Clock()
	}
	return time.Now()
}

func (s *Steward) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}
