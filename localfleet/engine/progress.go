package engine

import "time"

// Phase is what a build is doing.
type Phase string

const (
	// Cached: the store has it already.
	Cached Phase = "cached"
	// Waiting: another process builds the same engine.
	Waiting Phase = "waiting"
	// Resolving: modules are downloaded, and what must be compiled is counted.
	Resolving Phase = "resolving"
	// Compiling: Event.Done of Event.Total packages are through.
	Compiling Phase = "compiling"
	// Extra: a further step named by Event.Item runs.
	Extra Phase = "extra"
	// Built: the engine is in the store.
	Built Phase = "built"
)

// Event is one report of progress.
type Event struct {
	Engine  string
	Version string
	Phase   Phase
	// Item is the package, module, program or extra at hand.
	Item string
	// Done and Total count packages while Compiling. Linking is not counted,
	// so the last program is still being made when they are equal.
	Done, Total int
	Elapsed     time.Duration
	// Last is how long the build of this engine took the last time it was
	// made from nothing; zero when that is not known.
	Last time.Duration
}

// Progress receives events, from several builds at a time; nil is allowed.
type Progress func(Event)

func (p Progress) report(e Event) {
	if p != nil {
		p(e)
	}
}
