package charts

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The file was made by Argo Rollouts v1.10.2 itself: its function
// CalculateReplicaCountsForBasicCanary called until the counts no longer moved,
// from a stable revision at full size and with maxUnavailable 1.
func TestEffectiveWeightsAreThoseOfArgoRollouts(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "rollouts-v1.10.2-weights.json"))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Replicas, Weight int
		MaxSurge         string
		Canary, All      int
	}
	var rows []row
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	type setting struct {
		replicas int
		surge    string
	}
	upstream := map[setting][]row{}
	for _, r := range rows {
		key := setting{r.Replicas, r.MaxSurge}
		upstream[key] = append(upstream[key], r)
	}
	shown := regexp.MustCompile(`setWeight (\d+) is (\d+) of (\d+) Pods`)
	for key, rows := range upstream {
		rows = slices.DeleteFunc(rows, func(r row) bool {
			if r.Canary > 0 {
				return false
			}
			// A weight that comes to no Pod is refused, not shown (P11).
			_, err := with(t, "aws-minimal", fmt.Sprintf("aiWorker: {replicas: %d, canary: {trafficRouting: none, maxSurge: %s, steps: [{setWeight: %d}]}}", r.Replicas, r.MaxSurge, r.Weight))
			if err == nil || !strings.Contains(err.Error(), "no Pod") {
				t.Errorf("%d replicas, maxSurge %s: setWeight %d has no canary Pod and is not refused: %v", r.Replicas, r.MaxSurge, r.Weight, err)
			}
			return true
		})
		if key == (setting{1, "0"}) {
			continue // refused whatever the weight
		}
		var steps []string
		for _, r := range rows {
			steps = append(steps, fmt.Sprintf("{setWeight: %d}", r.Weight))
		}
		line := at(t, find(t, mustRender(t, "aws-minimal", fmt.Sprintf(
			"aiWorker: {replicas: %d, canary: {trafficRouting: none, maxSurge: %s, steps: [%s]}}", key.replicas, key.surge, strings.Join(steps, ", "))),
			workerRollout), "metadata.annotations.omnivision~ai/effective-weights").(string)
		got := shown.FindAllStringSubmatch(line, -1)
		if len(got) != len(rows) {
			t.Fatalf("%d weights, shown are %q", len(rows), line)
		}
		for i, r := range rows {
			want := []string{strconv.Itoa(r.Weight), strconv.Itoa(r.Canary), strconv.Itoa(r.All)}
			if got := got[i][1:]; got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
				t.Errorf("%d replicas, maxSurge %s: setWeight %s is %s of %s Pods, the chart says %s of %s", key.replicas, key.surge, want[0], want[1], want[2], got[1], got[2])
			}
		}
	}
}

// The file was made by Argo Rollouts v1.10.2 itself: its function
// CalculateReplicaCountsForTrafficRoutedCanary in the pause after a setWeight,
// with the weights already written.
func TestPodsForRequestsAreThoseOfArgoRollouts(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "rollouts-v1.10.2-routed.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Replicas, Weight int
		Dynamic          bool
		Canary, All      int
	}
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		line := at(t, find(t, mustRender(t, "aws-minimal", fmt.Sprintf(
			"aiWorker: {replicas: %d, canary: {dynamicStableScale: %t, steps: [{setWeight: %d}]}}", r.Replicas, r.Dynamic, r.Weight)),
			workerRollout), "metadata.annotations.omnivision~ai/effective-weights")
		if want := fmt.Sprintf("setWeight %d is %d%% of requests, by %d of %d Pods", r.Weight, r.Weight, r.Canary, r.All); line != want {
			t.Errorf("%d replicas, dynamicStableScale %t: the chart says %q, Argo Rollouts brings %q", r.Replicas, r.Dynamic, line, want)
		}
	}
}

// What setCanaryScale says holds until the next one.
func TestCanaryScaleHoldsOverSteps(t *testing.T) {
	line := at(t, find(t, mustRender(t, "aws-minimal", `aiWorker: {replicas: 10, canary: {steps: [
		{setCanaryScale: {replicas: 3}}, {setWeight: 5}, {setWeight: 10}, {setCanaryScale: {weight: 80}}, {setWeight: 50}, {setCanaryScale: {matchTrafficWeight: true}}, {setWeight: 60}]}}`),
		workerRollout), "metadata.annotations.omnivision~ai/effective-weights")
	const want = "setWeight 5 is 5% of requests, by 3 of 13 Pods, setWeight 10 is 10% of requests, by 3 of 13 Pods, setWeight 50 is 50% of requests, by 8 of 18 Pods, setWeight 60 is 60% of requests, by 6 of 16 Pods"
	if line != want {
		t.Errorf("it is\n%s, want\n%s", line, want)
	}
}
