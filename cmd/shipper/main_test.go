package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"
)

func TestArgumentsAreThoseOfASidecarsFluentBit(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "/fluent-bit/config/fluent-bit.conf") {
		t.Errorf("%v\n%s", err, out.String())
	}
	// A configuration may come later; one that does not come ends nothing.
	ended, end := context.WithCancel(t.Context())
	end()
	out.Reset()
	if err := run(ended, []string{"-c", "nowhere.conf"}, &out); err != nil || !strings.Contains(out.String(), "waiting for the configuration") {
		t.Errorf("error %v\n%s", err, out.String())
	}
	if err := run(t.Context(), []string{"more"}, &out); err == nil {
		t.Error("an argument too many is taken")
	}
}
