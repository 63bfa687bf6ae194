package steward

import (
	"errors"
	"testing"
	"time"

	"github.com/omnivision/omnivision/forge"
)

func TestPaceBacksOffAndDoesAsTheForgeAsks(t *testing.T) {
	pace := Pace{}.filled()
	limited := errors.Join(errors.New("other"), &forge.Error{Code: forge.RateLimited, RetryAfter: 40 * time.Minute})
	for _, test := range []struct {
		name         string
		r            Result
		err          error
		failures     int
		atLeast, max time.Duration
	}{
		{"nothing to do", Result{}, nil, 0, 30 * time.Second, 30 * time.Second},
		{"something was done", Result{Done: 1}, nil, 0, 2 * time.Second, 2 * time.Second},
		{"Git moved", Result{Again: true}, nil, 0, 2 * time.Second, 2 * time.Second},
		{"first failure", Result{}, errors.New("x"), 1, 2 * time.Second, 4 * time.Second},
		{"down for an hour", Result{}, errors.New("x"), 60, time.Minute, 2 * time.Minute},
		{"the forge says when", Result{}, limited, 3, 40 * time.Minute, 40 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, wait := pace.next(test.r, test.err, test.failures); wait < test.atLeast || wait > test.max {
				t.Errorf("waits %s, want %s to %s", wait, test.atLeast, test.max)
			}
		})
	}
	patient, wait := pace.next(Result{}, nil, 0)
	if patient >= wait {
		t.Error("nothing could wake it")
	}
}
