package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const startedVariable = "OMNIVISION_TEST_STARTED"

// TestStartOfThisProcess is no test but what the test below runs.
func TestStartOfThisProcess(*testing.T) {
	if os.Getenv(startedVariable) != "" {
		fmt.Printf("started %d\n", processStart().UnixNano())
	}
}

func TestTimeOfACommandBeginsWithItsProcess(t *testing.T) {
	const tick = 10 * time.Millisecond
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStartOfThisProcess$", "-test.v")
	cmd.Env = append(os.Environ(), startedVariable+"=1")
	before := time.Now().Add(-2 * tick)
	out, err := cmd.Output()
	after := time.Now()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "started ")
		if !ok {
			continue
		}
		nano, err := strconv.ParseInt(text, 10, 64)
		must(t, err)
		if started := time.Unix(0, nano); started.Before(before) || started.After(after) {
			t.Errorf("it started at %s, and ran between %s and %s", started, before, after)
		}
		return
	}
	t.Errorf("it said\n%s", out)
}

func TestStartIsFoundBehindAnyName(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 12345 20 21"
	for stat, want := range map[string]time.Duration{
		"42 (omnivision)" + rest:    123450 * time.Millisecond,
		"42 (a) S 1 (b c) )" + rest: 123450 * time.Millisecond,
		"42 (omnivision) S 1":       0,
		"":                          0,
		"42 (omnivision)" + strings.Replace(rest, "12345", "-1", 1): 0,
	} {
		got, err := startTime(stat)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %s, %v", stat, got, err)
		}
	}
}
