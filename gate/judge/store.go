package judge

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/utils/lru"

	"github.com/omnivision/omnivision/gate/verify"
)

// Admission is a digest that this cluster admitted, with what was proven of it then.
type Admission struct {
	Facts    verify.Facts `json:"facts"`
	Admitted time.Time    `json:"admitted"`
}

// Store keeps admissions while no gate runs. Several replicas share one.
type Store interface {
	// Load returns what is kept.
	Load(ctx context.Context) ([]Admission, error)
	// Save adds admissions to what is kept. The newer of two of the same digest counts.
	Save(ctx context.Context, admissions []Admission) error
}

// admissions are those of this cluster, as far as this replica knows.
type admissions struct {
	known *lru.Cache // by key: Admission
	size  int        // of known, and of what waits to be saved

	mu    sync.Mutex
	dirty map[key]Admission // not saved yet
}

func newAdmissions(size int) *admissions {
	return &admissions{known: lru.New(size), size: size, dirty: map[key]Admission{}}
}

func keyOf(facts verify.Facts) key { return key{facts.Repository, facts.Digest, facts.Key} }

func (a *admissions) add(facts *verify.Facts, now time.Time) {
	admission := Admission{*facts, now.UTC()}
	a.known.Add(keyOf(*facts), admission)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.dirty) < a.size { // a store that fails for long must not fill the memory
		a.dirty[keyOf(*facts)] = admission
	}
}

// load takes over what was kept, unless something newer is known.
func (a *admissions) load(kept []Admission) {
	for _, admission := range kept {
		if known, ok := a.known.Get(keyOf(admission.Facts)); !ok || known.(Admission).Admitted.Before(admission.Admitted) {
			a.known.Add(keyOf(admission.Facts), admission)
		}
	}
}

func (a *admissions) find(of key) (*verify.Facts, bool) {
	known, ok := a.known.Get(of)
	if !ok {
		return nil, false
	}
	facts := known.(Admission).Facts
	return &facts, true
}

// take returns what is not saved yet.
func (a *admissions) take() []Admission {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Admission
	for _, admission := range a.dirty {
		all = append(all, admission)
	}
	a.dirty = map[key]Admission{}
	return all
}

// giveBack is for what could not be saved.
func (a *admissions) giveBack(lost []Admission) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, admission := range lost {
		if _, newer := a.dirty[keyOf(admission.Facts)]; !newer {
			a.dirty[keyOf(admission.Facts)] = admission
		}
	}
}

// Load reads what the cluster admitted before. Without it an outage of the registry stops
// what restarts, so whoever serves tries until it succeeds, but need not wait for it.
func (j *Judge) Load(ctx context.Context) error {
	if j.options.Store == nil {
		return nil
	}
	kept, err := j.options.Store.Load(ctx)
	if err != nil {
		return fmt.Errorf("reading what this cluster admitted before: %w", err)
	}
	j.admitted.load(kept)
	return nil
}

// Save writes what was admitted since the last time.
func (j *Judge) Save(ctx context.Context) error {
	if j.options.Store == nil {
		return nil
	}
	fresh := j.admitted.take()
	if len(fresh) == 0 {
		return nil
	}
	if err := j.options.Store.Save(ctx, fresh); err != nil {
		j.admitted.giveBack(fresh)
		return fmt.Errorf("saving what this cluster admitted: %w", err)
	}
	return nil
}

// Run loads what was admitted and saves what is, in batches, until the context ends, and once more then.
// What fails is reported and tried again.
func (j *Judge) Run(ctx context.Context) {
	loaded := j.report(j.Load(ctx))
	ticker := time.NewTicker(j.options.Flush)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.options.Flush)
			defer cancel()
			j.report(j.Save(last))
			return
		case <-ticker.C:
			if !loaded {
				loaded = j.report(j.Load(ctx))
			}
			j.report(j.Save(ctx))
		}
	}
}

func (j *Judge) report(err error) (fine bool) {
	if err != nil {
		j.options.Report(err)
	}
	return err == nil
}
