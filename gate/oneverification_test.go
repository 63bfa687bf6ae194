package gate_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/omnivision/omnivision/gate/certificate"
)

// Five hundred Pods with one digest that the gate does not know, all at once, by way of the API server.
func TestManyCreatesWithOneNewDigestCauseOneVerification(t *testing.T) {
	const pods = 500
	c := newCluster(t)
	s := newSite(t)
	known, fresh := s.release(t, "1.4.0"), s.release(t, "1.5.0")
	unsigned, _ := s.push(t, "unsigned")
	j, err := realJudge(s.root, 0)
	check(t, err)
	c.install(t, others)
	c.gate(t, j, certificate.Lifetimes{}, 0)
	c.install(t, webhooks)
	until(t, "an unsigned image is admitted, or a signed one is not", func() bool {
		_, bad := c.dry(t.Context(), pod(apps, "probe", s.repository.Digest(unsigned).String()))
		_, good := c.dry(t.Context(), pod(apps, "probe", known))
		return bad != nil && strings.Contains(bad.Error(), "[Unsigned]") && good == nil
	})
	before := j.Verifications()
	errs := make([]error, pods)
	atOnce(pods, func(i int) { _, errs[i] = c.dry(t.Context(), pod(apps, "one-of-many", fresh)) })
	for _, err := range errs {
		if err != nil {
			t.Fatalf("a create failed: %v", err)
		}
	}
	if got := j.Verifications() - before; got != 1 {
		t.Errorf("%d creates caused %d verifications", pods, got)
	}
}

// atOnce does something n times, all of them at the same moment.
func atOnce(n int, do func(i int)) {
	var start, done sync.WaitGroup
	start.Add(1)
	for i := range n {
		done.Go(func() {
			start.Wait()
			do(i)
		})
	}
	start.Done()
	done.Wait()
}
