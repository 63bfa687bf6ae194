//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/omnivision/omnivision/gate/killtest"
)

// aroundKill is how long Pods are asked for around the kill of a program: its container is back by then.
const aroundKill = 15 * time.Second

// testGateReplicaKilled kills one program of each replica of the gate, as a kernel does, while Pods are asked for.
// What it held of reviews is refused, since the API server sends a review once, and so is what the kernel gave it until its
// port was closed. Whatever begins later must not fail: the other program of the Pod has the same port.
func testGateReplicaKilled(t *testing.T) {
	const cluster = "cluster-aws"
	create, _ := createsOf(t, cluster)
	replicas := strings.Fields(kubectl(t, cluster, "get", "pods", "-n", "omnivision-system", "-l", "app.kubernetes.io/name=omnivision-gate", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(replicas) < 2 {
		t.Fatalf("the replicas are %v", replicas)
	}
	for i, replica := range replicas {
		kubectl(t, cluster, "rollout", "status", "deployment/omnivision-gate", "-n", "omnivision-system", "--timeout=3m")
		programs := processesOf(t, replica)
		if len(programs) != 2 {
			t.Fatalf("%s has the programs %v", replica, programs)
		}
		o := killtest.Amid(t, programs[i%2], aroundKill, create)
		t.Logf("a program of %s was killed, and took %s to end: %d of %d creates failed, of %d that were in flight", replica, o.Ending.Round(time.Millisecond), o.Failed, o.Creates, o.InFlight)
	}
	eventually(t, "both replicas to be back", 3*time.Minute, func() error {
		if ready := kubectl(t, cluster, "get", "deployment", "omnivision-gate", "-n", "omnivision-system", "-o", "jsonpath={.status.readyReplicas}"); ready != "2" {
			return fmt.Errorf("%s are ready", ready)
		}
		return create()
	})
}

// testGateRenewsItsCertificate takes the Secret of the gate's certificate away while Pods are asked for. The gate
// writes it again with a new CA, which the API server is told before it signs, and no create fails.
func testGateRenewsItsCertificate(t *testing.T) {
	const cluster, namespace, name = "cluster-aws", "omnivision-system", "omnivision-gate-certificate"
	create, client := createsOf(t, cluster)
	bundle := func() string {
		hooks, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), "omnivision-gate", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(hooks.Webhooks[0].ClientConfig.CABundle)
	}
	before := bundle()
	renewed, isRenewed := context.WithCancel(t.Context())
	creates, failed := 0, error(nil)
	var asking sync.WaitGroup
	asking.Go(func() {
		const afterwards = 200
		for n := 0; n < afterwards && failed == nil; creates++ {
			if renewed.Err() != nil {
				n++
			}
			failed = create()
		}
	})
	if err := client.CoreV1().Secrets(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new CA beside the old one in the webhooks", time.Minute, func() error {
		if now := bundle(); strings.Count(now, "BEGIN CERTIFICATE") <= strings.Count(before, "BEGIN CERTIFICATE") {
			return errors.New("the bundle has no further CA")
		}
		_, err := client.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
	isRenewed()
	asking.Wait()
	if failed != nil {
		t.Errorf("of %d creates the last one failed: %v", creates, failed)
	}
	t.Logf("%d creates while the certificate's Secret was made anew, and after that", creates)
}

// createsOf returns a function that asks a cluster for a Pod of its worker, in a dry run, and the client that it asks by.
func createsOf(t *testing.T, cluster string) (create func() error, client kubernetes.Interface) {
	t.Helper()
	client = clientOf(t, cluster)
	var wanted corev1.Pod
	if err := yaml.Unmarshal(fmt.Appendf(nil, pod, "asked", "omnivision", runningWorker(t, cluster)), &wanted); err != nil {
		t.Fatal(err)
	}
	return func() error {
		_, err := client.CoreV1().Pods("omnivision").Create(context.Background(), wanted.DeepCopy(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}, client
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

// processesOf are the programs of a Pod that are told its name: the fleet's Pods run on this machine.
func processesOf(t *testing.T, podName string) (all []int) {
	t.Helper()
	for _, pid := range processes(t) {
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(append([]byte{0}, environment...), []byte("\x00POD_NAME="+podName+"\x00")) {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return slices.Compact(all) // a process is in several control groups' lists
}
