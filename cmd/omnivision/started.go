package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processStart is when this process began, to a hundredth of a second: what it takes to load
// the program is a part of how long a command takes. Where it cannot be found out it is now.
func processStart() time.Time {
	now := time.Now()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return now
	}
	after, err := startTime(string(stat))
	if err != nil {
		return now
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return now
	}
	if age := time.Duration(up.Nano()) - after; age > 0 {
		return now.Add(-age)
	}
	return now
}

// startTime reads from proc_pid_stat(5) how long after the machine the process started. The
// kernel shows it in hundredths of a second on every architecture.
func startTime(stat string) (time.Duration, error) {
	// The name of the program may hold anything, and ends with the last parenthesis; the
	// field after it is the third, and the start the 22nd.
	const start = 22 - 3
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(fields) <= start {
		return 0, errors.New("it has too few fields")
	}
	ticks, err := strconv.ParseInt(fields[start], 10, 64)
	if err != nil || ticks < 0 {
		return 0, fmt.Errorf("the start is %q", fields[start])
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}
