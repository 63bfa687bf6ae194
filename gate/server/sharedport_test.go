package server

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// patient is for what takes milliseconds on an idle machine.
const patient = time.Minute

// greet answers each connection with a name.
func greet(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, name)
		c.Close()
	}
}

// who answers a new connection.
func who(t *testing.T, address string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patient)
	if err != nil {
		t.Fatalf("a connection is refused: %v", err)
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("a connection is cut: %v", err)
	}
	return string(text)
}

func share(t *testing.T, address string, prepared func() error) *SharedPort {
	t.Helper()
	p, err := NewSharedPort(address, prepared)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestWhenOneOfTwoServersOfAPortIsGoneTheOtherAnswersAll(t *testing.T) {
	first, err := ListenShared(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Close() })
	address := first.Addr().String()
	second, err := ListenShared(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	go greet(first, "first")
	go greet(second, "second")
	answers := map[string]int{}
	for range 200 {
		answers[who(t, address)]++
	}
	if answers["first"] == 0 || answers["second"] == 0 {
		t.Errorf("connections do not spread over both: %v", answers)
	}
	second.Close()
	for range 200 {
		if name := who(t, address); name != "first" {
			t.Fatalf("%q answers", name)
		}
	}
}

func TestSharedPortTakesNoConnectionBeforeItsProcessCanAnswer(t *testing.T) {
	living, err := ListenShared(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { living.Close() })
	address := living.Addr().String()
	go greet(living, "living")
	var prepared atomic.Bool
	asked := make(chan struct{}, 1)
	starting := share(t, address, func() error {
		select {
		case asked <- struct{}{}:
		default:
		}
		if prepared.Load() {
			return nil
		}
		return errors.New("not yet")
	})
	go greet(starting, "starting")
	<-asked
	for range 100 {
		if name := who(t, address); name != "living" {
			t.Fatalf("%q answers", name)
		}
	}
	if starting.Ready() == nil {
		t.Error("it says that it takes connections")
	}
	prepared.Store(true)
	for deadline := time.Now().Add(patient); who(t, address) != "starting"; {
		if time.Now().After(deadline) {
			t.Fatal("it gets no connection")
		}
	}
	if err := starting.Ready(); err != nil {
		t.Errorf("it answers, and says %v", err)
	}
}

func TestSharedPortThatIsClosedBeforeItOpensEnds(t *testing.T) {
	never := share(t, "127.0.0.1:0", func() error { return errors.New("never") })
	ended := make(chan error)
	go func() {
		_, err := never.Accept()
		ended <- err
	}()
	never.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("it ended with %v", err)
	}
}

func TestSharedPortSaysWhatIsWrongWithAnAddress(t *testing.T) {
	if _, err := NewSharedPort("nowhere", nil); err == nil {
		t.Error("an address without a port is none")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0") // by somebody who shares it with nobody
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := share(t, taken.Addr().String(), func() error { return nil }).Accept(); err == nil {
		t.Error("a port that is not shared was opened twice")
	}
}
