package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/webhook"
)

// deciding is the part of the gate that decides, as the part that serves needs it.
type deciding struct {
	judge      gate.Judge
	mutators   []webhook.Mutator
	injectors  []webhook.Mutator
	collectors []prometheus.Collector
	ready      func() error                    // nil once policies are read
	run        func(ctx context.Context) error // until the context ends; nil if there is nothing to run
}

// newDeciding connects policies, verification and injection: the one place that knows them all.
func newDeciding(_ context.Context, _ *rest.Config, _ *slog.Logger) (deciding, error) {
	return deciding{judge: refusing{}, ready: func() error { return errNoJudge }}, nil
}

var errNoJudge = errors.New("this build of the gate has no policies: it refuses every image")

// refusing is the Judge of a gate that knows no policy.
type refusing struct{}

func (refusing) Judge(_ context.Context, image gate.Image) gate.Verdict {
	return gate.Verdict{Image: image.Reference, Denials: []gate.Denial{{Reason: gate.BadPolicy, Message: errNoJudge.Error()}}}
}
