// Package killtest kills one of several processes that answer for one another while they are asked, as a kernel out of
// memory does, and tells what was lost with it from what should not have been.
package killtest

import (
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Rate is how many creates begin in a second, whether or not those before have ended.
const Rate = 100

const (
	// noticed is until an API server has read that a connection has ended. A review that it writes before is lost.
	noticed = 250 * time.Millisecond
	// patient is for what takes milliseconds on an idle machine.
	patient = time.Minute
)

// Outcome of a kill.
type Outcome struct {
	Creates, Failed int
	InFlight        int // of the creates, those that were when the process ended, or began before that was noticed
	Ending          time.Duration
}

type create struct {
	begun, ended time.Time
	err          error
}

// Amid kills a process a quarter of the way through the time that creates begin. A create that fails without having been
// in flight is an error of the test, and so is one that fails for another reason than a webhook's lost connection.
func Amid(t testing.TB, pid int, lasting time.Duration, ask func() error) Outcome {
	t.Helper()
	all, killed, died := around(t, pid, lasting, ask)
	o := Outcome{Creates: len(all), Ending: died.Sub(killed)}
	for _, c := range all {
		inFlight := c.ended.After(killed) && c.begun.Before(died.Add(noticed))
		if inFlight {
			o.InFlight++
		}
		if c.err == nil {
			continue
		}
		o.Failed++
		if !inFlight {
			t.Errorf("a create fails that began %s after the process had ended: %v", c.begun.Sub(died), c.err)
		}
		if !strings.Contains(c.err.Error(), "failed calling webhook") {
			t.Errorf("a create fails for another reason than a lost connection: %v", c.err)
		}
	}
	return o
}

func around(t testing.TB, pid int, lasting time.Duration, ask func() error) (all []create, killed, died time.Time) {
	t.Helper()
	var mu sync.Mutex
	var running sync.WaitGroup
	begin := time.Now()
	for n := 0; time.Since(begin) < lasting; n++ {
		time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / Rate)))
		if killed.IsZero() && time.Since(begin) > lasting/4 {
			killed = time.Now()
			running.Go(func() { died = kill(t, pid) })
		}
		running.Go(func() {
			c := create{begun: time.Now()}
			c.err = ask()
			c.ended = time.Now()
			mu.Lock()
			defer mu.Unlock()
			all = append(all, c)
		})
	}
	running.Wait()
	return all, killed, died
}

// kill ends a process and returns when all that it had open was closed: the kernel tells of an end after that.
func kill(t testing.TB, pid int) time.Time {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Errorf("process %d: %v", pid, err)
		return time.Now()
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Errorf("killing process %d: %v", pid, err)
	}
	ends := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(ends, int(patient/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Errorf("process %d does not end: %v", pid, err)
		}
		return time.Now()
	}
}
