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
			_, err := with(t, "aws-minimal", fmt.Sprintf("aiWorker: {replicas: %d, canary: {maxSurge: %s, steps: [{setWeight: %d}]}}", r.Replicas, r.MaxSurge, r.Weight))
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
