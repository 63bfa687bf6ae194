package gate_test

import (
	"testing"
	"time"

	"github.com/omnivision/omnivision/gate/killtest"
	"github.com/omnivision/omnivision/internal/freeport"
	"github.com/omnivision/omnivision/localfleet/ca"
)

// Kills of one of the two processes that answer for each of two Pods, and the creates around each.
const (
	kills      = 4
	aroundKill = 2 * time.Second
)

// A process that is killed takes along the reviews that it held, and what the kernel gave it while it ended: the API
// server sends a review once. Such a create is refused, not let through. Whatever begins later is answered, since the other
// process of the Pod has the same port, though nobody took the Pod out of the Service.
func TestKilledReplicaTakesAlongOnlyWhatItHeld(t *testing.T) {
	c := newCluster(t)
	site := newSite(t)
	image := site.release(t, "1.4.0")
	unsigned, _ := site.push(t, "unsigned")
	foreign := site.repository.Digest(unsigned).String()
	authority, err := ca.LoadOrCreate(t.TempDir())
	check(t, err)
	start := func(address string) *process { return startRoleAt(t, address, "gate", authority, site.root, "") }
	var twins []*process
	for range 2 {
		pod := freeport.Address(t)
		twins = append(twins, start(pod), start(pod))
		c.front.add(pod)
		until(t, "the replica is not ready", func() bool { return c.front.isReady(pod) })
	}
	register(t, c.admin, "gate", &process{address: c.front.listener.Addr().String()}, authority, hooks{pin: true, validate: true, conditions: true})
	create := func(image string) error {
		p := pod(apps, "killed", image)
		p.Labels = map[string]string{"bench": "gate"}
		_, err := c.dry(t.Context(), p)
		return err
	}
	until(t, "the gate is not asked", func() bool { return create(image) == nil && create(foreign) != nil })
	var all killtest.Outcome
	for i := range kills {
		o := killtest.Amid(t, twins[i].pid, aroundKill, func() error {
			// Whose image it is that is asked about while a process dies makes no difference to who gets in.
			if create(foreign) == nil {
				t.Error("a foreign image is admitted while a process dies")
			}
			return create(image)
		})
		all.Creates, all.Failed, all.InFlight = all.Creates+o.Creates, all.Failed+o.Failed, all.InFlight+o.InFlight
		twins[i] = start(twins[i].address)
	}
	t.Logf("%d kills of one of two processes of a Pod at %d creates/s: %d of %d creates failed, of %d that were in flight", kills, killtest.Rate, all.Failed, all.Creates, all.InFlight)
}
