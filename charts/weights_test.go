package charts

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
		if key == (setting{1, "0"}) {
			for _, r := range rows {
				if r.Weight < 50 && r.Canary != 0 {
					t.Errorf("one replica without surge is refused, yet Argo Rollouts makes %d canary Pods at %d", r.Canary, r.Weight)
				}
			}
			continue
		}
		var steps []string
		for _, r := range rows {
			steps = append(steps, fmt.Sprintf("{setWeight: %d}", r.Weight))
		}
		line := at(t, find(t, mustRender(t, "aws-minimal", fmt.Sprintf(
			"aiWorker: {replicas: %d, canary: {maxSurge: %s, steps: [%s]}}", key.replicas, key.surge, strings.Join(steps, ", "))),
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
