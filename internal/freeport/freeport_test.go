package freeport

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// A connection that nobody gave a port must never be given one of these.
func TestNoConnectionIsGivenThePort(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Skip(err)
	}
	lowest, err := strconv.Atoi(strings.Fields(string(text))[0])
	if err != nil {
		t.Fatal(err)
	}
	if lowest < last {
		t.Errorf("the kernel gives connections ports from %d on, and ours go to %d", lowest, last)
	}
	for range 100 {
		if port := Port(t); port < first || port >= last {
			t.Errorf("port %d is not of [%d, %d)", port, first, last)
		}
	}
}

func TestAPortIsOnesUntilItIsGivenBack(t *testing.T) {
	port, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	if second, err := reserve(port); err == nil {
		second.Close()
		t.Errorf("port %d was given twice", port)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	third, err := reserve(port)
	if err != nil {
		t.Fatalf("a port that was given back is not to be had: %v", err)
	}
	third.Close()
}

func TestAPortThatIsListenedOnIsNotGiven(t *testing.T) {
	port, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if mark, err := reserve(port); err == nil {
		mark.Close()
		t.Errorf("port %d is listened on, and was given", port)
	}
}
