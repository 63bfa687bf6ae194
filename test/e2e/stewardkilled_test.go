//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// stewardKills is how often the steward dies in one story, and betweenKills how long it
	// lives at most. A Lease of a dead replica runs out after 15 s, so many die before they act.
	stewardKills = 20
	betweenKills = 8 * time.Second
)

// killStewards kills replicas of a cluster's steward, each by SIGKILL at a random moment, while the
// caller goes on with its story. What it returns waits until all are dead, and says when they died.
func killStewards(t *testing.T, cluster string) (wait func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	client := clientOf(t, cluster)
	begin, done := time.Now(), make(chan error, 1)
	var moments []string
	kill := func() error {
		pods, err := client.CoreV1().Pods("omnivision-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=omnivision-steward"})
		if err != nil {
			return err
		}
		rand.Shuffle(len(pods.Items), func(i, j int) { pods.Items[i], pods.Items[j] = pods.Items[j], pods.Items[i] })
		for _, pod := range pods.Items {
			programs := processesOf(t, pod.Name)
			if len(programs) == 0 {
				continue // it has not begun
			}
			for _, pid := range programs {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
			}
			moments = append(moments, fmt.Sprintf("%.1f", time.Since(begin).Seconds()))
			// Its container would be started again after longer and longer pauses; another Pod begins at once.
			now := int64(0)
			return client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		}
		return nil
	}
	go func() {
		for len(moments) < stewardKills {
			select {
			case <-ctx.Done():
				done <- fmt.Errorf("after %d kills: %w", len(moments), context.Cause(ctx))
				return
			case <-time.After(rand.N(betweenKills)):
			}
			if err := kill(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return func() {
		t.Helper()
		defer cancel()
		if err := <-done; err != nil {
			t.Fatalf("killing stewards: %v", err)
		}
		t.Logf("the steward of %s was killed %d times, after %s s", cluster, len(moments), strings.Join(moments, ", "))
	}
}
