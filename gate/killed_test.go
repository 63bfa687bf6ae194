package gate_test

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/omnivision/omnivision/localfleet/ca"
)

// Kills of one of two replicas, as a kernel out of memory or a dying node does them, and the creates around each.
const (
	kills      = 4
	aroundKill = 2 * time.Second
)

// A replica that is killed takes along the reviews that it held: the API server sends a review once. So a create may
// fail, and is refused, not let through; nothing else may fail, and what comes next is answered by the other replica.
func TestKilledReplicaTakesAlongOnlyWhatItHeld(t *testing.T) {
	c := newCluster(t)
	site := newSite(t)
	image := site.release(t, "1.4.0")
	unsigned, _ := site.push(t, "unsigned")
	foreign := site.repository.Digest(unsigned).String()
	authority, err := ca.LoadOrCreate(t.TempDir())
	check(t, err)
	start := func() *process {
		p := startRole(t, "gate", authority, site.root, "")
		c.front.add(p.address)
		until(t, "the replica is not ready", func() bool { return c.front.isReady(p.address) })
		return p
	}
	replicas := []*process{start(), start()}
	register(t, c.admin, "gate", &process{address: c.front.listener.Addr().String()}, authority, hooks{pin: true, validate: true, conditions: true})
	create := func(image string) error {
		p := pod(apps, "killed", image)
		p.Labels = map[string]string{"bench": "gate"}
		_, err := c.dry(t.Context(), p)
		return err
	}
	until(t, "the gate is not asked", func() bool { return create(image) == nil && create(foreign) != nil })
	var mu sync.Mutex
	creates, failed := 0, 0
	one := func() {
		// Whose image it is that is asked about while a replica dies makes no difference to who gets in.
		admitted := create(foreign) == nil
		err := create(image)
		mu.Lock()
		defer mu.Unlock()
		creates++
		if admitted {
			t.Error("a foreign image is admitted while a replica dies")
		}
		if err != nil {
			failed++
			if !strings.Contains(err.Error(), "failed calling webhook") {
				t.Errorf("a create fails for another reason than a lost connection: %v", err)
			}
		}
	}
	for i := range kills {
		var running sync.WaitGroup
		killed := false
		begin := time.Now()
		for n := 0; time.Since(begin) < aroundKill; n++ {
			if !killed && time.Since(begin) > aroundKill/4 {
				check(t, syscall.Kill(replicas[i%2].pid, syscall.SIGKILL))
				killed = true
			}
			time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / openRate)))
			running.Go(one)
		}
		running.Wait()
		until(t, "with one replica left nothing is created", func() bool { return create(image) == nil })
		replicas[i%2] = start()
	}
	t.Logf("%d kills of one of two replicas at %d creates/s: %d of %d creates failed", kills, openRate, failed, creates)
}
