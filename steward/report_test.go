package steward

import "testing"

// P10: where a weight is shown, so is what it comes to.
func TestProgressNamesWhatTheWeightComesTo(t *testing.T) {
	for want, r := range map[string]Rollout{
		"weight 5 % of requests":    {Weight: 5, PodShare: -1},
		"weight 5 % (50 % of Pods)": {Weight: 5, PodShare: 50},
		"weight 0 % (0 % of Pods)":  {},
	} {
		if got := r.weight(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
