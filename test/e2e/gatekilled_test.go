//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// Each replica's program is killed, while Pods are asked for at this rate.
const (
	aroundKill     = 15 * time.Second // its container is back by then
	createsASecond = 100
)

// testGateReplicaKilled kills one replica of the gate after the other, as a kernel does, while Pods are asked for.
// What it held of reviews is refused, since the API server sends a review once; whatever else fails is a defect.
func testGateReplicaKilled(t *testing.T) {
	const cluster = "cluster-aws"
	client, image := clientOf(t, cluster), runningWorker(t, cluster)
	var wanted corev1.Pod
	if err := yaml.Unmarshal(fmt.Appendf(nil, pod, "asked", "omnivision", image), &wanted); err != nil {
		t.Fatal(err)
	}
	create := func() error {
		_, err := client.CoreV1().Pods("omnivision").Create(context.Background(), wanted.DeepCopy(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	replicas := strings.Fields(kubectl(t, cluster, "get", "pods", "-n", "omnivision-system", "-l", "app.kubernetes.io/name=omnivision-gate", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(replicas) < 2 {
		t.Fatalf("the replicas are %v", replicas)
	}
	for _, replica := range replicas {
		kubectl(t, cluster, "rollout", "status", "deployment/omnivision-gate", "-n", "omnivision-system", "--timeout=3m")
		pid := processOf(t, replica)
		var mu sync.Mutex
		var running sync.WaitGroup
		creates, failed := 0, map[string]int{}
		begin, killed := time.Now(), false
		for time.Since(begin) < aroundKill {
			time.Sleep(time.Until(begin.Add(time.Duration(creates) * time.Second / createsASecond)))
			if !killed && time.Since(begin) > time.Second {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				killed = true
			}
			creates++
			running.Go(func() {
				if err := create(); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed[err.Error()]++
				}
			})
		}
		running.Wait()
		total := 0
		for why, count := range failed {
			total += count
			t.Logf("%d times: %s", count, why)
			if !strings.Contains(why, "failed calling webhook") {
				t.Errorf("a create fails for another reason than a lost replica: %s", why)
			}
		}
		t.Logf("%s was killed: %d of %d creates failed", replica, total, creates)
	}
	eventually(t, "both replicas to be back", 3*time.Minute, func() error {
		if ready := kubectl(t, cluster, "get", "deployment", "omnivision-gate", "-n", "omnivision-system", "-o", "jsonpath={.status.readyReplicas}"); ready != "2" {
			return fmt.Errorf("%s are ready", ready)
		}
		return create()
	})
}

func clientOf(t *testing.T, cluster string) kubernetes.Interface {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	omnivision(t, "kubeconfig", "--file", file)
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: file}, &clientcmd.ConfigOverrides{CurrentContext: cluster}).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// processOf is the program of a Pod that is told its name: the fleet's Pods run on this machine.
func processOf(t *testing.T, podName string) int {
	t.Helper()
	for _, pid := range processes(t) {
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(append([]byte{0}, environment...), []byte("\x00POD_NAME="+podName+"\x00")) {
			return pid
		}
	}
	t.Fatalf("no process of the fleet is told that it is %s", podName)
	return 0
}
